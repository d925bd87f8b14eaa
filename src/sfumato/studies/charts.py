"""Charts, tables and text of studies: metrics with their intervals over a scale."""

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sfumato.evaluation.metrics.intervals import Estimate
from sfumato.evaluation.metrics.registry import metric_of, title_of
from sfumato.report.page import markdown_table, png_of
from sfumato.studies.study import FRECHET, StudyCard
from sfumato.studies.verdicts import Claim, Effect

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHIFT = 0.09
_LOG_FROM = 20
"""Frechet distances that differ by more than this factor stand on a logarithmic axis."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of every panel: estimates by guidance scale, then by metric."""

    label: str
    points: Mapping[float, Mapping[str, Estimate]]
    colour: str
    marker: str = "o"
    main: bool = True
    """Whether it is solid, not dotted."""


def scale_panels(
    lines: Sequence[Line],
    card: StudyCard,
    measures: Sequence[str],
    *,
    count: int,
    over: str = "guidance scale w",
    to_scale: bool = False,
) -> bytes:
    """PNG: a panel for each metric over w (or another, `over`) in two rows, with 95 % intervals;
    real images as a band. `count`: images behind each point.

    Not `to_scale` the points stand side by side: w = 0, 1, 2 would lie on each other beside 20.
    """
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import MaxNLocator

    columns = math.ceil(len(measures) / 2)
    canvas = Canvas(figsize=(1 + 5 * columns, 7.7), dpi=130, layout="constrained")
    title = f"{card.how}; {count:,} images a point"
    canvas.suptitle(textwrap.fill(title, width=120), fontsize=10, color="#555555")
    panels = canvas.subplots(2, columns).flatten()
    scales = sorted({scale for line in lines for scale in line.points})
    places = dict(zip(scales, scales if to_scale else range(len(scales)), strict=True))
    for axes, measure in zip(panels, measures, strict=True):
        _panel(axes, lines, card.real.get(measure), measure, places)
        axes.set_xlabel(over)
        if to_scale:  # the points' own numbers would lie on each other
            axes.set_xlim(left=0)
            axes.xaxis.set_major_locator(MaxNLocator(6))
            axes.xaxis.set_major_formatter("{x:,.0f}")
        else:
            axes.set_xticks(range(len(scales)), [f"{scale:g}" for scale in scales])
    handles, labels = panels[0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return png_of(canvas)


def _panel(
    axes: "Axes",
    lines: Sequence[Line],
    real: Estimate | None,
    measure: str,
    places: Mapping[float, float],
) -> None:
    """`places`: where on the axis each scale stands."""
    percent = metric_of(measure).percent
    factor = 100 if percent else 1
    if real is not None:
        axes.axhline(factor * real.value, color="#555555", lw=1, ls="--", label="real test images")
        if real.low is not None and real.high is not None:
            axes.axhspan(factor * real.low, factor * real.high, color="#999999", alpha=0.35, lw=0)
    for line in lines:
        found = [metrics[measure] for metrics in line.points.values()]
        axes.errorbar(
            [places[scale] + _beside(line, lines, scale) for scale in line.points],
            [factor * one.value for one in found],
            yerr=error_bars(found, factor),
            color=line.colour,
            marker=line.marker,
            ms=4.5,
            lw=1.3 if line.main else 0.8,
            ls="-" if line.main else ":",
            capsize=2.5,
            label=line.label,
        )
    title = title_of(measure)
    axes.set_title(title + (", %" if percent and not title.endswith("%") else ""), fontsize=10)
    axes.margins(y=0.08)
    values = [metrics[measure].value for line in lines for metrics in line.points.values()]
    if measure == FRECHET and max(values) > _LOG_FROM * min(values) > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    else:
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _beside(line: Line, lines: Sequence[Line], scale: float) -> float:
    """How far from its tick a point stands: those of one scale lie side by side."""
    there = [other for other in lines if scale in other.points]
    return _SHIFT * (there.index(line) - (len(there) - 1) / 2)


def error_bars(estimates: Sequence[Estimate], factor: float = 1) -> list[list[float]]:
    """Lengths below and above each value, for matplotlib; 0 without an interval."""
    return [
        [factor * (one.value - (one.value if one.low is None else one.low)) for one in estimates],
        [factor * ((one.value if one.high is None else one.high) - one.value) for one in estimates],
    ]


# Text ---------------------------------------------------------------------------------------------


def format_estimate(key: str, found: Estimate | None) -> str:
    """A value with its interval in brackets, in the metric's unit."""
    return metric_of(key).format_estimate(found)


def format_value(key: str, found: Estimate | None) -> str:
    """A value alone, in the metric's unit."""
    return "" if found is None else metric_of(key).format(found.value)


def format_effect(effect: Effect) -> str:
    """What it is, how large with its interval, and what would matter."""
    of = metric_of(effect.measure)
    return (
        f"{effect.what}: {of.format(effect.value)} ({of.format(effect.low)}, "
        f"{of.format(effect.high)}), margin {of.format(effect.margin)}"
    )


def real_rows(
    card: StudyCard,
    keys: Sequence[str],
    *,
    format_of: Callable[[str, Estimate | None], str] = format_estimate,
    before: int = 0,
    after: int = 0,
) -> list[list[str]]:
    """Rows of a table for what real images score: title, `before` empty cells, one for each metric
    of `keys`, `after` empty cells."""

    def row(title: str, cells: Mapping[str, str]) -> list[str]:
        return [title, *[""] * before, *(cells.get(key, "") for key in keys), *[""] * after]

    rows = [row("real test images", {key: format_of(key, card.real.get(key)) for key in keys})]
    if card.baseline is not None and "frechet" in card.baseline.metrics:
        spread = card.baseline.metrics["frechet"]
        title = f"real training images, {card.baseline.pairs} sets"
        rows.append(row(title, {FRECHET: f"{spread.mean:.3g} ± {spread.std:.2g}"}))
    return rows + [row(one.title, {FRECHET: f"{one.frechet:.3g}"}) for one in card.perturbations]


def claims_table(claims: Sequence[Claim]) -> str:
    """Claims with their verdicts and effects, as Markdown."""
    rows = [
        [
            claim.claim,
            f"**{claim.verdict}**",
            "; ".join(map(format_effect, claim.effects)),
            claim.sentence,
            claim.figure,
        ]
        for claim in claims
    ]
    return markdown_table(["claim", "verdict", "effect", "because", "figure"], rows, left=5)


def study_text(card: StudyCard, sampled: str, *blocks: str) -> str:
    """The Markdown of a study: what was `sampled`, `blocks`, and how it was made."""
    first = (
        f"{sampled}; {card.how}; classifier {card.classifier.identity}; "
        f"real: {card.reference_count:,} of {card.reference}."
    )
    last = (
        f"Weights sha256 {card.model['weights_sha256'][:16]}, "
        f"{card.model.get('images_seen', 0):,} images seen; w by {card.convention}; sfumato "
        f"{card.sfumato}, torch {card.hardware['torch']}, {card.date}."
    )
    return "\n\n".join([first, *(block for block in blocks if block), last]) + "\n"
