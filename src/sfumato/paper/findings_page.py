"""The findings as pictures and tables: noise over w, one image of each class, Markdown."""

from collections.abc import Sequence
from pathlib import Path

from sfumato.base.files import write_bytes, write_text
from sfumato.evaluation.arms import MEASURES, ArmFigures
from sfumato.generation.model import Picture
from sfumato.paper.findings import FILE_NAME, Findings, Found
from sfumato.report.grids import labelled_grid
from sfumato.report.page import loss_curve
from sfumato.studies.scale_charts import Line, effect_told, figure_told, how_drawn, scale_panels
from sfumato.training.records import read_records

PANELS = (
    "border_rms",
    "border_deviation",
    "agreement",
    "edge_rms",
    "high_frequency",
    "diversity",
)
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
    lines = [
        Line(
            label=arm.title,
            points={
                one.guidance_scale: {name: one.figures[name] for name in PANELS}
                for one in arm.scales
            },
            colour=COLOURS[arm.key],
            marker=_MARKERS[arm.key],
            main=arm.key in ("without", "with"),
        )
        for arm in findings.arms
    ]
    first, config = findings.arms[0].settings, findings.config
    title = how_drawn(first["scheduler"], first["steps"], config.count)
    return scale_panels(lines, findings.real, PANELS, title=title)


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
