"""The findings as pictures and tables: noise over w, one image of each class, Markdown."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sfumato.base.files import write_bytes, write_text
from sfumato.evaluation.arms import MEASURES, ArmFigures
from sfumato.evaluation.card import Figure
from sfumato.evaluation.findings import FILE_NAME, Findings, Found
from sfumato.evaluation.verdicts import Effect
from sfumato.generation import Picture
from sfumato.report.page import loss_curve
from sfumato.report.pictures import labelled_grid
from sfumato.training.tracking import read_records

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = ("border_rms", "edge_rms", "high_frequency", "diversity")
COLOURS = {
    "without": "#b03a2e",
    "clipped": "#d98880",
    "stretched": "#7d6608",
    "early": "#f0a868",
    "with": "#1f618d",
}
_MARKERS = {"without": "o", "clipped": "v", "stretched": "^", "early": "D", "with": "s"}


def write_findings(found: Found, run: Path) -> list[Path]:
    """`findings.png`, `examples.png`, `loss.png`, `findings.md`, and at last `findings.json`."""
    records = read_records(run / "metrics.jsonl")
    written = {
        "findings.png": noise_figure(found.findings),
        "examples.png": _examples(found),
        **({"loss.png": loss_curve(records)} if records else {}),
    }
    for name, png in written.items():
        write_bytes(found.folder / name, png)
    write_text(found.folder / "findings.md", markdown(found.findings))
    found.save()
    return [found.folder / name for name in (*written, "findings.md", FILE_NAME)]


def noise_figure(findings: Findings) -> bytes:
    """PNG: each of `PANELS` over w for every arm, with 95 % intervals; real images as a band."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(11, 7.4), dpi=130, layout="constrained")
    panels = canvas.subplots(2, 2).flatten()
    scales = sorted({one.guidance_scale for arm in findings.arms for one in arm.scales})
    for axes, measure in zip(panels, PANELS, strict=True):
        _panel(axes, findings, measure, scales)
    handles, labels = panels[0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png")
    return buffer.getvalue()


def _panel(axes: "Axes", findings: Findings, measure: str, scales: Sequence[float]) -> None:
    """Scales stand side by side: 0, 1, 2 would lie on each other beside 20."""
    real = findings.real[measure]
    factor = MEASURES[measure].factor
    axes.axhline(factor * real.value, color="#555555", lw=1, ls="--", label="real test images")
    if real.low is not None and real.high is not None:
        axes.axhspan(factor * real.low, factor * real.high, color="#999999", alpha=0.35, lw=0)
    shift = 0.09
    for place, arm in enumerate(findings.arms):
        x = [
            scales.index(one.guidance_scale) + shift * (place - (len(findings.arms) - 1) / 2)
            for one in arm.scales
        ]
        y = [one.figures[measure] for one in arm.scales]
        axes.errorbar(
            x,
            [factor * one.value for one in y],
            yerr=[
                [factor * (one.value - _or(one.low, one.value)) for one in y],
                [factor * (_or(one.high, one.value) - one.value) for one in y],
            ],
            color=COLOURS[arm.key],
            marker=_MARKERS[arm.key],
            ms=4.5,
            lw=1.3 if arm.key in ("without", "with") else 0.8,
            ls="-" if arm.key in ("without", "with") else ":",
            capsize=2.5,
            label=arm.title,
        )
    axes.set_xticks(range(len(scales)), [f"{scale:g}" for scale in scales])
    axes.set_xlabel("guidance scale w")
    axes.set_title(MEASURES[measure].title, fontsize=10)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _or(value: float | None, other: float) -> float:
    return other if value is None else value


def _examples(found: Found) -> bytes:
    """One image of each class in each row; the seeds are the same in all but the real ones."""
    classes = min(len(images) for images in found.rows.values())
    return labelled_grid(
        [
            [Picture(image=image, settings={"seeds": found.findings.seeds}) for image in images]
            for images in (rows[:classes] for rows in found.rows.values())
        ],
        row_labels=list(found.rows),
        column_labels=[""] * classes,
    )


def markdown(findings: Findings) -> str:
    """The verdicts and every figure with its interval, as two tables."""
    lines = [
        "# The paper's findings on MNIST, tested",
        "",
        f"{findings.config.count:,} images of each model and scale, seeds {findings.seeds[0]} to "
        f"{findings.seeds[1]} in all; real: {findings.real_count:,} of {findings.reference}. "
        f"Judge: {findings.judge.identity}. {findings.rule}",
        "",
        "| claim | verdict | effect | because | figure |",
        "| --- | --- | --- | --- | --- |",
    ]
    for claim in findings.claims:
        effects = "; ".join(effect_told(effect) for effect in claim.effects)
        lines.append(
            f"| {claim.claim} | **{claim.verdict}** | {effects} | {claim.sentence} "
            f"| {claim.figure} |"
        )
    names = [name for name in MEASURES if name in findings.real]
    lines += [
        "",
        "| images | w | calls | " + " | ".join(MEASURES[name].title for name in names) + " |",
        "| --- | --- | --- |" + " --- |" * len(names),
    ]
    for arm in findings.arms:
        lines += _arm_rows(arm, names)
    cells = [figure_told(name, findings.real.get(name)) for name in names]
    lines.append(f"| real | | | {' | '.join(cells)} |")
    lines += ["", *(f"- {note}" for note in findings.notes)]
    if findings.also_differ:
        lines.append(f"- The two runs also differ in: {'; '.join(findings.also_differ)}.")
    for arm in findings.arms:
        how = arm.settings
        model = how["model"]
        lines.append(
            f"- {arm.title}: {how['scheduler']}, {how['steps']} steps, guidance {how['guidance']}, "
            f"{model['images_seen']:,} images seen, weights sha256 {model['weights_sha256'][:16]}."
        )
    made = findings.hardware
    lines += [f"- sfumato {findings.sfumato}, torch {made['torch']}, {findings.date}.", ""]
    return "\n".join(lines)


def _arm_rows(arm: ArmFigures, names: Sequence[str]) -> list[str]:
    return [
        f"| {arm.title} | {one.guidance_scale:g} | {one.calls} | "
        + " | ".join(figure_told(name, one.figures.get(name)) for name in names)
        + " |"
        for one in arm.scales
    ]


def figure_told(measure: str, found: Figure | None) -> str:
    """A value with its interval in brackets, in the measure's unit."""
    if found is None:
        return ""
    of = MEASURES[measure]
    text = of.told(found.value)
    if found.low is None or found.high is None:
        return text
    return f"{text} ({of.told(found.low)}, {of.told(found.high)})"


def effect_told(effect: Effect) -> str:
    """What it is, how large with its interval, and what would matter."""
    of = MEASURES[effect.measure]
    return (
        f"{effect.what}: {of.told(effect.value)} ({of.told(effect.low)}, {of.told(effect.high)}), "
        f"margin {of.told(effect.margin)}"
    )
