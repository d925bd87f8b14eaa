"""Palettes and shapes that motifs and brushes share."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

Size = tuple[int, int]
Colour = tuple[int, int, int]
Rng = np.random.Generator


class Palette:
    """Colours from dark to light."""

    def __init__(self, colours: np.ndarray | Sequence[Sequence[float]], rng: Rng) -> None:
        self._rng = rng
        array = np.asarray(colours, np.float64)
        self.colours = array[np.argsort(array @ (0.299, 0.587, 0.114), kind="stable")]

    @classmethod
    def parse(cls, codes: str, rng: Rng) -> "Palette":
        """From colours in hexadecimal, all a little shifted, and each by itself."""
        parsed = [[int(code[i : i + 2], 16) for i in (0, 2, 4)] for code in codes.split()]
        colours = np.array(parsed, np.float64)
        colours = colours + rng.normal(0, 9, 3) + rng.normal(0, 7, colours.shape)
        return cls(np.clip(colours, 0, 255), rng)

    def tone(self, lightness: float, *, spread: float = 0.0) -> Colour:
        """Between the palette's colours: 0 is the darkest, 1 the lightest."""
        place = np.clip(lightness + spread * self._rng.uniform(-1, 1), 0, 1)
        place *= len(self.colours) - 1
        low = min(int(place), len(self.colours) - 2)
        mixed = self.colours[low] + (place - low) * (self.colours[low + 1] - self.colours[low])
        return to_colour(mixed)

    def any(self) -> Colour:
        return to_colour(self.colours[self._rng.integers(len(self.colours))])

    def vivid(self) -> Colour:
        """One of the two most saturated."""
        chroma = self.colours.max(1) - self.colours.min(1)
        return to_colour(self.colours[np.argsort(chroma, kind="stable")[-self._rng.integers(1, 3)]])


def to_colour(values: np.ndarray) -> Colour:
    red, green, blue = np.clip(np.rint(values), 0, 255).astype(int).tolist()
    return red, green, blue


def clouds(
    rng: Rng, size: Size, palette: Palette, cells: int, low: float, high: float
) -> Image.Image:
    """A smooth mixture of tones, `cells` across."""
    tones = rng.uniform(low, high, (cells, cells))
    small = np.array([[palette.tone(tone) for tone in row] for row in tones], np.uint8)
    return _enlarged(Image.fromarray(small), size)


def _enlarged(small: Image.Image, size: Size) -> Image.Image:
    """Smoothly to `size`; the last step is bilinear, which costs half of bicubic."""
    eighth = (size[0] // 8, size[1] // 8)
    return small.resize(eighth, Image.Resampling.BICUBIC).resize(size, Image.Resampling.BILINEAR)


def smooth_noise(rng: Rng, size: Size, cells: int) -> np.ndarray:
    """Smooth noise (H, W) float32 in about [0, 1]."""
    small = Image.fromarray(rng.uniform(0, 1, (cells, cells)).astype(np.float32))
    return np.asarray(_enlarged(small, size))


def gradient(size: Size, top: Colour, bottom: Colour) -> Image.Image:
    ends = np.array([[top], [bottom]], np.uint8)
    return Image.fromarray(ends).resize(size, Image.Resampling.BILINEAR)


def disc(pen: ImageDraw.ImageDraw, x: float, y: float, r: float, fill: Colour) -> None:
    pen.ellipse([x - r, y - r, x + r, y + r], fill=fill)


def oval(pen: ImageDraw.ImageDraw, x: float, y: float, a: float, b: float, fill: Colour) -> None:
    pen.ellipse([x - a, y - b, x + a, y + b], fill=fill)
