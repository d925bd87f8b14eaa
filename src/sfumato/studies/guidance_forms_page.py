"""Forms of guidance as a table, a chart and a grid of the same image by every form and scale."""

from collections.abc import Mapping

from torch import Tensor

from sfumato.base.files import write_bytes, write_text
from sfumato.diffusion.guidance import parse_guidance
from sfumato.evaluation.metrics.registry import title_of
from sfumato.report.grids import labelled_grid
from sfumato.studies.guidance_forms import PLAIN, FormRow, FormsCard
from sfumato.studies.scale_charts import (
    Line,
    format_effect,
    format_estimate,
    how_sampled,
    real_rows,
    scale_panels,
)
from sfumato.studies.study import ACCURACY, DIVERSITY, FRECHET

PANELS = (ACCURACY, FRECHET, DIVERSITY, "saturated")
COLUMNS = (*PANELS, "brightness")
COLOURS = ("#222222", "#1f618d", "#b03a2e", "#2e7d32", "#b9770e", "#7d3c98", "#5d6d7e")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def write_forms(card: FormsCard, examples: Mapping[tuple[str, float], Tensor]) -> None:
    """`guidance.png`, `examples.png` and `guidance.md` into the card's folder.

    `examples`: the first images of each form and scale.
    """
    assert card.folder is not None
    write_bytes(card.folder / "guidance.png", chart(card))
    write_bytes(card.folder / "examples.png", _examples(card, examples))
    write_text(card.folder / "guidance.md", markdown(card))


def chart(card: FormsCard) -> bytes:
    """PNG: each of `PANELS` over w, a line for each form."""
    forms = list(dict.fromkeys(row.form for row in card.rows))
    lines = [
        Line(
            label="plain guidance" if form == PLAIN else parse_guidance(form).label,
            points={row.guidance_scale: row.metrics for row in card.rows if row.form == form},
            colour=COLOURS[place % len(COLOURS)],
            marker=_MARKERS[place % len(_MARKERS)],
        )
        for place, form in enumerate(forms)
    ]
    title = how_sampled(card.sampler, card.steps, card.config.count)
    return scale_panels(lines, card.real, PANELS, title=title)


def _examples(card: FormsCard, examples: Mapping[tuple[str, float], Tensor]) -> bytes:
    """The seeds of each form as rows, scales as columns; plain guidance's image stands where a
    form samples the same."""
    scales = list(card.config.guidance_scales)
    rows, names = [], []
    for form in dict.fromkeys(form for form, _ in examples):
        for example in range(len(examples[PLAIN, scales[0]])):
            rows.append([examples.get((form, w), examples[PLAIN, w])[example] for w in scales])
            names.append(parse_guidance(form).label if example == 0 else "")
    return labelled_grid(
        rows,
        row_labels=names,
        column_labels=[f"w = {scale:g}" for scale in scales],
        settings=[{"first_seed": card.config.first_seed}],
    )


def markdown(card: FormsCard) -> str:
    """Every row with its intervals, the choice, the claims, and how it came about."""
    lines = [
        f"{card.config.count:,} images of each form and scale, seeds from "
        f"{card.config.first_seed}; {card.sampler}, {card.steps} steps; classifier "
        f"{card.classifier.identity}; real: {card.reference_count:,} of {card.reference}.",
        "",
        "| form | w | NFE | "
        + " | ".join(title_of(key) for key in COLUMNS)
        + " | excess saturation / plain's | class accuracy less plain's |",
        "| --- |" + " ---: |" * (len(COLUMNS) + 4),
    ]
    for place, row in enumerate(card.rows):
        chosen = " **(chosen)**" if place == card.choice else ""
        cells = [format_estimate(key, row.metrics.get(key)) for key in COLUMNS]
        lines.append(
            f"| {row.label}{chosen} | {row.guidance_scale:g} | {row.nfe} | {' | '.join(cells)} "
            f"| {format_burnt(row)} | {format_estimate(ACCURACY, row.accuracy_change)} |"
        )
    rows = real_rows(card, COLUMNS, format_of=format_estimate, before=2, after=2)
    lines += [f"| {' | '.join(row)} |" for row in rows]
    lines.append("")
    if card.claims:
        lines += ["| claim | verdict | effect | because |", "| --- | --- | --- | --- |"]
        for claim in card.claims:
            effects = "; ".join(format_effect(effect) for effect in claim.effects)
            lines.append(f"| {claim.claim} | **{claim.verdict}** | {effects} | {claim.sentence} |")
        lines += ["", card.rule, ""]
    made = card.hardware
    lines.append(
        f"Weights sha256 {card.model['weights_sha256'][:16]}, "
        f"{card.model.get('images_seen', 0):,} images seen; w by {card.convention}; sfumato "
        f"{card.sfumato}, torch {made['torch']}, {card.date}."
    )
    return "\n".join([*lines, ""])


def format_burnt(row: FormRow) -> str:
    """`0.43 (0.30, 0.55)`; empty for plain guidance and where that has no excess."""
    if row.burnt is None:
        return ""
    return f"{row.burnt.value:.2f} ({row.burnt.low:.2f}, {row.burnt.high:.2f})"
