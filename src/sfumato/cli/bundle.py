"""What `sfumato bundle` prints."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from sfumato.base.errors import InputError
from sfumato.cli.show import check_is_empty, say
from sfumato.evaluation.bundling import add_cards, write_bundle
from sfumato.generation.bundle_names import beside, is_bundle, model_folder
from sfumato.generation.bundles import CARD


def bundle_run(
    run: str, out: Path, cards: Sequence[Path], *, source: str | None, note: str
) -> None:
    """A run into a new folder, and what comes next."""
    check_is_empty(out)
    write_bundle(Path(run), out, source=source, note=note, cards=cards)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    say(f"Bundle  {out}, {size / 1e6:.1f} MB\nCard    {out / CARD}")
    if not cards:
        measured = beside(out, "evaluation")
        say(
            "Not measured yet. What is measured is to be what is shipped:\n"
            f"  sfumato evaluate {out}\n  sfumato bundle {out} --card {measured}"
        )


def renew_figures(
    model: str, cards: Sequence[Path], *, of_the_run: Mapping[str, str | None]
) -> None:
    """The figures of `cards` into the README of a bundle that is there; `of_the_run`: options that
    go with a run alone, and what was given."""
    if not is_bundle(model):
        raise InputError(f"{model} is not a bundle.", hint="Of a run, name the folder with --out.")
    for option in (name for name, given in of_the_run.items() if given):
        raise InputError(f"{option} goes with a run and --out.", hint="Leave it out here.")
    if not cards:
        raise InputError(
            "No figures are named.", hint="Give --card FOLDER, what `sfumato evaluate` wrote."
        )
    folder = model_folder(model)
    add_cards(folder, cards)
    say(f"Card    {folder / CARD}")
