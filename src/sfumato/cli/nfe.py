"""`sfumato nfe`."""

from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.base.progress import Progress
from sfumato.cli.checks import checked_model, checked_samplers
from sfumato.cli.evaluate import data_of
from sfumato.cli.options import (
    SAMPLER_HELP,
    Data,
    Evaluations,
    Form,
    Guidance,
    ModelPath,
    StudyOptions,
    stoppable,
)
from sfumato.cli.show import (
    beside,
    log,
    log_where_from,
    log_wrapped,
    new_table,
    open_model,
    print_table,
)

if TYPE_CHECKING:
    from sfumato.studies.nfe_curve import NfeCard

SHOWN = {"class_accuracy": "accuracy", "frechet.classifier": "Frechet"}
"""Columns of the table: metrics by their key."""


def _models(paths: list[str] | None) -> list[str]:
    return [checked_model(path) for path in paths or []]


def nfe(
    model: ModelPath,
    students: Annotated[
        list[str] | None,
        typer.Argument(callback=_models, help="Students of `sfumato distil`.", show_default=False),
    ] = None,
    *,
    evaluations: Evaluations = "1,2,4,6,8,10,20,50",
    samplers: Annotated[
        list[str] | None,
        typer.Option(
            "--sampler", callback=checked_samplers, help=f"{SAMPLER_HELP} May be repeated."
        ),
    ] = None,
    guidance: Guidance = None,
    form: Form = None,
    study: StudyOptions,
    data: Data = None,
) -> None:
    """Quality over network evaluations: what each call of the network buys.

    Samplers and students draw the same seeds and captions. Interrupted and started again, it
    resumes.
    """
    from sfumato.studies.nfe_curve import NfeConfig, measure_nfe, usual_samplers

    teacher = open_model(model, study.device, student=False, guidance=guidance, form=form)
    chosen = samplers or usual_samplers(teacher)
    config = study.config(NfeConfig, nfe=evaluations, samplers=tuple(chosen))
    others = {path: open_model(path, study.device) for path in students or []}
    with stoppable():
        card = measure_nfe(
            teacher,
            others,
            config,
            base=study.out or beside(model, "nfe"),
            data=data_of(teacher, data),
            log=log,
            on_images=Progress(),
        )
    print_nfe(card)


def print_nfe(card: "NfeCard") -> None:
    from sfumato.studies.charts import format_estimate, format_value, real_rows
    from sfumato.studies.nfe_curve import lines_of

    log_where_from(card.from_cache, card.date)
    table = new_table(["sampler", "NFE", "steps", *SHOWN.values()], left=(0,), padding=(0, 2, 0, 0))
    for name, points in lines_of(card).items():
        for point in points:
            cells = [format_estimate(key, point.metrics.get(key)) for key in SHOWN]
            table.add_row(name, f"{point.nfe}", f"{point.steps}", *cells)
    for row in real_rows(card, list(SHOWN), format_of=format_value, before=2):
        table.add_row(*row)
    print_table(table)
    log("")
    log_wrapped(
        f"{card.config.count:,} images of each setting, the same seeds and captions, "
        f"{card.how}; in brackets 95 % intervals."
    )
    if below := _without_row(card):
        log_wrapped(
            f"No sampler has a row at {', '.join(map(str, below))}: guidance asks the network "
            "twice in a step."
        )
    log(f"\nCurve   {card.folder}")


def _without_row(card: "NfeCard") -> list[int]:
    """The numbers of evaluations asked for that are fewer than one step of any sampler takes."""
    fewest = min(point.nfe for point in card.points if not point.student)
    return [number for number in sorted(set(card.config.nfe)) if number < fewest]
