"""`sfumato evaluate`, and what the commands that measure share."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.base.errors import InputError
from sfumato.base.progress import Progress
from sfumato.cli.options import (
    CardFolder,
    Data,
    Form,
    HeldOut,
    MeasureOptions,
    PrecisionOptions,
    Processes,
    Scales,
    Untrained,
    run_in_processes,
    stoppable,
)
from sfumato.cli.show import log, log_wrapped, print_wide
from sfumato.config.overrides import override
from sfumato.config.sections import DataConfig, EvaluationConfig
from sfumato.diffusion.solvers.registry import Sampling
from sfumato.generation.bundle_names import check_model, is_model

if TYPE_CHECKING:
    from sfumato.evaluation.card import Card
    from sfumato.generation.model import Model

What = Annotated[
    Path, typer.Argument(help="A run, a pipeline, bundled:mnist, a folder of images or an .npz.")
]


@dataclass(frozen=True, kw_only=True)
class HowOptions(PrecisionOptions):
    """Where an evaluation goes, by how many processes, and how the network computes."""

    out: CardFolder = None
    processes: Processes = None


def evaluate(
    what: What,
    *,
    measure: MeasureOptions,
    scales: Scales = None,
    form: Form = None,
    held_out: HeldOut = False,
    data: Data = None,
    untrained: Untrained = False,
    how: HowOptions,
) -> None:
    """Measure images against real ones: every metric with its interval, baseline and provenance.

    Interrupted and started again, it resumes. --set takes `evaluation.*`, `sampling.*` and `data.*`
    (docs/evaluation.md).
    """
    overrides = measure.overrides(
        evaluation__guidance_scales=scales,
        evaluation__held_out=held_out or None,
        sampling__guidance=form,
        data__source=data,
        evaluation__classifier="untrained" if untrained else None,
    )
    settings = checked_settings(overrides)
    if not is_model(what):
        _check_images(what, settings["data"])
    run_in_processes(how.processes)
    from sfumato.evaluation.evaluate import evaluate as evaluate_images

    with stoppable():
        card = evaluate_images(
            what,
            overrides=overrides,
            out=how.out,
            loading=how.given(),
            device=measure.device,
            log=log_wrapped,
            on_images=Progress(),
        )
    print_card(card)


def print_card(card: "Card") -> None:
    """The tables of an evaluation, and where its files are."""
    from sfumato.evaluation.tables import format_card

    if card.from_cache:
        log(f"From the cache, measured {card.date}; --out FOLDER measures again.")
    print_wide(lambda width: format_card(card, width=width))
    if card.folder is None:
        return
    for pictures in ("samples", "nearest"):
        if any(card.folder.glob(f"{pictures}-*.png")):
            log(f"{pictures.capitalize():<8}{card.folder / f'{pictures}-*.png'}")
    if (card.folder / "classes.png").is_file():
        log(f"Classes {card.folder / 'classes.png'}")
    log(f"Card    {card.folder / 'card.json'}")


def checked_settings(overrides: Sequence[str]) -> dict[str, Any]:
    """The default sections with `overrides`; mistakes are reported before a model is opened."""
    sections = {"data": DataConfig(), "sampling": Sampling(), "evaluation": EvaluationConfig()}
    return override(sections, overrides)


def _check_images(what: Path, data: DataConfig) -> None:
    if not what.exists():
        check_model(what)
    if not data.source:
        raise InputError(
            f"{what} does not say which real images it is to be compared with.",
            hint="Name them: --data FOLDER, --data OWNER/NAME or --data digits.",
        )


def data_of(model: "Model", source: str | None) -> DataConfig:
    """The model's data, or those of the source that is given."""
    from sfumato.evaluation.task import with_overrides

    overrides = [] if source is None else [f"data.source={json.dumps(source)}"]
    return with_overrides(model, overrides, log=log_wrapped)[1]
