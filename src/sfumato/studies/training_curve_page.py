"""A curve over training as a chart, a table, and the same images by every checkpoint."""

from pathlib import Path

from sfumato.base.files import write_bytes, write_text
from sfumato.evaluation.arms import MEASURES
from sfumato.generation.model import Picture
from sfumato.report.grids import labelled_grid
from sfumato.studies.scale_charts import Line, figure_told, how_drawn, real_rows, scale_panels
from sfumato.studies.training_curve import FILE_NAME, CurveCard, CurveFound

PANELS = ("agreement", "frechet", "diversity", "saturated")


def write_curve(found: CurveFound) -> list[Path]:
    """`curve.png`, `examples.png`, `curve.md`, and at last `curve.json`."""
    write_bytes(found.folder / "curve.png", chart(found.card))
    write_bytes(found.folder / "examples.png", _examples(found))
    write_text(found.folder / "curve.md", markdown(found.card))
    found.save()
    return [found.folder / name for name in ("curve.png", "examples.png", "curve.md", FILE_NAME)]


def chart(card: CurveCard) -> bytes:
    """PNG: each of `PANELS` over the images seen."""
    line = Line(
        label=f"{card.guidance} at w = {card.guidance_scale:g}",
        points={point.images_seen: point.figures for point in card.points},
        colour="#1f618d",
    )
    title = how_drawn(card.scheduler, card.steps, card.config.count)
    return scale_panels([line], card.real, PANELS, title=title, over="images seen", to_scale=True)


def _examples(found: CurveFound) -> bytes:
    """The first image of each class as columns, checkpoints as rows."""
    first = found.card.config.first_seed
    rows = [
        [Picture(image=image, settings={"first_seed": first}) for image in images]
        for images in found.images
    ]
    return labelled_grid(
        rows,
        row_labels=[f"{point.images_seen:,}" for point in found.card.points],
        column_labels=found.card.shown,
    )


def markdown(card: CurveCard) -> str:
    """Every point with its intervals, what real images score, and how it came about."""
    lines = [
        f"{card.config.count:,} images of each checkpoint, seeds from {card.config.first_seed}, "
        f"{card.guidance} at w = {card.guidance_scale:g}; {card.scheduler}, {card.steps} steps; "
        f"judge {card.judge.identity}; real: {card.reference_count:,} of {card.reference}.",
        "",
        "| images seen | " + " | ".join(MEASURES[name].title for name in PANELS) + " |",
        "| ---: |" + " ---: |" * len(PANELS),
    ]
    for point in card.points:
        cells = [figure_told(name, point.figures.get(name)) for name in PANELS]
        lines.append(f"| {point.images_seen:,} | {' | '.join(cells)} |")
    rows = real_rows(card, PANELS, told=figure_told)
    lines += [f"| {' | '.join(row)} |" for row in rows]
    made = card.hardware
    lines += [
        "",
        f"w by {card.convention}; sfumato {card.sfumato}, torch {made['torch']}, {card.date}.",
    ]
    return "\n".join([*lines, ""])
