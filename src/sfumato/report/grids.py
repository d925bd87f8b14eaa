"""Labelled grids of pictures."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sfumato.base.images import TEXT_PREFIX, png_bytes, to_pil
from sfumato.report.samples import font, wrapped

if TYPE_CHECKING:
    from torch import Tensor

_LINE_PX = 18


def labelled_grid(
    rows: "Sequence[Sequence[Tensor] | Tensor]",
    *,
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    settings: Sequence[Mapping[str, Any]] = (),
    least_cell_px: int = 64,
    gap_px: int = 4,
) -> bytes:
    """A PNG of `rows` of images, uint8 (C, H, W), with a label for each row and column.

    Small images are enlarged by whole factors. Text chunks hold what all `settings` share.
    """
    from PIL import Image, ImageDraw

    letters = font(14)
    side = max(rows[0][0].shape[1:])
    if any(letters.getlength(label) > max(side, least_cell_px) + gap_px for label in column_labels):
        least_cell_px = 2 * least_cell_px  # captions are wrapped, and a line should hold some words
    scale = max(1, -(-least_cell_px // side))
    height, width = (int(n) * scale for n in rows[0][0].shape[1:])
    headings = [wrapped(label, letters, width, 4) for label in column_labels]
    left = 18 + int(max(map(letters.getlength, row_labels)))
    top = 10 + _LINE_PX * max(map(len, headings))
    size = (left + len(rows[0]) * (width + gap_px) + 8, top + len(rows) * (height + gap_px) + 8)
    canvas = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(canvas)
    style: dict[str, Any] = {"font": letters, "fill": "#333333"}
    for column, lines in enumerate(headings):
        x = left + column * (width + gap_px) + width // 2
        for line, text in enumerate(lines):
            y = top - _LINE_PX * (len(lines) - line) + _LINE_PX // 2 - 2
            pen.text((x, y), text, anchor="mm", **style)
    for index, (row, label) in enumerate(zip(rows, row_labels, strict=True)):
        y = top + index * (height + gap_px)
        pen.text((left - 10, y + height // 2), label, anchor="rm", **style)
        for column, image in enumerate(row):
            tile = to_pil(image).resize((width, height), Image.Resampling.NEAREST)
            canvas.paste(tile, (left + column * (width + gap_px), y))
    return png_bytes(canvas, _text_chunks(settings, row_labels, column_labels))


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
