"""A chart of what the classifier sees, class by class: of sampled images beside real ones."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sfumato.evaluation.card import Classes
from sfumato.report.page import png_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_CLASSES = 40
"""Of more, cells are too small to read."""


def confusion_panels(panels: Sequence[tuple[str, Classes]]) -> bytes | None:
    """PNG: for each (title, classes) a matrix of percentages, a row for each class that was asked
    for, a column for each that the classifier can see there. None for too many classes."""
    from matplotlib.figure import Figure

    shown = [
        label
        for label in range(len(panels[0][1].names))
        if any(classes.accuracy[label] is not None for _, classes in panels)
    ]
    if len(shown) > MOST_CLASSES:
        return None
    side = 1.6 + 0.24 * len(shown)
    names_side = 0.09 * max(len(panels[0][1].names[label]) for label in shown)
    size = (side * len(panels) + names_side, side + names_side + 0.4)
    canvas = Figure(figsize=size, dpi=130, layout="constrained")
    axes = canvas.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for place, (title, classes) in zip(axes, panels, strict=True):
        _matrix(place, title, classes, shown)
    names = [panels[0][1].names[label].replace("_", " ") for label in shown]
    axes[0].set_yticks(range(len(shown)), names, fontsize=7)
    axes[0].set_ylabel("class of the caption, or of the real image", fontsize=8)
    for place in axes:
        place.set_xticks(range(len(shown)), names, rotation=90, fontsize=7)
    axes[len(axes) // 2].set_xlabel("class that the classifier sees", fontsize=8)
    return png_of(canvas)


def _matrix(axes: "Axes", title: str, classes: Classes, shown: Sequence[int]) -> None:
    """Percentages of each row; classes that nobody asked for stay empty."""
    rows = [[classes.confusion[label][seen] for seen in shown] for label in shown]
    shares = [
        [100 * cell / sum(classes.confusion[label]) if sum(row) else 0.0 for cell in row]
        for label, row in zip(shown, rows, strict=True)
    ]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    for y, row in enumerate(shares):
        for x, share in enumerate(row):
            if share >= 1:
                colour = "white" if share > 55 else "#333333"
                axes.text(x, y, f"{share:.0f}", ha="center", va="center", fontsize=6, color=colour)
    asked = [one.value for one in classes.accuracy if one is not None]
    axes.set_title(f"{title}\nmean over classes {100 * sum(asked) / len(asked):.1f} %", fontsize=9)
    axes.tick_params(length=0)
