"""A chart of losses on training and test images over training, a panel for each noise level."""

from collections.abc import Mapping, Sequence

from sfumato.evaluation.metrics.intervals import Estimate
from sfumato.report.page import png_of
from sfumato.studies.charts import error_bars

_COLOURS = {"train": "#7a4b2a", "test": "#1f618d"}
_LABELS = {"train": "training images", "test": "test images"}


def loss_panels(
    levels: Sequence[float], points: Mapping[int, Mapping[str, Sequence[Estimate]]]
) -> bytes:
    """PNG: of each of `levels` the losses by part over the images seen, the keys of `points`."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    canvas = Figure(figsize=(1 + 2.7 * len(levels), 3.4), dpi=130, layout="constrained")
    panels = canvas.subplots(1, len(levels), squeeze=False)[0]
    for place, (axes, level) in enumerate(zip(panels, levels, strict=True)):
        for name, colour in _COLOURS.items():
            own = {seen: parts[name][place] for seen, parts in points.items() if name in parts}
            axes.errorbar(
                list(own),
                [one.value for one in own.values()],
                yerr=error_bars(list(own.values())),
                color=colour,
                marker="o",
                ms=4,
                lw=1.3,
                capsize=2.5,
                label=_LABELS[name],
            )
        axes.set_title(f"noise level $\\sigma$ = {level:.2g}", fontsize=10)
        axes.set_xlabel("images seen")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("loss")
    handles, labels = panels[0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return png_of(canvas)
