"""Pillow alone, as a person would write it: what our decoding is measured against.

In a module of its own, for the processes that run it import nothing else.
"""

import io
from collections.abc import Sequence

from PIL import Image

_images: Sequence[bytes] = ()


def hold(images: Sequence[bytes]) -> None:
    """Keep the encoded images in this process."""
    global _images
    _images = images


def decode_held(numbers: range, *, side: int, reduced: bool) -> None:
    """Decode those images and squash them to `side`, JPEGs at reduced scale where asked for."""
    for number in numbers:
        image = Image.open(io.BytesIO(_images[number]))
        if reduced:
            image.draft(None, (2 * side, 2 * side))
        image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
