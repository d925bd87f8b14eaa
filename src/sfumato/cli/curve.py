"""`sfumato curve`."""

from pathlib import Path
from typing import TYPE_CHECKING

from sfumato.base.progress import Progress
from sfumato.cli.evaluate import with_data
from sfumato.cli.options import Data, ModelPath, SamplingOptions, StudyOptions, stoppable
from sfumato.cli.show import (
    log,
    log_where_from,
    log_wrapped,
    new_table,
    open_model,
    print_table,
)

if TYPE_CHECKING:
    from sfumato.studies.training_curve import CurveCard

SHOWN = {"agreement": "accuracy", "frechet": "Fréchet", "diversity": "diversity"}
"""Columns of the table: metrics by their key."""


def curve(
    run: ModelPath, *, sampling: SamplingOptions, study: StudyOptions, data: Data = None
) -> None:
    """Quality over training: class accuracy, distance and diversity of every kept checkpoint.

    All sample the same seeds and captions. Interrupted and started again, it resumes.
    """
    from sfumato.studies.training_curve import CurveConfig, measure_curve
    from sfumato.studies.training_curve_page import write_curve

    config = study.config(CurveConfig)
    model = open_model(run, study.device, **sampling.changes())
    model = with_data(model, Path(run), data)
    base = study.out or Path(run) / "curve"
    with stoppable():
        found = measure_curve(
            model, config, base=base, say=log, on_calls=Progress().of("network evaluations")
        )
    log_where_from(found.before, found.card.date)
    if not found.before:
        write_curve(found)
    print_curve(found.card)
    log(f"\nCurve   {found.folder}")


def print_curve(card: "CurveCard") -> None:
    from sfumato.studies.scale_charts import figure_told, real_rows, value_told

    table = new_table(["images seen", *SHOWN.values()], left=(), padding=(0, 2, 0, 0))
    for point in card.points:
        cells = [figure_told(name, point.figures.get(name)) for name in SHOWN]
        table.add_row(f"{point.images_seen:,}", *(cell.replace(" (", "\n(") for cell in cells))
    for row in real_rows(card, list(SHOWN), told=value_told):
        table.add_row(*row)
    print_table(table)
    log("")
    log_wrapped(
        f"{card.config.count:,} images of each checkpoint, the same seeds and captions, "
        f"{card.guidance} at w = {card.guidance_scale:g}, {card.scheduler} in {card.steps} steps; "
        "in brackets 95 % intervals. Kept are the newest (training.keep_checkpoints) and those of "
        "training.checkpoint_epochs."
    )
