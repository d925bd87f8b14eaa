"""`sfumato evolve`."""

import shlex
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.base.errors import InputError, LintWarning
from sfumato.base.lock import locked
from sfumato.base.words import counted
from sfumato.cli.checks import checked_folder, checked_prompts
from sfumato.cli.options import LoadingOptions, ModelPath, SamplingOptions, Seed
from sfumato.cli.show import log, open_model
from sfumato.generation.bundle_names import is_can

if TYPE_CHECKING:
    from sfumato.generation.model import Model
    from sfumato.interactive.evolution import Evolution
    from sfumato.interactive.operators import Operators

HISTORY = "evolution.json"


@dataclass(frozen=True, kw_only=True)
class OperatorOptions:
    """How children are made; of a history that is gone on with, they are its own."""

    operators: Annotated[
        str, typer.Option(help="rotation, or deepie, whose noise grows in every generation.")
    ] = "rotation"
    angle: Annotated[
        float, typer.Option(help="Mutation of rotation in the first generation, in degrees.")
    ] = 45.0
    decay: Annotated[
        float, typer.Option(help="The angle of a generation over that of the one before.")
    ] = 0.8
    scale: Annotated[float, typer.Option(help="Mutation of deepie: deviation of its noise.")] = 0.5
    newcomers: Annotated[int, typer.Option(min=0, help="New images in every generation.")] = 0
    size: Annotated[int, typer.Option(min=4, max=100, help="Images of a generation.")] = 16

    def chosen(self) -> "Operators":
        from sfumato.interactive.operators import Operators

        return Operators(
            name=self.operators,
            angle=self.angle,
            decay=self.decay,
            scale=self.scale,
            newcomers=self.newcomers,
        )


def evolve(
    model: ModelPath,
    prompts: Annotated[
        list[str] | None,
        typer.Argument(
            callback=checked_prompts,
            help="One or more, each in quotes, to begin; none to go on.",
            show_default=False,
        ),
    ] = None,
    *,
    out: Annotated[
        Path, typer.Option(callback=checked_folder, help="Folder of the history; goes on there.")
    ] = Path("evolution"),
    picks: Annotated[
        list[str] | None,
        typer.Option(
            help='Pick without being asked: "3 7 12", or none for all new ones. May be repeated, '
            "once a generation."
        ),
    ] = None,
    generation: Annotated[
        int | None, typer.Option(min=0, help="Go on from this one; else from the newest.")
    ] = None,
    start: Annotated[
        list[Path] | None,
        typer.Option(help="PNG of sfumato to begin with, for its noise. May be repeated."),
    ] = None,
    seed: Seed = 0,
    operators: OperatorOptions,
    sampling: SamplingOptions,
    loading: LoadingOptions,
) -> None:
    """Pick images by number; their noise has children, generation by generation."""
    there = (out / HISTORY).is_file()
    if not there and not prompts and not is_can(model):
        raise InputError(
            f"There is no prompt, and no history in {out}.",
            hint="Give a prompt in quotes to begin.",
        )
    if there and (prompts or start):
        raise InputError(
            f"{out} has a history already, with prompts of its own.",
            hint="Leave the prompts and --start out to go on, or give another --out.",
        )
    settings = operators.chosen()
    if not there and settings.name == "deepie":
        warnings.warn(
            "The operators 'deepie' add noise to noise: it leaves the N(0, I) that the model was "
            "trained on a little more in every generation. Its deviation is shown; 1 is right.",
            LintWarning,
            stacklevel=2,
        )
    changes = sampling.changes()
    if there:
        changes = _as_begun(out, operators, seed, changes)
    opened = open_model(model, loading, can=True, **changes)
    from sfumato.interactive.evolution import Evolution

    with locked(out):
        if there:
            history = Evolution.resume(opened, out)
        else:
            captions = prompts or opened.examples()[0]
            history = _begin(opened, captions, out, operators.size, settings, seed, start)
        number = history.number(generation)
        if picks is None and sys.stdin.isatty():
            _ask(history, number)
            return
        if not picks:
            _show(history, number)
        for chosen in [_picked(history, text) for text in picks or ()]:
            number = _advance(history, chosen, number)
        goes_on = shlex.join(["sfumato", "evolve", model, "--out", str(out)])
        log(f'Go on with: {goes_on} --generation {number} --picks "3 7"')


def _as_begun(
    out: Path, operators: OperatorOptions, seed: int, sampling: dict[str, Any]
) -> dict[str, Any]:
    """How the model of a history samples, with what is given in `sampling`. `InputError` for other
    operators, another size or seed than it began with: they are its own."""
    from sfumato.interactive.evolution import begun

    known, own = begun(out)
    usual = {**asdict(OperatorOptions()), "seed": 0}
    for option, value in {**asdict(operators), "seed": seed}.items():
        began = known["name" if option == "operators" else option]
        if value not in (usual[option], began):
            raise InputError(
                f"{out} began with --{option} {began}, not {value}.",
                hint="Leave it out to go on, or give another --out.",
            )
    return {name: own.get(name) if value is None else value for name, value in sampling.items()}


def _begin(
    model: "Model",
    prompts: list[str],
    out: Path,
    size: int,
    operators: "Operators",
    seed: int,
    start: list[Path] | None,
) -> "Evolution":
    from sfumato.cli.show import warn_of_sampling
    from sfumato.generation.subjects import warn_of_other_subjects
    from sfumato.interactive.evolution import Evolution

    warn_of_sampling(model)
    warn_of_other_subjects(model, prompts)
    return Evolution.begin(
        model, prompts, out, seed=seed, size=size, operators=operators, start=start or ()
    )


def _picked(history: "Evolution", text: str) -> tuple[int, ...]:
    from sfumato.interactive.evolution import parse_picks

    return parse_picks(text, history.about["size"])


def _advance(history: "Evolution", chosen: tuple[int, ...], number: int) -> int:
    """Sample the next generation, show it, and say how long it took."""
    started = time.monotonic()
    number = history.advance(chosen, generation=number)
    seconds = time.monotonic() - started
    _show(history, number)
    new = len(history.generations[number].images) - history.generations[number].kept
    log(f"{counted(new, 'new image')} in {seconds:.1f} s")
    return number


def _show(history: "Evolution", number: int) -> None:
    log(f"{history.title(number)}\n{history.grid_path(number)}")


def _ask(history: "Evolution", number: int) -> None:
    """Ask for picks until there are none; what cannot be understood is asked again."""
    _show(history, number)
    while True:
        try:
            text = input("Picks, such as 3 7 12 (none: all new; Enter: end): ")
        except (EOFError, KeyboardInterrupt):
            log("")
            return
        if not text.strip():
            return
        try:
            number = _advance(history, _picked(history, text), number)
        except InputError as error:
            log(f"{error.what} {error.hint}")
