"""Runs as text of a terminal: progress, curves of block characters, the newest samples."""

import math
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sfumato.base.progress import clock
from sfumato.base.words import counted
from sfumato.cli.watch_pictures import Drawing, samples
from sfumato.studies.watching import Point, View

LEAST_WIDTH = 50
"""Columns of a run; where there are not as many for each, they stand below each other."""
MOST_WIDTH = 100
GAP = 3
CURVE_ROWS = 6
EIGHTHS = " ▁▂▃▄▅▆▇█"
STYLES = {"training": "bold green", "finished": "bold blue", "stopped": "bold yellow"}


def side_by_side(views: Sequence[View], width: int, drawing: Drawing) -> RenderableType:
    """The runs beside each other, as many as there is room for."""
    beside = max(1, min(len(views), (width + GAP) // (LEAST_WIDTH + GAP)))
    each = min(MOST_WIDTH, (width + GAP) // beside - GAP)
    table = Table.grid(padding=(0, GAP, 1, 0))
    shown = [panel(view, each, drawing) for view in views]
    for start in range(0, len(shown), beside):
        table.add_row(*shown[start : start + beside])
    return table


def panel(view: View, width: int, drawing: Drawing) -> Group:
    """One run in `width` columns."""
    lines: list[RenderableType] = [
        _heading(view, width),
        _progress(view, width),
        Text(_figures(view, width), no_wrap=True, overflow="ellipsis"),
    ]
    if len(view.losses) > 1:
        lines += [Text(), Text("loss", style="bold"), *curve(view.losses, width)]
    if view.samples is not None:
        lines += [Text(), *samples(view.samples, width, drawing)]
    lines += [Text(problem, style="red") for problem in view.problems]
    return Group(*lines)


def _heading(view: View, width: int) -> Text:
    room = width - len(view.state) - len(view.preset) - 4
    name = view.folder if len(view.folder) <= room else "…" + view.folder[-max(1, room - 1) :]
    return Text.assemble(
        (name, "bold"), f"  {view.preset}  ", (view.state, STYLES.get(view.state, ""))
    )


def _progress(view: View, width: int) -> Text:
    """A bar and a count, or the count alone where the length is not known."""
    if view.total_images is None:
        return Text(counted(view.images_seen, "image"))
    share = min(1.0, view.images_seen / view.total_images)
    count = f" {100 * share:.0f} %  {view.images_seen:,} of {counted(view.total_images, 'image')}"
    room = max(4, width - len(count))
    done = round(share * room)
    return Text.assemble(("━" * done, "green"), ("━" * (room - done), "bright_black"), count)


def _figures(view: View, width: int) -> str:
    """What is known of the run, without its memory and learning rate where there is no room."""
    found = {}
    if "loss" in view.newest:
        found["loss"] = f"loss {view.newest['loss']:.4f}"
    if "lr" in view.newest:
        found["lr"] = f"lr {view.newest['lr']:.2g}"
    if view.images_per_second is not None:
        found["speed"] = f"{view.images_per_second:,.1f} images/s"
    if view.memory_bytes:
        found["memory"] = f"{view.memory_bytes / 1e9:.2f} GB"
    if view.seconds_left is not None:
        found["left"] = f"{clock(view.seconds_left)} left"
    for name in ("memory", "lr"):
        if len("  ".join(found.values())) > width:
            found.pop(name, None)
    return "  ".join(found.values()) or "no step logged yet"


# Curves -------------------------------------------------------------------------------------------


def curve(points: Sequence[Point], width: int) -> list[Text]:
    """Points as an area of block characters, with the range of values and of images. Values of one
    sign that span a factor of more than 4 are shown by their logarithm."""
    left = 7
    columns = means(points, max(1, width - left - 2))
    low, high = min(columns), max(columns)
    labels = [f"{high:.4g}", *[""] * (CURVE_ROWS - 2), f"{low:.4g}"]
    by_logarithm = low > 0 and high > 4 * low
    scaled = [math.log(one) for one in columns] if by_logarithm else columns
    areas = blocks(scaled, CURVE_ROWS)
    rows = [
        Text.assemble((f"{label:>{left}} ┤", "bright_black"), (area, "cyan"))
        for label, area in zip(labels, areas, strict=True)
    ]
    first, last = counted(points[0][0], "image"), f"{points[-1][0]:,}"
    note = "logarithmic" if by_logarithm else ""
    room = width - left - 2 - len(first) - len(last)
    rows.append(Text(f"{'':>{left}}  {first}{note:^{max(0, room)}}{last}", style="bright_black"))
    return rows


def means(points: Sequence[Point], count: int) -> list[float]:
    """The mean value in each of `count` equal parts of the images; a part without points has that
    of the part before."""
    first, last = points[0][0], points[-1][0]
    sums, counts = [0.0] * count, [0] * count
    for images, value in points:
        part = min(count - 1, (images - first) * count // max(1, last - first))
        sums[part], counts[part] = sums[part] + value, counts[part] + 1
    found: list[float] = []
    for total, number in zip(sums, counts, strict=True):
        found.append(total / number if number else found[-1])
    return found


def blocks(values: Sequence[float], rows: int) -> list[str]:
    """Lines of block characters, from the top: the least value is an eighth of a line high."""
    low, high = min(values), max(values)
    steps = 8 * rows - 1
    levels = [1 + round(steps * (one - low) / (high - low or 1)) for one in values]
    return [
        "".join(EIGHTHS[min(8, max(0, level - 8 * row))] for level in levels)
        for row in reversed(range(rows))
    ]
