"""Runs as text of a terminal: progress, curves of block characters, pictures of half blocks."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sfumato.base.progress import clock
from sfumato.base.words import counted
from sfumato.studies.watching import Point, View

if TYPE_CHECKING:
    from PIL.Image import Image

LEAST_WIDTH = 50
"""Columns of a run; where there are not as many for each, they stand below each other."""
MOST_WIDTH = 100
GAP = 3
CURVE_ROWS = 6
CELL_COLUMNS = 16
"""Width in columns that a sample is shown in, at least; each is a pixel wide and two high."""
EIGHTHS = " ▁▂▃▄▅▆▇█"
SHADES = " ░▒▓█"
STYLES = {"training": "bold green", "finished": "bold blue", "stopped": "bold yellow"}


def side_by_side(views: Sequence[View], width: int, *, colours: bool) -> RenderableType:
    """The runs beside each other, as many as there is room for. Without `colours` pictures are
    made of shades."""
    beside = max(1, min(len(views), (width + GAP) // (LEAST_WIDTH + GAP)))
    each = min(MOST_WIDTH, (width + GAP) // beside - GAP)
    table = Table.grid(padding=(0, GAP, 1, 0))
    shown = [panel(view, each, colours=colours) for view in views]
    for start in range(0, len(shown), beside):
        table.add_row(*shown[start : start + beside])
    return table


def panel(view: View, width: int, *, colours: bool) -> Group:
    """One run in `width` columns."""
    lines: list[RenderableType] = [
        _heading(view, width),
        _progress(view, width),
        Text(_figures(view), no_wrap=True, overflow="ellipsis"),
    ]
    if len(view.losses) > 1:
        lines += [Text(), Text("loss", style="bold"), *curve(view.losses, width)]
    if view.samples is not None:
        lines += [Text(), *_samples(view.samples, width, colours=colours)]
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


def _figures(view: View) -> str:
    found = []
    if "loss" in view.newest:
        found.append(f"loss {view.newest['loss']:.4f}")
    if "lr" in view.newest:
        found.append(f"lr {view.newest['lr']:.2g}")
    if view.images_per_second is not None:
        found.append(f"{view.images_per_second:,.1f} images/s")
    if view.memory_bytes:
        found.append(f"{view.memory_bytes / 1e9:.2f} GB")
    if view.seconds_left is not None:
        found.append(f"{clock(view.seconds_left)} left")
    return "  ".join(found) or "no step logged yet"


# Curves -------------------------------------------------------------------------------------------


def curve(points: Sequence[Point], width: int) -> list[Text]:
    """Points as an area of block characters, with the range of values and of images. Values of one
    sign that span a factor of more than 4 are shown by their logarithm."""
    left = 7
    columns = means(points, width - left - 2)
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


# Pictures -----------------------------------------------------------------------------------------


def _samples(file: Path, width: int, *, colours: bool) -> list[RenderableType]:
    """The newest grid: the samples of its last row, as many as there is room for."""
    from PIL import Image

    try:
        with Image.open(file) as opened:
            opened.load()
            picture, known = opened.convert("RGB"), dict(opened.info)
    except (OSError, SyntaxError) as error:
        return [Text(f"{file.name} cannot be read: {error}", style="red")]
    seen = counted(int(file.stem.removeprefix("images-")), "image")
    row = str(known.get("sfumato:rows", "")).split(" | ")[-1]
    title = f"samples after {seen}" + (f", {row}" if row else "")
    strip = last_row(picture, width)
    return [Text(title, style="bold"), *(half_blocks(strip) if colours else shades(strip))]


def last_row(grid: "Image", width: int) -> "Image":
    """Samples of the last row of a labelled grid, at most `width` pixels wide: without the labels
    where its cells are found, else all of it."""
    from PIL import Image

    cells = cells_of(grid)
    if not cells:
        return grid.resize((width, max(2, round(width * grid.height / grid.width))), Image.BOX)
    count = max(1, min(len(cells), width // CELL_COLUMNS))
    side = min(width // count - 1, 2 * CELL_COLUMNS, cells[0].width)
    strip = Image.new("RGB", (count * (side + 1) - 1, side))
    for index, cell in enumerate(cells[:count]):
        strip.paste(cell.resize((side, side), Image.BOX), (index * (side + 1), 0))
    return strip


def cells_of(grid: "Image") -> "list[Image]":
    """The square cells of the last row of a labelled grid (`report/grids.py`): they end 12 pixels
    before its edges, with 4 white ones between two. None where that is not what is seen."""
    import numpy as np

    pixels = np.asarray(grid)
    bottom, right = pixels.shape[0] - 12, pixels.shape[1] - 12
    white = (pixels[max(0, bottom - 20) : bottom] == 255).all((0, 2))
    dark = np.flatnonzero(~white[:right])
    if bottom < 20 or not len(dark) or dark[-1] != right - 1:
        return []
    side = 1
    while side < right and not white[right - side - 4 : right - side].all():
        side += 1
    starts = range(right - side, -1, -side - 4)
    there = [x for x in starts if not white[x] and not white[x + side - 1]]
    if side > bottom or len(there) < 1:
        return []
    boxes = [(x, bottom - side, x + side, bottom) for x in reversed(there)]
    return [grid.crop(box) for box in boxes]


def half_blocks(picture: "Image") -> list[Text]:
    """Two pixels in a character: the upper one its colour, the lower one its background."""
    import numpy as np

    pixels = np.asarray(picture)
    if len(pixels) % 2:
        pixels = np.concatenate([pixels, pixels[-1:]])
    lines = []
    for upper, lower in zip(pixels[::2], pixels[1::2], strict=True):
        line = Text(no_wrap=True)
        for above, below in zip(upper.tolist(), lower.tolist(), strict=True):
            line.append("▀", "rgb({},{},{}) on rgb({},{},{})".format(*above, *below))
        lines.append(line)
    return lines


def shades(picture: "Image") -> list[Text]:
    """Where there are no colours: one of five densities for each two pixels."""
    import numpy as np

    grey = np.asarray(picture.convert("L"), dtype=float)
    grey = grey[: len(grey) // 2 * 2].reshape(len(grey) // 2, 2, -1).mean(1)
    numbers = np.minimum(4, grey * 5 // 256).astype(int)
    return [Text("".join(SHADES[one] for one in row), no_wrap=True) for row in numbers.tolist()]
