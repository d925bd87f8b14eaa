"""The findings as pictures and tables: noise over w, one image of each class, Markdown."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sfumato.evaluation.metrics.registry import title_of
from sfumato.report.grids import labelled_grid
from sfumato.report.page import loss_curve, markdown_table
from sfumato.studies.charts import Line, claims_table, format_estimate, scale_panels, study_text
from sfumato.studies.study import ACCURACY, DIVERSITY, OF_PIXELS

if TYPE_CHECKING:
    from sfumato.paper.findings import Findings, VariantMetrics

PANELS = (
    "border_rms",
    "border_deviation",
    ACCURACY,
    "edge_rms",
    "high_frequency",
    DIVERSITY,
)
COLUMNS = (*OF_PIXELS, ACCURACY, f"{ACCURACY}.4 and 5", f"{ACCURACY}.others", DIVERSITY)
_STYLES = {
    "without": ("#b03a2e", "o"),
    "clipped": ("#d98880", "v"),
    "stretched": ("#7d6608", "^"),
    "early": ("#f0a868", "D"),
    "with": ("#1f618d", "s"),
}
"""Colour and marker of each variant."""


def write_findings(
    findings: "Findings", examples: Mapping[str, Tensor], losses: list[dict[str, Any]]
) -> None:
    """Findings, their text, and findings.png, examples.png and loss.png.

    `examples`: one image of each class for each row of the grid; `losses`: records of the run's
    metrics.jsonl.
    """
    pictures = {
        "findings": noise_figure(findings),
        "examples": _examples(findings, examples),
        **({"loss": loss_curve(losses)} if losses else {}),
    }
    findings.write(markdown(findings), pictures)


def noise_figure(findings: "Findings") -> bytes:
    """PNG: each of `PANELS` over w for every variant, with 95 % intervals; real images as a
    band."""
    lines = [
        Line(
            label=variant.title,
            points={one.guidance_scale: one.metrics for one in variant.scales},
            colour=_STYLES[variant.key][0],
            marker=_STYLES[variant.key][1],
            main=variant.key in ("without", "with"),
        )
        for variant in findings.variants
    ]
    return scale_panels(lines, findings, PANELS, count=findings.config.count)


def _examples(findings: "Findings", examples: Mapping[str, Tensor]) -> bytes:
    """One image of each class in each row; the seeds are the same in all but the real ones."""
    classes = min(len(images) for images in examples.values())
    return labelled_grid(
        [images[:classes] for images in examples.values()],
        row_labels=list(examples),
        column_labels=[""] * classes,
        settings=[{"seeds": findings.seeds}],
    )


def markdown(findings: "Findings") -> str:
    """The verdicts and every metric with its interval, as two tables."""
    first, last = findings.seeds
    sampled = (
        f"{findings.config.count:,} images of each model and scale, seeds {first} to {last} in all"
    )
    keys = [key for key in COLUMNS if key in findings.real]
    rows = [row for variant in findings.variants for row in _rows(variant, keys)]
    rows.append(["real", "", "", *(format_estimate(key, findings.real[key]) for key in keys)])
    notes = [f"{findings.real_count:,} of the real images have metrics here.", *findings.notes]
    if findings.also_differ:
        notes.append(f"The two runs also differ in: {'; '.join(findings.also_differ)}.")
    notes += map(_how, findings.variants)
    text = study_text(
        findings,
        sampled,
        findings.rule,
        claims_table(findings.claims),
        markdown_table(["images", "w", "NFE", *map(title_of, keys)], rows, left=2),
        "\n".join(f"- {note}" for note in notes),
    )
    return f"# The paper's findings on MNIST, tested\n\n{text}"


def _rows(variant: "VariantMetrics", keys: Sequence[str]) -> list[list[str]]:
    return [
        [
            variant.title,
            f"{one.guidance_scale:g}",
            str(one.nfe),
            *(format_estimate(key, one.metrics.get(key)) for key in keys),
        ]
        for one in variant.scales
    ]


def _how(variant: "VariantMetrics") -> str:
    how = variant.settings
    model = how["model"]
    return (
        f"{variant.title}: {how['sampler']}, {how['steps']} steps, guidance {how['guidance']}, "
        f"{model['images_seen']:,} images seen, weights sha256 {model['weights_sha256'][:16]}."
    )
