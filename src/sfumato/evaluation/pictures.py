"""Pictures of an evaluation: the first images of each set, and its nearest training images."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sfumato.base.files import write_bytes
from sfumato.base.images import grid, png_bytes, to_pil
from sfumato.evaluation.image_set import ImageSet
from sfumato.evaluation.reference import Reference, nearest_pairs
from sfumato.evaluation.store import file_name
from sfumato.report.grids import font

_INK, _PALE = "#333333", "#777777"
_SHOWN = 100


def write_pictures(folder: Path, sets: Sequence[ImageSet], reference: Reference) -> None:
    """`samples-*.png` and, where there are enough images, `nearest-*.png` beside the card."""
    for images in sets:
        name = file_name(images.title)
        shown = images.images(range(min(_SHOWN, images.count)))
        picture = to_pil(grid(shown, columns=10, scale=max(1, 32 // shown.shape[-1] * 2)))
        write_bytes(folder / f"samples-{name}.png", png_bytes(picture))
        pairs = nearest_pairs(reference, images)
        if pairs is not None:
            write_bytes(folder / f"nearest-{name}.png", nearest_panel(pairs, title=images.title))


def nearest_panel(pairs: tuple[Tensor, Tensor, Tensor, Tensor], *, title: str) -> bytes:
    """A PNG: the images closest to a training image above it; and the same of real test images."""
    names = ("generated", "nearest in training", "real, never trained on", "nearest in training")
    heading = f"{title}: the images closest to a training image, the closest first"
    return image_rows(list(zip(names, pairs, strict=True)), heading=heading, gap_after=2)


def image_rows(
    rows: Sequence[tuple[str, Tensor | Sequence[Tensor]]], *, heading: str = "", gap_after: int = 0
) -> bytes:
    """A PNG: named rows of images, enlarged; with a gap after every `gap_after` rows."""
    from PIL import Image, ImageDraw

    own = rows[0][1][0].shape[-1]
    side = own * max(1, -(-64 // own))
    label, gap, margin, between = font(14), 4, 16, 18
    left = margin + int(max(label.getlength(name) for name, _ in rows)) + 12
    top = 40 if heading else margin

    def y_of(row: int) -> int:
        return top + row * (side + gap) + (between * (row // gap_after) if gap_after else 0)

    columns = max(len(images) for _, images in rows)
    size = (left + columns * (side + gap) + margin, y_of(len(rows) - 1) + side + gap + margin)
    canvas = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(canvas)
    pen.text((margin, top // 2), heading, font=label, fill=_PALE, anchor="lm")
    for row, (name, images) in enumerate(rows):
        y = y_of(row)
        pen.text((left - 12, y + side // 2), name, font=label, fill=_INK, anchor="rm")
        for column, image in enumerate(
            torch.unbind(images) if isinstance(images, Tensor) else images
        ):
            tile = to_pil(image).resize((side, side), Image.Resampling.NEAREST)
            canvas.paste(tile, (left + column * (side + gap), y))
    return png_bytes(canvas)
