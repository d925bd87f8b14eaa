"""The newest samples of a run on a terminal: as pixels where it draws pictures, else as
characters."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import RenderableType
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from sfumato.base.words import counted

if TYPE_CHECKING:
    from PIL.Image import Image

CELL_COLUMNS = 16
"""Width in columns that a sample is shown in, at least; of characters each is a pixel wide and two
high."""
SHADES = " ░▒▓█"
_META = "picture"


@dataclass(frozen=True)
class Drawing:
    """How pictures are shown: half blocks of two colours, shades where there are no colours, or as
    pixels, by the protocol of kitty or as sixels. `cell`: width and height of a character in
    pixels, for these."""

    how: Literal["blocks", "shades", "kitty", "sixel"]
    cell: tuple[int, int] = (1, 2)

    @property
    def as_pixels(self) -> bool:
        return self.how in ("kitty", "sixel")


@dataclass(frozen=True)
class Placed:
    """A picture that is drawn over characters from `row` and `column`, both from 0."""

    picture: "Image"
    row: int
    column: int
    columns: int
    rows: int


def samples(file: Path, width: int, drawing: Drawing) -> list[RenderableType]:
    """The newest grid: the samples of its last row, as many as there is room for in `width`
    columns. Of a picture in pixels the room is left, as many lines as it is high."""
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
    if drawing.as_pixels:
        strip = last_row(picture, width, unit=drawing.cell[0])
        rows = -(-strip.height // drawing.cell[1])
        columns = -(-strip.width // drawing.cell[0])
        room = Text(" ", style=Style.from_meta({_META: (strip, columns, rows)}), no_wrap=True)
        return [Text(title, style="bold"), room, *[Text(" ")] * (rows - 1)]
    strip = last_row(picture, width)
    lines = half_blocks(strip) if drawing.how == "blocks" else shades(strip)
    return [Text(title, style="bold"), *lines]


def placed(lines: Sequence[Sequence[Segment]], height: int) -> list[Placed]:
    """The pictures for which rendered lines leave room, but those that end below `height`."""
    found = []
    for row, line in enumerate(lines):
        column = 0
        for segment in line:
            picture = segment.style.meta.get(_META) if segment.style else None
            if picture is not None:
                strip, columns, rows = picture
                if row + rows <= height:
                    found.append(Placed(strip, row, column, columns, rows))
            column += segment.cell_length
    return found


def last_row(grid: "Image", width: int, *, unit: int = 1) -> "Image":
    """Samples of the last row of a labelled grid, at most `width` columns of `unit` pixels wide:
    without the labels where its cells are found, else all of it."""
    from PIL import Image

    cells = cells_of(grid)
    if not cells:
        wide = width if unit == 1 else min(width * unit, grid.width)
        return grid.resize((wide, max(2, round(wide * grid.height / grid.width))), Image.BOX)
    count = max(1, min(len(cells), width // CELL_COLUMNS))
    side = min(width // count - 1, 2 * CELL_COLUMNS) * unit
    if unit == 1:
        side = min(side, cells[0].width)
    mode = "RGB" if unit == 1 else "RGBA"  # between them the terminal's own background
    strip = Image.new(mode, (count * (side + unit) - unit, side))
    for index, cell in enumerate(cells[:count]):
        strip.paste(cell.resize((side, side), Image.BOX), (index * (side + unit), 0))
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
