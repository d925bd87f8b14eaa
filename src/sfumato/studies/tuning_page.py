"""The candidates of a search as a chart."""

import io
from collections.abc import Sequence

from sfumato.evaluation.metrics.intervals import Estimate
from sfumato.studies.tuning import Tuning


def front_chart(tuning: Tuning) -> bytes:
    """PNG: distance over agreement, every candidate by the rounds it survived, the front as a
    line with its points numbered, the choice ringed."""
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import StrMethodFormatter

    canvas = Canvas(figsize=(7.2, 5.2), dpi=140, layout="constrained")
    axes = canvas.subplots()
    last = max(score.survived for score in tuning.scores)
    for rounds in range(1, last + 1):
        of_round = [score for score in tuning.scores if score.survived == rounds]
        if not of_round:
            continue
        shade = 0.25 + 0.75 * rounds / last
        axes.errorbar(
            [100 * score.class_accuracy.value for score in of_round],
            [score.frechet.value for score in of_round],
            xerr=_errors([score.class_accuracy for score in of_round], 100),
            yerr=_errors([score.frechet for score in of_round], 1),
            fmt="o",
            ms=5,
            color="#7a4b2a",
            alpha=shade,
            elinewidth=0.7,
            label=f"{of_round[0].count} images" + (" (last round)" if rounds == last else ""),
        )
    front = sorted(tuning.front, key=lambda score: score.point[0])
    axes.plot(
        [100 * score.class_accuracy.value for score in front],
        [score.frechet.value for score in front],
        color="#2a6f97",
        lw=1.2,
        label="front",
        zorder=1,
    )
    choice = tuning.choice
    axes.plot(
        100 * choice.class_accuracy.value,
        choice.frechet.value,
        "o",
        ms=14,
        ls="none",
        mfc="none",
        mec="#c1121f",
        mew=1.8,
        label="choice",
    )
    for number, score in enumerate(front, start=1):
        place = (100 * score.class_accuracy.value, score.frechet.value)
        axes.annotate(str(number), place, xytext=(9, 7), textcoords="offset points", fontsize=8)
        title = score.candidate.title
        axes.plot([], [], ls="none", marker=f"${number}$", mew=0, color="black", label=title)
    axes.set(
        xlabel="class accuracy, %", ylabel="Frechet distance (classifier's features)", yscale="log"
    )
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
    axes.grid(alpha=0.25, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    canvas.legend(loc="outside lower left", ncols=2, fontsize=7, frameon=False, markerscale=0.8)
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png")
    return buffer.getvalue()


def _errors(estimates: Sequence[Estimate], factor: float) -> list[list[float]]:
    return [
        [factor * (one.value - (one.low or 0.0)) for one in estimates],
        [factor * ((one.high or one.value) - one.value) for one in estimates],
    ]
