"""The candidates of a search as a chart."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sfumato.report.page import png_of
from sfumato.studies.charts import error_bars

if TYPE_CHECKING:
    from sfumato.studies.tuning import Score, Tuning

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def front_chart(tuning: "Tuning") -> bytes:
    """PNG: distance over class accuracy, every candidate by the rounds it survived, the front as a
    line with its points numbered, the choice ringed."""
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import StrMethodFormatter

    canvas = Canvas(figsize=(7.2, 5.2), dpi=140, layout="constrained")
    axes = canvas.subplots()
    last = max(score.survived for score in tuning.scores)
    for rounds in range(1, last + 1):
        scores = [score for score in tuning.scores if score.survived == rounds]
        if scores:
            _plot_round(axes, scores, share=rounds / last)
    front = sorted(tuning.front, key=lambda score: score.point[0])
    axes.plot(*_points(front), color="#2a6f97", lw=1.2, label="front", zorder=1)
    ring: dict[str, Any] = {"mfc": "none", "mec": "#c1121f", "mew": 1.8}
    axes.plot(*_points([tuning.choice]), "o", ms=14, ls="none", label="choice", **ring)
    for number, (x, y, score) in enumerate(zip(*_points(front), front, strict=True), start=1):
        axes.annotate(str(number), (x, y), xytext=(9, 7), textcoords="offset points", fontsize=8)
        label: dict[str, Any] = {"marker": f"${number}$", "label": score.candidate.title}
        axes.plot([], [], ls="none", mew=0, color="black", **label)
    axes.set(
        xlabel="class accuracy, %", ylabel="Frechet distance (classifier's features)", yscale="log"
    )
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
    axes.grid(alpha=0.25, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    canvas.legend(loc="outside lower left", ncols=2, fontsize=7, frameon=False, markerscale=0.8)
    return png_of(canvas)


def _plot_round(axes: "Axes", scores: "Sequence[Score]", *, share: float) -> None:
    """The candidates that this round was the last of; `share`: of all rounds."""
    axes.errorbar(
        *_points(scores),
        xerr=error_bars([score.class_accuracy for score in scores], 100),
        yerr=error_bars([score.frechet for score in scores]),
        fmt="o",
        ms=5,
        color="#7a4b2a",
        alpha=0.25 + 0.75 * share,
        elinewidth=0.7,
        label=f"{scores[0].count} images" + (" (last round)" if share == 1 else ""),
    )


def _points(scores: "Sequence[Score]") -> tuple[list[float], list[float]]:
    accuracy = [100 * score.class_accuracy.value for score in scores]
    return accuracy, [score.frechet.value for score in scores]
