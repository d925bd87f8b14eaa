"""The findings as pictures and tables: noise over w, one image of each class, Markdown."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from sfumato.base.files import write_bytes, write_text
from sfumato.evaluation.metrics.registry import title_of
from sfumato.paper.findings import ArmMetrics, Findings
from sfumato.report.grids import labelled_grid
from sfumato.report.page import loss_curve
from sfumato.studies.scale_charts import (
    Line,
    format_effect,
    format_estimate,
    how_sampled,
    scale_panels,
)
from sfumato.studies.study import ACCURACY, DIVERSITY, OF_PIXELS
from sfumato.training.records import read_records

PANELS = (
    "border_rms",
    "border_deviation",
    ACCURACY,
    "edge_rms",
    "high_frequency",
    DIVERSITY,
)
COLUMNS = (*OF_PIXELS, ACCURACY, f"{ACCURACY}.4 and 5", f"{ACCURACY}.others", DIVERSITY)
COLOURS = {
    "without": "#b03a2e",
    "clipped": "#d98880",
    "stretched": "#7d6608",
    "early": "#f0a868",
    "with": "#1f618d",
}
_MARKERS = {"without": "o", "clipped": "v", "stretched": "^", "early": "D", "with": "s"}


def write_findings(findings: Findings, examples: Mapping[str, Tensor], run: Path) -> None:
    """`findings.png`, `examples.png`, `loss.png` and `findings.md` into the findings' folder.

    `examples`: one image of each class for each row of the grid.
    """
    assert findings.folder is not None
    records = read_records(run / "metrics.jsonl")
    written = {
        "findings.png": noise_figure(findings),
        "examples.png": _examples(findings, examples),
        **({"loss.png": loss_curve(records)} if records else {}),
    }
    for name, png in written.items():
        write_bytes(findings.folder / name, png)
    write_text(findings.folder / "findings.md", markdown(findings))


def noise_figure(findings: Findings) -> bytes:
    """PNG: each of `PANELS` over w for every arm, with 95 % intervals; real images as a band."""
    lines = [
        Line(
            label=arm.title,
            points={
                one.guidance_scale: {name: one.metrics[name] for name in PANELS}
                for one in arm.scales
            },
            colour=COLOURS[arm.key],
            marker=_MARKERS[arm.key],
            main=arm.key in ("without", "with"),
        )
        for arm in findings.arms
    ]
    first, config = findings.arms[0].settings, findings.config
    title = how_sampled(first["sampler"], first["steps"], config.count)
    return scale_panels(lines, findings.real, PANELS, title=title)


def _examples(findings: Findings, examples: Mapping[str, Tensor]) -> bytes:
    """One image of each class in each row; the seeds are the same in all but the real ones."""
    classes = min(len(images) for images in examples.values())
    return labelled_grid(
        [images[:classes] for images in examples.values()],
        row_labels=list(examples),
        column_labels=[""] * classes,
        settings=[{"seeds": findings.seeds}],
    )


def markdown(findings: Findings) -> str:
    """The verdicts and every figure with its interval, as two tables."""
    lines = [
        "# The paper's findings on MNIST, tested",
        "",
        f"{findings.config.count:,} images of each model and scale, seeds {findings.seeds[0]} to "
        f"{findings.seeds[1]} in all; real: {findings.real_count:,} of {findings.reference}. "
        f"Classifier: {findings.classifier.identity}. {findings.rule}",
        "",
        "| claim | verdict | effect | because | figure |",
        "| --- | --- | --- | --- | --- |",
    ]
    for claim in findings.claims:
        effects = "; ".join(format_effect(effect) for effect in claim.effects)
        lines.append(
            f"| {claim.claim} | **{claim.verdict}** | {effects} | {claim.sentence} "
            f"| {claim.figure} |"
        )
    keys = [key for key in COLUMNS if key in findings.real]
    lines += [
        "",
        "| images | w | NFE | " + " | ".join(title_of(key) for key in keys) + " |",
        "| --- | --- | --- |" + " --- |" * len(keys),
    ]
    for arm in findings.arms:
        lines += _arm_rows(arm, keys)
    cells = [format_estimate(key, findings.real.get(key)) for key in keys]
    lines.append(f"| real | | | {' | '.join(cells)} |")
    lines += ["", *(f"- {note}" for note in findings.notes)]
    if findings.also_differ:
        lines.append(f"- The two runs also differ in: {'; '.join(findings.also_differ)}.")
    for arm in findings.arms:
        how = arm.settings
        model = how["model"]
        lines.append(
            f"- {arm.title}: {how['sampler']}, {how['steps']} steps, guidance {how['guidance']}, "
            f"{model['images_seen']:,} images seen, weights sha256 {model['weights_sha256'][:16]}."
        )
    made = findings.hardware
    lines += [f"- sfumato {findings.sfumato}, torch {made['torch']}, {findings.date}.", ""]
    return "\n".join(lines)


def _arm_rows(arm: ArmMetrics, keys: Sequence[str]) -> list[str]:
    return [
        f"| {arm.title} | {one.guidance_scale:g} | {one.nfe} | "
        + " | ".join(format_estimate(key, one.metrics.get(key)) for key in keys)
        + " |"
        for one in arm.scales
    ]
