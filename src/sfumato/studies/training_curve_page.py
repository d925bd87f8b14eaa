"""A curve over training as a chart, a table, and the same images by every checkpoint."""

from collections.abc import Sequence

from torch import Tensor

from sfumato.base.files import write_bytes, write_text
from sfumato.evaluation.metrics.registry import title_of
from sfumato.report.grids import labelled_grid
from sfumato.studies.scale_charts import (
    Line,
    format_estimate,
    how_sampled,
    real_rows,
    scale_panels,
)
from sfumato.studies.study import ACCURACY, DIVERSITY, FRECHET
from sfumato.studies.training_curve import CurveCard

PANELS = (ACCURACY, FRECHET, DIVERSITY, "saturated")


def write_curve(card: CurveCard, examples: Sequence[Tensor]) -> None:
    """`curve.png`, `examples.png` and `curve.md` into the card's folder.

    `examples`: of each checkpoint, the first image of each class that is shown.
    """
    assert card.folder is not None
    write_bytes(card.folder / "curve.png", chart(card))
    grid = labelled_grid(
        [list(images) for images in examples],
        row_labels=[f"{point.images_seen:,}" for point in card.points],
        column_labels=card.shown,
        settings=[{"first_seed": card.config.first_seed}],
    )
    write_bytes(card.folder / "examples.png", grid)
    write_text(card.folder / "curve.md", markdown(card))


def chart(card: CurveCard) -> bytes:
    """PNG: each of `PANELS` over the images seen."""
    line = Line(
        label=f"{card.guidance} at w = {card.guidance_scale:g}",
        points={point.images_seen: point.metrics for point in card.points},
        colour="#1f618d",
    )
    title = how_sampled(card.sampler, card.steps, card.config.count)
    return scale_panels([line], card.real, PANELS, title=title, over="images seen", to_scale=True)


def markdown(card: CurveCard) -> str:
    """Every point with its intervals, what real images score, and how it came about."""
    lines = [
        f"{card.config.count:,} images of each checkpoint, seeds from {card.config.first_seed}, "
        f"{card.guidance} at w = {card.guidance_scale:g}; {card.sampler}, {card.steps} steps; "
        f"classifier {card.classifier.identity}; real: {card.reference_count:,} of "
        f"{card.reference}.",
        "",
        "| images seen | " + " | ".join(title_of(key) for key in PANELS) + " |",
        "| ---: |" + " ---: |" * len(PANELS),
    ]
    for point in card.points:
        cells = [format_estimate(key, point.metrics.get(key)) for key in PANELS]
        lines.append(f"| {point.images_seen:,} | {' | '.join(cells)} |")
    rows = real_rows(card, PANELS, format_of=format_estimate)
    lines += [f"| {' | '.join(row)} |" for row in rows]
    made = card.hardware
    lines += [
        "",
        f"w by {card.convention}; sfumato {card.sfumato}, torch {made['torch']}, {card.date}.",
    ]
    return "\n".join([*lines, ""])
