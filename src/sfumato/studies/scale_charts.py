"""Figures over guidance scales: panels, and how values are told with their intervals."""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sfumato.evaluation.arms import MEASURES
from sfumato.evaluation.card import Figure
from sfumato.evaluation.reference import GroundCard
from sfumato.studies.verdicts import Effect

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHIFT = 0.09


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of every panel: figures by guidance scale, then by measure."""

    label: str
    points: Mapping[float, Mapping[str, Figure]]
    colour: str
    marker: str = "o"
    main: bool = True
    """Whether it is drawn whole, not dotted."""


def scale_panels(
    lines: Sequence[Line],
    real: Mapping[str, Figure],
    measures: Sequence[str],
    *,
    title: str,
    over: str = "guidance scale w",
    to_scale: bool = False,
) -> bytes:
    """PNG: a panel for each measure over w (or another, `over`) in two rows, with 95 % intervals;
    real images as a band. `title` says how the images were drawn.

    Not `to_scale` the points stand side by side: w = 0, 1, 2 would lie on each other beside 20.
    """
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import MaxNLocator

    columns = math.ceil(len(measures) / 2)
    canvas = Canvas(figsize=(1 + 5 * columns, 7.7), dpi=130, layout="constrained")
    canvas.suptitle(title, fontsize=10, color="#555555")
    panels = canvas.subplots(2, columns).flatten()
    scales = sorted({scale for line in lines for scale in line.points})
    for axes, measure in zip(panels, measures, strict=True):
        places = scales if to_scale else range(len(scales))
        _panel(axes, lines, real.get(measure), measure, dict(zip(scales, places, strict=True)))
        axes.set_xlabel(over)
        if to_scale:  # the points' own numbers would lie on each other
            axes.set_xlim(left=0)
            axes.xaxis.set_major_locator(MaxNLocator(6))
            axes.xaxis.set_major_formatter("{x:,.0f}")
        else:
            axes.set_xticks(range(len(scales)), [f"{scale:g}" for scale in scales])
    handles, labels = panels[0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png")
    return buffer.getvalue()


def how_drawn(scheduler: str, steps: int, count: int) -> str:
    """The title of a figure: sampler, steps, and images behind each point."""
    return f"{scheduler}, {steps} steps; {count:,} images a point"


def _panel(
    axes: "Axes",
    lines: Sequence[Line],
    real: Figure | None,
    measure: str,
    places: Mapping[float, float],
) -> None:
    """`places`: where on the axis each scale stands."""
    factor = MEASURES[measure].factor
    if real is not None:
        axes.axhline(factor * real.value, color="#555555", lw=1, ls="--", label="real test images")
        if real.low is not None and real.high is not None:
            axes.axhspan(factor * real.low, factor * real.high, color="#999999", alpha=0.35, lw=0)
    for line in lines:
        y = [figures[measure] for figures in line.points.values()]
        axes.errorbar(
            [places[scale] + _beside(line, lines, scale) for scale in line.points],
            [factor * one.value for one in y],
            yerr=[
                [factor * (one.value - _or(one.low, one.value)) for one in y],
                [factor * (_or(one.high, one.value) - one.value) for one in y],
            ],
            color=line.colour,
            marker=line.marker,
            ms=4.5,
            lw=1.3 if line.main else 0.8,
            ls="-" if line.main else ":",
            capsize=2.5,
            label=line.label,
        )
    title = MEASURES[measure].title
    percent = MEASURES[measure].percent and not title.endswith("%")
    axes.set_title(title + (", %" if percent else ""), fontsize=10)
    axes.margins(y=0.08)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _beside(line: Line, lines: Sequence[Line], scale: float) -> float:
    """How far from its tick a point stands: those of one scale lie side by side."""
    there = [other for other in lines if scale in other.points]
    return _SHIFT * (there.index(line) - (len(there) - 1) / 2)


def _or(value: float | None, other: float) -> float:
    return other if value is None else value


def figure_told(measure: str, found: Figure | None) -> str:
    """A value with its interval in brackets, in the measure's unit."""
    if found is None:
        return ""
    of = MEASURES[measure]
    text = of.told(found.value)
    if found.low is None or found.high is None:
        return text
    return f"{text} ({of.told(found.low)}, {of.told(found.high)})"


def value_told(measure: str, found: Figure | None) -> str:
    """A value alone, in the measure's unit."""
    return "" if found is None else MEASURES[measure].told(found.value)


def real_rows(
    card: GroundCard,
    names: Sequence[str],
    *,
    told: Callable[[str, Figure | None], str],
    before: int = 0,
    after: int = 0,
) -> list[list[str]]:
    """Rows of a table for what real images score: title, `before` empty cells, one for each measure
    of `names`, `after` empty cells."""

    def row(title: str, cells: Mapping[str, str]) -> list[str]:
        return [title, *[""] * before, *(cells.get(name, "") for name in names), *[""] * after]

    rows = [row("real test images", {name: told(name, card.real.get(name)) for name in names})]
    if card.floor is not None and card.floor.frechet is not None:
        floor = card.floor.frechet
        title = f"real training images, {card.floor.pairs} sets"
        rows.append(row(title, {"frechet": f"{floor.mean:.3g} ± {floor.std:.2g}"}))
    return rows + [
        row(yardstick.title, {"frechet": f"{yardstick.frechet:.3g}"})
        for yardstick in card.yardsticks
    ]


def effect_told(effect: Effect) -> str:
    """What it is, how large with its interval, and what would matter."""
    of = MEASURES[effect.measure]
    return (
        f"{effect.what}: {of.told(effect.value)} ({of.told(effect.low)}, {of.told(effect.high)}), "
        f"margin {of.told(effect.margin)}"
    )
