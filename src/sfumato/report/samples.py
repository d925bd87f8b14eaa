"""Grids of real images: by class, or each with its caption."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sfumato.base.images import png_bytes, to_pil
from sfumato.base.randomness import generator_for
from sfumato.data.records import Records

if TYPE_CHECKING:
    import PIL.Image
    import PIL.ImageFont

_INK, _PALE = "#333333", "#777777"
_MARGIN_PX, _GAP_PX, _TITLE_PX = 16, 4, 34
_MOST_ROWS = 40


def class_grid(records: Records, *, title: str, columns: int = 10) -> bytes:
    """A PNG with a row of images for each class, its name before them."""
    from PIL import Image, ImageDraw

    names = list(records.class_names)[:_MOST_ROWS]
    side = _enlarged(records, least_px=56)
    label, small = font(15), font(13)
    measure = ImageDraw.Draw(Image.new("L", (1, 1)))
    shown = [shortened(name, label, 180) for name in names]
    left = _MARGIN_PX + int(max(measure.textlength(text, label) for text in shown)) + 12
    width = left + columns * (side + _GAP_PX) - _GAP_PX + _MARGIN_PX
    height = _TITLE_PX + len(names) * (side + _GAP_PX) - _GAP_PX + _MARGIN_PX
    canvas = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(canvas)
    fitted = shortened(title, small, width - 2 * _MARGIN_PX)
    pen.text((width - _MARGIN_PX, _TITLE_PX // 2), fitted, font=small, fill=_PALE, anchor="rm")
    for row, text in enumerate(shown):
        y = _TITLE_PX + row * (side + _GAP_PX)
        pen.text((left - 12, y + side // 2), text, font=label, fill=_INK, anchor="rm")
        members = (records.labels == row).nonzero().flatten()
        for column, index in enumerate(_sample_of(members, columns).tolist()):
            tile = _tile(records, index, side)
            canvas.paste(tile, (left + column * (side + _GAP_PX), y))
    return png_bytes(canvas)


def caption_grid(records: Records, *, title: str, columns: int = 4, rows: int = 3) -> bytes:
    """A PNG of images, the (first) caption of each below it."""
    from PIL import Image, ImageDraw

    side = _enlarged(records, least_px=144)
    text_font, small = font(13), font(13)
    line_px, most_lines, gap = 17, 4, 14
    chosen = _sample_of(torch.arange(len(records)), columns * rows).tolist()
    columns = min(columns, len(chosen))
    captions = [
        wrapped(records.captions[int(records.prompts[index, 0])], text_font, side, most_lines)
        for index in chosen
    ]
    lines = max(len(caption) for caption in captions)
    cell = side + 6 + lines * line_px + gap
    width = 2 * _MARGIN_PX + columns * (side + gap) - gap
    height = _TITLE_PX + -(-len(chosen) // columns) * cell + 4
    canvas = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(canvas)
    fitted = shortened(title, small, width - 2 * _MARGIN_PX)
    pen.text((_MARGIN_PX, _TITLE_PX // 2), fitted, font=small, fill=_PALE, anchor="lm")
    for place, (index, caption) in enumerate(zip(chosen, captions, strict=True)):
        x = _MARGIN_PX + place % columns * (side + gap)
        y = _TITLE_PX + place // columns * cell
        canvas.paste(_tile(records, index, side), (x, y))
        for line, text in enumerate(caption):
            pen.text((x, y + side + 6 + line * line_px), text, font=text_font, fill=_INK)
    return png_bytes(canvas)


def _enlarged(records: Records, *, least_px: int) -> int:
    """A side in pixels that shows each pixel as a whole square."""
    own = records.images.shape[-1]
    return own * max(1, -(-least_px // own))


def _sample_of(members: torch.Tensor, count: int) -> torch.Tensor:
    """Up to `count` of `members`, the same each time."""
    order = torch.randperm(len(members), generator=generator_for("samples of a data set"))
    return members[order[:count]]


def _tile(records: Records, index: int, side: int) -> "PIL.Image.Image":
    from PIL import Image

    return to_pil(records.images[index]).resize((side, side), Image.Resampling.NEAREST)


# Text ---------------------------------------------------------------------------------------------


@cache
def font(size_px: int) -> "PIL.ImageFont.FreeTypeFont":
    """DejaVu Sans, which comes with matplotlib: captions are not always in Latin letters."""
    from matplotlib import get_data_path
    from PIL import ImageFont

    return ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size_px)


def shortened(text: str, with_font: "PIL.ImageFont.FreeTypeFont", width_px: float) -> str:
    """`text`, or its beginning and an ellipsis that fit into the width."""
    if with_font.getlength(text) <= width_px:
        return text
    while text and with_font.getlength(text + "…") > width_px:
        text = text[:-1]
    return text.rstrip() + "…"


def wrapped(
    text: str, with_font: "PIL.ImageFont.FreeTypeFont", width_px: float, most_lines: int
) -> list[str]:
    """`text` in lines of at most the width; what does not fit ends in an ellipsis."""
    lines, words = [""], text.split()
    for place, word in enumerate(words):
        longer = f"{lines[-1]} {word}".strip()
        if with_font.getlength(longer) <= width_px or not lines[-1]:
            lines[-1] = longer
        elif len(lines) == most_lines:
            lines[-1] = " ".join([lines[-1], *words[place:]])
            break
        else:
            lines.append(word)
    return [shortened(line, with_font, width_px) for line in lines]
