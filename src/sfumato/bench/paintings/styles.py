"""Synthetic paintings in WikiArt's styles.

A painting is made at half its size in three steps: a motif (landscape, portrait, ...) in the
colours of a palette, the brushes of its style, and the finish (contrast, varnish, canvas).
Everything about it is a function of the generator.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageChops, ImageEnhance

from sfumato.bench.paintings.brushes import BRUSHES
from sfumato.bench.paintings.canvas import Colour, Palette, Rng, Size
from sfumato.bench.paintings.motifs import MOTIFS

_GRAIN_PX = 2304
"""Side of the grain that a canvas is cut from; no painting is larger."""
_WHITE = (255, 255, 255)


@dataclass(frozen=True, kw_only=True)
class Style:
    """An entry of styles.yaml. `saturation` and `contrast`: 1 leaves them as they are."""

    count: int
    palettes: Sequence[str]
    genres: Sequence[str]
    paint: Mapping[str, Mapping[str, Any]]
    saturation: float = 1.0
    contrast: float = 1.0
    grain: float = 1.0
    varnish: Colour = _WHITE


STYLES: Mapping[str, Style] = {
    name: Style(**entry)
    for name, entry in yaml.safe_load(
        Path(__file__).with_name("styles.yaml").read_text("utf-8")
    ).items()
}


def paint(style: Style, genre: str, size: Size, rng: Rng) -> Image.Image:
    """A painting of `size` (width, height) pixels, as RGB."""
    palette = Palette.parse(style.palettes[rng.integers(len(style.palettes))], rng)
    half = (-(-size[0] // 2), -(-size[1] // 2))
    image = MOTIFS[genre](rng, half, palette)
    for brush, settings in style.paint.items():
        image = BRUSHES[brush](image, rng, palette, **settings)
    image = ImageEnhance.Color(image).enhance(style.saturation * rng.uniform(0.92, 1.08))
    image = ImageEnhance.Contrast(image).enhance(style.contrast * rng.uniform(0.95, 1.05))
    varnish = tuple(style.varnish)
    if varnish != _WHITE:
        image = ImageChops.multiply(image, Image.new("RGB", half, varnish))
    image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = (int(rng.integers(0, _GRAIN_PX - side + 1)) for side in size)
    grain = _grain(round(7 * style.grain)).crop((left, top, left + size[0], top + size[1]))
    return ImageChops.add(image, grain, offset=-128)


@cache
def _grain(strength: int) -> Image.Image:
    """Canvas and paint seen close: weave and noise about 128 with a deviation of `strength`."""
    rng = np.random.default_rng(strength)
    noise = rng.standard_normal((_GRAIN_PX, _GRAIN_PX), np.float32)
    noise += np.roll(noise, 1, 0) + np.roll(noise, 1, 1)
    place = np.arange(_GRAIN_PX, dtype=np.float32)
    weave = np.sin(2.1 * place)[:, None] * np.sin(1.9 * place)[None]
    values = 128 + strength * (0.55 * noise + 0.6 * weave)
    grey = Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))
    return Image.merge("RGB", [grey] * 3)
