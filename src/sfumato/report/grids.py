"""Labelled grids of pictures: samples, images by class, images with their captions."""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sfumato.base.images import TEXT_PREFIX, png_bytes, to_pil
from sfumato.base.randomness import generator_for
from sfumato.data.records import Records

if TYPE_CHECKING:
    import PIL.ImageDraw
    import PIL.ImageFont

_INK, _PALE = "#333333", "#777777"
_GAP_PX, _LINE_PX, _MARGIN_PX, _TITLE_PX = 4, 18, 16, 34
_MOST_ROWS = 40


def labelled_grid(
    rows: Sequence[Sequence[Tensor] | Tensor],
    *,
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    settings: Sequence[Mapping[str, Any]] = (),
    title: str = "",
    least_cell_px: int = 64,
) -> bytes:
    """A PNG of `rows` of images, uint8 (C, H, W), with a label for each row and column.

    Small images are enlarged by whole factors. Text chunks hold what all `settings` share.
    """
    from PIL import Image, ImageDraw

    row_labels, column_labels = ([*map(one_line, of)] for of in (row_labels, column_labels))
    letters = font(14)
    shape = next(image.shape[1:] for row in rows for image in row)
    height, width = _cell_size(shape, max(map(letters.getlength, column_labels)), least_cell_px)
    headings = [wrapped(label, letters, width, 4) for label in column_labels]
    left = 18 + int(max(map(letters.getlength, row_labels)))
    top = 10 + _LINE_PX * max(map(len, headings))
    top += _TITLE_PX if title else 0
    size = (left + len(headings) * (width + _GAP_PX) + 8, top + len(rows) * (height + _GAP_PX) + 8)
    canvas = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(canvas)
    _write_title(pen, title, width=size[0])
    for column, lines in enumerate(headings):
        x = left + column * (width + _GAP_PX) + width // 2
        y = top - _LINE_PX * len(lines) + _LINE_PX // 2 - 2
        for line, text in enumerate(lines):
            pen.text((x, y + _LINE_PX * line), text, font=letters, fill=_INK, anchor="mm")
    for index, (row, label) in enumerate(zip(rows, row_labels, strict=True)):
        y = top + index * (height + _GAP_PX)
        pen.text((left - 10, y + height // 2), label, font=letters, fill=_INK, anchor="rm")
        for column, image in enumerate(row):
            tile = to_pil(image).resize((width, height), Image.Resampling.NEAREST)
            canvas.paste(tile, (left + column * (width + _GAP_PX), y))
    return png_bytes(canvas, _text_chunks(settings, row_labels, column_labels))


def _cell_size(shape: Sequence[int], label_px: float, least_px: int) -> tuple[int, int]:
    """Height and width of an enlarged image below labels of up to `label_px`."""
    if label_px > max(*shape, least_px) + _GAP_PX:
        least_px = 2 * least_px  # captions are wrapped, and a line should hold some words
    scale = _factor(max(shape), least_px)
    return int(shape[0]) * scale, int(shape[1]) * scale


def _factor(side: int, least_px: int) -> int:
    """By how much an image is enlarged: each pixel is a whole square."""
    return max(1, -(-least_px // side))


def _text_chunks(
    settings: Sequence[Mapping[str, Any]], rows: Sequence[str], columns: Sequence[str]
) -> dict[str, str]:
    """What all `settings` share, and the labels."""
    shared = {
        key: value
        for key, value in (settings[0] if settings else {}).items()
        if all(one[key] == value for one in settings)
    }
    text = {**shared, "rows": " | ".join(rows), "columns": " | ".join(columns)}
    return {TEXT_PREFIX + key: str(value) for key, value in text.items()}


def class_grid(records: Records, *, title: str, columns: int = 10) -> bytes:
    """A PNG with a row of images for each class that has any, its name before them."""
    present = records.present[:_MOST_ROWS]
    names = [records.class_names[label] for label in present]
    rows = []
    for label in present:
        members = (records.labels == label).nonzero().flatten()
        rows.append([records.images[int(i)] for i in _sample_of(members, columns)])
    return labelled_grid(
        rows,
        row_labels=[shortened(name, font(14), 180) for name in names],
        column_labels=[""] * columns,
        title=title,
        least_cell_px=56,
    )


def caption_grid(records: Records, *, title: str, columns: int = 4, rows: int = 3) -> bytes:
    """A PNG of images, the (first) caption of each below it."""
    from PIL import Image, ImageDraw

    side = records.images.shape[-1] * _factor(records.images.shape[-1], 144)
    text_font = font(13)
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
    _write_title(pen, title, width=width)
    for place, (index, caption) in enumerate(zip(chosen, captions, strict=True)):
        x = _MARGIN_PX + place % columns * (side + gap)
        y = _TITLE_PX + place // columns * cell
        tile = to_pil(records.images[index]).resize((side, side), Image.Resampling.NEAREST)
        canvas.paste(tile, (x, y))
        for line, text in enumerate(caption):
            pen.text((x, y + side + 6 + line * line_px), text, font=text_font, fill=_INK)
    return png_bytes(canvas)


def numbered_grid(
    images: Tensor, *, labels: Sequence[str], title: str, least_cell_px: int = 96
) -> "PIL.Image.Image":
    """uint8 (N, C, H, W) in rows of about equal number and length, a label above each image."""
    from PIL import Image, ImageDraw

    columns = math.ceil(math.sqrt(len(images)))
    side = images.shape[-1] * _factor(images.shape[-1], least_cell_px)
    cell = (side + _GAP_PX, side + _GAP_PX + _LINE_PX)
    rows = -(-len(images) // columns)
    width = max(_MARGIN_PX * 2 + columns * cell[0], int(font(13).getlength(title)) + 3 * _MARGIN_PX)
    canvas = Image.new("RGB", (width, _TITLE_PX + rows * cell[1] + _MARGIN_PX), "white")
    pen = ImageDraw.Draw(canvas)
    _write_title(pen, title, width=width)
    for place, (image, label) in enumerate(zip(images, labels, strict=True)):
        x = _MARGIN_PX + place % columns * cell[0]
        y = _TITLE_PX + place // columns * cell[1]
        pen.text((x, y + _LINE_PX // 2), label, font=font(13), fill=_INK, anchor="lm")
        tile = to_pil(image).resize((side, side), Image.Resampling.NEAREST)
        canvas.paste(tile, (x, y + _LINE_PX))
    return canvas


def _sample_of(members: torch.Tensor, count: int) -> torch.Tensor:
    """Up to `count` of `members`, the same each time."""
    order = torch.randperm(len(members), generator=generator_for("samples of a data set"))
    return members[order[:count]]


def _write_title(pen: "PIL.ImageDraw.ImageDraw", title: str, *, width: int) -> None:
    fitted = shortened(title, font(13), width - 2 * _MARGIN_PX)
    pen.text((_MARGIN_PX, _TITLE_PX // 2), fitted, font=font(13), fill=_PALE, anchor="lm")


# Text ---------------------------------------------------------------------------------------------


@cache
def font(size_px: int) -> "PIL.ImageFont.FreeTypeFont":
    """DejaVu Sans, which comes with matplotlib: captions are not always in Latin letters."""
    from matplotlib import get_data_path
    from PIL import ImageFont

    return ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size_px)


def one_line(text: str) -> str:
    """`text` without breaks of lines, which cannot be drawn in one."""
    return " ".join(text.split())


def shortened(text: str, with_font: "PIL.ImageFont.FreeTypeFont", width_px: float) -> str:
    """`text` in one line, or its beginning and an ellipsis that fit into the width."""
    text = one_line(text)
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
