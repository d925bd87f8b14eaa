"""`sfumato curve`."""

from pathlib import Path
from typing import TYPE_CHECKING

from sfumato.base.progress import Progress
from sfumato.cli.evaluate import data_of
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

SHOWN = {
    "class_accuracy": "accuracy",
    "frechet.classifier": "Frechet",
    "diversity.classifier": "diversity",
}
"""Columns of the table: metrics by their key."""


def curve(
    run: ModelPath, *, sampling: SamplingOptions, study: StudyOptions, data: Data = None
) -> None:
    """Quality over training: class accuracy, distance and diversity of every kept checkpoint.

    All sample the same seeds and captions. Interrupted and started again, it resumes.
    """
    from sfumato.studies.training_curve import CurveConfig, measure_curve

    config = study.config(CurveConfig)
    model = open_model(run, study.device, **sampling.changes())
    with stoppable():
        card = measure_curve(
            model,
            config,
            base=study.out or Path(run) / "curve",
            data=data_of(model, data),
            log=log,
            on_images=Progress(),
        )
    log_where_from(card.from_cache, card.date)
    print_curve(card)
    log(f"\nCurve   {card.folder}")


def print_curve(card: "CurveCard") -> None:
    from sfumato.studies.charts import format_estimate, format_value, real_rows

    table = new_table(["images seen", *SHOWN.values()], left=(), padding=(0, 2, 0, 0))
    for point in card.points:
        cells = [format_estimate(key, point.metrics.get(key)) for key in SHOWN]
        table.add_row(f"{point.images_seen:,}", *(cell.replace(" (", "\n(") for cell in cells))
    for row in real_rows(card, list(SHOWN), format_of=format_value):
        table.add_row(*row)
    print_table(table)
    log("")
    log_wrapped(
        f"{card.config.count:,} images of each checkpoint, the same seeds and captions, "
        f"{card.guidance} at w = {card.guidance_scale:g}, {card.sampler} in {card.steps} steps; "
        "in brackets 95 % intervals. Kept are the newest (training.keep_checkpoints) and those of "
        "training.checkpoint_epochs."
    )
