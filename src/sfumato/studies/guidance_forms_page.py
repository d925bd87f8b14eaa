"""Forms of guidance as a table, a chart and a grid of the same image by every form and scale."""

from pathlib import Path

from sfumato.base.files import write_bytes, write_text
from sfumato.evaluation.arms import MEASURES
from sfumato.generation.model import Picture
from sfumato.report.grids import labelled_grid
from sfumato.studies.guidance_forms import FILE_NAME, FormRow, FormsCard, FormsFound
from sfumato.studies.scale_charts import (
    Line,
    effect_told,
    figure_told,
    how_drawn,
    real_rows,
    scale_panels,
)

PANELS = ("agreement", "frechet", "diversity", "saturated")
COLUMNS = ("agreement", "frechet", "diversity", "saturated", "brightness")
COLOURS = ("#222222", "#1f618d", "#b03a2e", "#2e7d32", "#b9770e", "#7d3c98", "#5d6d7e")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_EXAMPLES = 2


def write_forms(found: FormsFound) -> list[Path]:
    """`guidance.png`, `examples.png`, `guidance.md`, and at last `guidance.json`."""
    write_bytes(found.folder / "guidance.png", chart(found.card))
    write_bytes(found.folder / "examples.png", _examples(found))
    write_text(found.folder / "guidance.md", markdown(found.card))
    found.save()
    names = ("guidance.png", "examples.png", "guidance.md", FILE_NAME)
    return [found.folder / name for name in names]


def chart(card: FormsCard) -> bytes:
    """PNG: each of `PANELS` over w, a line for each form."""
    labels = list(dict.fromkeys(row.label for row in card.rows))
    lines = [
        Line(
            label="plain guidance" if label == "cfg" else label,
            points={row.guidance_scale: row.figures for row in card.rows if row.label == label},
            colour=COLOURS[place % len(COLOURS)],
            marker=_MARKERS[place % len(_MARKERS)],
        )
        for place, label in enumerate(labels)
    ]
    title = how_drawn(card.scheduler, card.steps, card.config.count)
    return scale_panels(lines, card.real, PANELS, title=title)


def _examples(found: FormsFound) -> bytes:
    """Two seeds of each form as rows, scales as columns; plain guidance's image stands where a
    form draws the same."""
    card = found.card
    scales = list(card.config.guidance_scales)
    labels = list(dict.fromkeys(row.label for row in card.rows))
    by_place = {
        (row.label, row.guidance_scale): images
        for row, images in zip(card.rows, found.images, strict=True)
    }
    plain = labels[0]
    rows, names = [], []
    for label in labels:
        for example in range(_EXAMPLES):
            rows.append(
                [
                    Picture(
                        image=by_place.get((label, scale), by_place[plain, scale])[example],
                        settings={"first_seed": card.config.first_seed},
                    )
                    for scale in scales
                ]
            )
            names.append(label if example == 0 else "")
    return labelled_grid(
        rows, row_labels=names, column_labels=[f"w = {scale:g}" for scale in scales]
    )


def markdown(card: FormsCard) -> str:
    """Every row with its intervals, the choice, the claims, and how it came about."""
    lines = [
        f"{card.config.count:,} images of each form and scale, seeds from "
        f"{card.config.first_seed}; {card.scheduler}, {card.steps} steps; judge "
        f"{card.judge.identity}; real: {card.reference_count:,} of {card.reference}.",
        "",
        "| form | w | calls | "
        + " | ".join(MEASURES[name].title for name in COLUMNS)
        + " | excess saturation / plain's | agreement less plain's |",
        "| --- |" + " ---: |" * (len(COLUMNS) + 4),
    ]
    for place, row in enumerate(card.rows):
        chosen = " **(chosen)**" if place == card.choice else ""
        cells = [figure_told(name, row.figures.get(name)) for name in COLUMNS]
        lines.append(
            f"| {row.label}{chosen} | {row.guidance_scale:g} | {row.calls} | {' | '.join(cells)} "
            f"| {burnt_told(row)} | {figure_told('agreement', row.agreement_change)} |"
        )
    rows = real_rows(card, COLUMNS, told=figure_told, before=2, after=2)
    lines += [f"| {' | '.join(row)} |" for row in rows]
    lines.append("")
    if card.claims:
        lines += ["| claim | verdict | effect | because |", "| --- | --- | --- | --- |"]
        for claim in card.claims:
            effects = "; ".join(effect_told(effect) for effect in claim.effects)
            lines.append(f"| {claim.claim} | **{claim.verdict}** | {effects} | {claim.sentence} |")
        lines += ["", card.rule, ""]
    made = card.hardware
    lines.append(
        f"Weights sha256 {card.model['weights_sha256'][:16]}, "
        f"{card.model.get('images_seen', 0):,} images seen; w by {card.convention}; sfumato "
        f"{card.sfumato}, torch {made['torch']}, {card.date}."
    )
    return "\n".join([*lines, ""])


def burnt_told(row: FormRow) -> str:
    """`0.43 (0.30, 0.55)`; empty for plain guidance and where that has no excess."""
    if row.burnt is None:
        return ""
    return f"{row.burnt.value:.2f} ({row.burnt.low:.2f}, {row.burnt.high:.2f})"
