"""Pictures of an evaluation: the first images of each set, and its nearest training images."""

import torch

from sfumato.base.files import write_bytes
from sfumato.base.images import grid, png_bytes, to_pil
from sfumato.evaluation.measure import Evaluated, Nearest
from sfumato.evaluation.subjects import file_name
from sfumato.report.samples import font

_INK, _PALE = "#333333", "#777777"


def write_pictures(evaluated: Evaluated) -> None:
    """`samples-*.png` and `nearest-*.png` beside the card; those that are there stay."""
    for title, images in evaluated.samples.items():
        picture = to_pil(grid(images, columns=10, scale=max(1, 32 // images.shape[-1] * 2)))
        write_bytes(evaluated.folder / f"samples-{file_name(title)}.png", png_bytes(picture))
    for title, nearest in evaluated.nearest.items():
        path = evaluated.folder / f"nearest-{file_name(title)}.png"
        write_bytes(path, nearest_panel(nearest, title=title))


def nearest_panel(nearest: Nearest, *, title: str) -> bytes:
    """A PNG: the images closest to a training image above it; and the same of real test images."""
    from PIL import Image, ImageDraw

    rows = [
        ("generated", nearest.generated),
        ("nearest in training", nearest.of_generated),
        ("real, never trained on", nearest.test),
        ("nearest in training", nearest.of_test),
    ]
    side = nearest.generated.shape[-1] * max(1, -(-64 // nearest.generated.shape[-1]))
    label, gap, margin = font(14), 4, 16
    left = margin + int(max(label.getlength(name) for name, _ in rows)) + 12
    top, between = 40, 18
    columns = max(len(images) for _, images in rows)
    width = left + columns * (side + gap) + margin
    height = top + len(rows) * (side + gap) + between + margin
    canvas = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(canvas)
    heading = f"{title}: the images closest to a training image, the closest first"
    pen.text((margin, top // 2), heading, font=label, fill=_PALE, anchor="lm")
    for row, (name, images) in enumerate(rows):
        y = top + row * (side + gap) + (between if row >= 2 else 0)
        pen.text((left - 12, y + side // 2), name, font=label, fill=_INK, anchor="rm")
        for column, image in enumerate(torch.unbind(images)):
            tile = to_pil(image).resize((side, side), Image.Resampling.NEAREST)
            canvas.paste(tile, (left + column * (side + gap), y))
    return png_bytes(canvas)
