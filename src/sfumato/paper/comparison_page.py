"""The comparison as one page: one table, verdicts, curves over core-seconds, images."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from sfumato.evaluation.metrics.registry import title_of
from sfumato.report.grids import labelled_grid
from sfumato.report.page import markdown_table
from sfumato.studies.charts import Line, claims_table, format_estimate, real_rows, scale_panels
from sfumato.studies.study import ACCURACY, DIVERSITY, FRECHET

if TYPE_CHECKING:
    from sfumato.paper.comparison import Comparison, ModelMetrics

COLUMNS = (
    FRECHET,
    "precision.classifier",
    "recall.classifier",
    "density.classifier",
    "coverage.classifier",
    ACCURACY,
    DIVERSITY,
    "style_ambiguity",
    "novelty.classifier",
)
PANELS = (FRECHET, "recall.classifier", "coverage.classifier", "style_ambiguity")
_COLOURS = ("#1f618d", "#b03a2e", "#7d6608", "#196f3d", "#6c3483", "#555555")
BEFORE = ("", "seed", "parameters", "core-seconds")


def write_comparison(found: "Comparison", examples: Sequence[Tensor]) -> None:
    """Card, page, comparison.png where training times are known, examples.png. `examples`: the
    first images of each model, (10, C, H, W)."""
    pictures = {"examples": _examples(found, examples)}
    if any(one.core_seconds is not None for one in found.models):
        pictures["comparison"] = chart(found)
    found.write(markdown(found), pictures)


def chart(found: "Comparison") -> bytes:
    """PNG: `PANELS` over the core-seconds of training, a line for each model."""
    lines = [
        Line(
            label=f"{one.label}, seed {one.seed}",
            points={
                point.core_seconds: point.metrics
                for point in one.curve
                if point.core_seconds is not None
            },
            colour=_COLOURS[place % len(_COLOURS)],
            marker="s" if one.kind == "CAN" else "o",
        )
        for place, one in enumerate(found.models)
        if one.core_seconds is not None
    ]
    how = {"count": found.config.count, "over": "core-seconds of training", "to_scale": True}
    return scale_panels(lines, found, PANELS, **how)


def _examples(found: "Comparison", examples: Sequence[Tensor]) -> bytes:
    count = len(examples[0])
    return labelled_grid(
        [list(images) for images in examples],
        row_labels=[f"{one.label}, seed {one.seed}" for one in found.models],
        column_labels=[str(found.config.first_seed + number) for number in range(count)],
        settings=[{"first_seed": found.config.first_seed}],
    )


def table_rows(found: "Comparison") -> list[list[str]]:
    """One row a model, then the labels with several seeds, then real images."""
    rows = [_row(one) for one in found.models]
    for label, spreads in found.groups.items():
        cells = [
            f"{spreads[key].mean:.3g} ± {spreads[key].std:.2g}" if key in spreads else ""
            for key in COLUMNS
        ]
        rows.append([label, "mean ± deviation", "", "", *cells, ""])
    real = real_rows(found, COLUMNS, before=len(BEFORE) - 1, after=1)
    baseline = {} if found.baseline is None else found.baseline.metrics
    names = ("precision", "recall", "density", "coverage")
    spreads = {f"{name}.classifier": baseline[name] for name in names if name in baseline}
    for place, key in enumerate(COLUMNS, start=len(BEFORE)):
        if key in spreads:
            real[-1 if len(real) == 1 else 1][place] = f"{spreads[key].mean:.3g}"
        if key == "novelty.classifier":
            real[0][place] = "1"
    return rows + real


def _row(one: "ModelMetrics") -> list[str]:
    seconds = "not known" if one.core_seconds is None else f"{one.core_seconds:,.0f}"
    if one.device not in ("", "core"):
        seconds += f" s of {one.device}"
    return [
        one.label,
        str(one.seed),
        f"{one.parameters:,}",
        seconds,
        *(format_estimate(key, one.metrics.get(key)) for key in COLUMNS),
        f"{one.seconds_an_image:.3g}",
    ]


def markdown(found: "Comparison") -> str:
    """The table, the verdicts, and how it was made."""
    titles = [title_of(key).replace(" (classifier)", "") for key in COLUMNS]
    table = markdown_table([*BEFORE, *titles, "s an image"], table_rows(found), left=1)
    claims = claims_table(found.claims) if found.claims else "There is no pair to decide."
    how = (
        f"{found.config.count:,} images of each model, {found.how}; classifier "
        f"{found.classifier.identity}; real: {found.reference_count:,} of {found.reference}. "
        "Style ambiguity is the entropy of that classifier over log K, novelty the distance to the "
        "nearest training image over that of real test images; all features are the classifier's. "
        "Core-seconds are those of training, by the run's own records, and of the training of the "
        "VAE whose latents it has; those of a run that goes on from another model are not known. A "
        "verdict needs training times that differ by 1.25 times at most, or the better side with "
        "less."
    )
    made = f"sfumato {found.sfumato}, torch {found.hardware['torch']}, {found.date}."
    return "\n\n".join([how, table, claims, found.rule, made]) + "\n"
