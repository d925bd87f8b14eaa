"""Synthetic paintings: 27 styles as palettes, motifs and ways to lay paint. Nothing is copied.

A painting is drawn at half its size by Pillow, in three steps: a motif (landscape, portrait, ...)
in the colours of the style's palette, the style's own way of painting it, and the finish
(contrast, varnish, canvas). Everything about it is a function of the generator that it is given.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter

Size = tuple[int, int]
Colour = tuple[int, int, int]
Rng = np.random.Generator
_GRAIN_PX = 2304
"""Side of the grain that a canvas is cut from; no painting is larger."""


class Palette:
    """Colours from dark to light."""

    def __init__(self, colours: Sequence[Sequence[float]], rng: Rng) -> None:
        self._rng = rng
        array = np.asarray(colours, np.float64)
        self.colours = array[np.argsort(array @ (0.299, 0.587, 0.114), kind="stable")]

    def tone(self, lightness: float, *, spread: float = 0.0) -> Colour:
        """Between the palette's colours: 0 is the darkest, 1 the lightest."""
        place = np.clip(lightness + spread * self._rng.uniform(-1, 1), 0, 1)
        place *= len(self.colours) - 1
        low = min(int(place), len(self.colours) - 2)
        mixed = self.colours[low] + (place - low) * (self.colours[low + 1] - self.colours[low])
        return _colour(mixed)

    def any(self) -> Colour:
        return _colour(self.colours[self._rng.integers(len(self.colours))])

    def vivid(self) -> Colour:
        """One of the two most saturated."""
        chroma = self.colours.max(1) - self.colours.min(1)
        return _colour(self.colours[np.argsort(chroma, kind="stable")[-self._rng.integers(1, 3)]])


def _colour(values: np.ndarray) -> Colour:
    red, green, blue = np.clip(np.rint(values), 0, 255).astype(int).tolist()
    return red, green, blue


def _parse(text: str) -> list[list[int]]:
    return [[int(code[i : i + 2], 16) for i in (0, 2, 4)] for code in text.split()]


def _clouds(rng: Rng, size: Size, palette: Palette, cells: int, low: float, high: float):
    """A smooth mixture of tones, `cells` across."""
    tones = rng.uniform(low, high, (cells, cells))
    small = np.array([[palette.tone(tone) for tone in row] for row in tones], np.uint8)
    return _enlarged(Image.fromarray(small), size)


def _enlarged(small: Image.Image, size: Size) -> Image.Image:
    """Smoothly to `size`; the last step is bilinear, which costs half of bicubic."""
    eighth = (size[0] // 8, size[1] // 8)
    return small.resize(eighth, Image.Resampling.BICUBIC).resize(size, Image.Resampling.BILINEAR)


def _field(rng: Rng, size: Size, cells: int) -> np.ndarray:
    """Smooth noise (H, W) float32 in about [0, 1]."""
    small = Image.fromarray(rng.uniform(0, 1, (cells, cells)).astype(np.float32))
    return np.asarray(_enlarged(small, size))


def _gradient(size: Size, top: Colour, bottom: Colour) -> Image.Image:
    ends = np.array([[top], [bottom]], np.uint8)
    return Image.fromarray(ends).resize(size, Image.Resampling.BILINEAR)


# Motifs -------------------------------------------------------------------------------------------


def _landscape(rng: Rng, size: Size, p: Palette) -> Image.Image:
    w, h = size
    horizon = rng.uniform(0.35, 0.6) * h
    image = _gradient(size, p.tone(0.75, spread=0.15), p.tone(0.95, spread=0.1))
    clouds = _clouds(rng, size, p, 7, 0.65, 1.0)
    image = Image.blend(image, clouds, 0.45)
    pen = ImageDraw.Draw(image)
    if rng.random() < 0.6:
        _disc(
            pen,
            rng.uniform(0.1, 0.9) * w,
            rng.uniform(0.3, 0.9) * horizon,
            rng.uniform(0.03, 0.08) * w,
            p.tone(1.0),
        )
    layers = int(rng.integers(2, 5))
    for layer in range(layers):
        depth = (layer + 1) / layers
        base = horizon + (h - horizon) * 0.55 * (depth - 1 / layers)
        ridge = _ridge(rng, w, base, (0.10 + 0.08 * rng.random()) * h)
        pen.polygon([(0, h), *ridge, (w, h)], fill=p.tone(0.62 - 0.4 * depth, spread=0.1))
    if rng.random() < 0.4:
        top = horizon + 0.45 * (h - horizon)
        for line in range(24):
            y = top + (h - top) * line / 24
            x, length = rng.uniform(-0.2, 0.8) * w, rng.uniform(0.2, 0.8) * w
            pen.line(
                [(x, y), (x + length, y)], fill=p.tone(0.75, spread=0.25), width=max(2, h // 70)
            )
    for _ in range(int(rng.integers(0, 6))):
        x, y, r = rng.uniform(0, w), rng.uniform(horizon, 0.9 * h), rng.uniform(0.04, 0.1) * w
        pen.line([(x, y), (x, y + 2 * r)], fill=p.tone(0.08), width=max(2, int(r / 5)))
        for _ in range(5):
            dx, dy = rng.normal(0, 0.5 * r, 2)
            _disc(
                pen, x + dx, y - 0.6 * r + dy, r * rng.uniform(0.4, 0.8), p.tone(0.25, spread=0.15)
            )
    return image


def _ridge(rng: Rng, width: int, base: float, rise: float) -> list[tuple[float, float]]:
    points = int(rng.integers(6, 14))
    xs = np.linspace(0, width, points)
    return [
        (float(x), base - rise * float(u))
        for x, u in zip(xs, rng.uniform(-0.4, 1, points), strict=True)
    ]


def _disc(pen: ImageDraw.ImageDraw, x: float, y: float, r: float, fill: Colour) -> None:
    pen.ellipse([x - r, y - r, x + r, y + r], fill=fill)


def _oval(pen: ImageDraw.ImageDraw, x: float, y: float, a: float, b: float, fill: Colour) -> None:
    pen.ellipse([x - a, y - b, x + a, y + b], fill=fill)


def _portrait(rng: Rng, size: Size, p: Palette) -> Image.Image:
    w, h = size
    image = _clouds(rng, size, p, 4, 0.02, 0.4)
    pen = ImageDraw.Draw(image)
    r = rng.uniform(0.13, 0.19) * min(w, h)
    x, y = w * rng.uniform(0.42, 0.58), h * rng.uniform(0.32, 0.42)
    skin, shade = p.tone(0.86, spread=0.06), p.tone(0.62, spread=0.06)
    coat, hair = p.tone(0.3, spread=0.25), p.tone(0.15, spread=0.15)
    turn = rng.uniform(-0.35, 0.35) * r
    _oval(pen, x, y + 5.2 * r, 3.3 * r, 3.1 * r, coat)
    pen.polygon(
        [(x - 0.9 * r, y + 2.2 * r), (x + 0.9 * r, y + 2.2 * r), (x, y + 4 * r)], fill=p.tone(0.95)
    )
    _oval(pen, x - 0.1 * turn, y - 0.25 * r, 1.35 * r, 1.65 * r, hair)
    pen.rectangle([x - 0.45 * r, y + r, x + 0.45 * r, y + 2.3 * r], fill=shade)
    _oval(pen, x, y, r, 1.35 * r, skin)
    pen.pieslice(
        [x - r, y - 1.35 * r, x + r, y + 1.35 * r],
        *((-90, 90) if turn < 0 else (90, 270)),
        fill=shade,
    )
    _oval(pen, x + 0.35 * turn, y, 0.85 * r, 1.3 * r, skin)
    pen.pieslice([x - 1.1 * r, y - 1.6 * r, x + 1.1 * r, y - 0.1 * r], 180, 360, fill=hair)
    for side in (-1, 1):
        ex = x + turn + side * 0.4 * r
        _oval(pen, ex, y - 0.02 * r, 0.2 * r, 0.1 * r, p.tone(1.0))
        _disc(pen, ex, y - 0.02 * r, 0.09 * r, p.tone(0.0))
        pen.line(
            [(ex - 0.22 * r, y - 0.24 * r), (ex + 0.22 * r, y - 0.26 * r)],
            fill=hair,
            width=max(2, int(r / 12)),
        )
    pen.polygon(
        [(x + turn, y), (x + 1.6 * turn, y + 0.5 * r), (x + 0.8 * turn, y + 0.52 * r)], fill=shade
    )
    _oval(pen, x + turn, y + 0.78 * r, 0.3 * r, 0.09 * r, p.vivid())
    return image


def _still_life(rng: Rng, size: Size, p: Palette) -> Image.Image:
    w, h = size
    image = _clouds(rng, size, p, 3, 0.1, 0.6)
    pen = ImageDraw.Draw(image)
    edge = h * rng.uniform(0.55, 0.68)
    pen.polygon(
        [(0, edge), (w, edge + rng.uniform(-0.04, 0.04) * h), (w, h), (0, h)],
        fill=p.tone(0.7, spread=0.2),
    )
    x, bottle = w * rng.uniform(0.2, 0.8), p.tone(0.2, spread=0.15)
    pen.rectangle([x - 0.05 * w, edge - 0.25 * h, x + 0.05 * w, edge + 0.1 * h], fill=bottle)
    pen.rectangle([x - 0.018 * w, edge - 0.42 * h, x + 0.018 * w, edge - 0.24 * h], fill=bottle)
    pen.line([(x - 0.03 * w, edge - 0.2 * h), (x - 0.03 * w, edge)], fill=p.tone(0.9), width=3)
    bowl = w * rng.uniform(0.3, 0.7)
    pen.pieslice(
        [bowl - 0.22 * w, edge - 0.2 * h, bowl + 0.22 * w, edge + 0.22 * h],
        0,
        180,
        fill=p.tone(0.5, spread=0.3),
    )
    for _ in range(int(rng.integers(6, 13))):
        r = rng.uniform(0.04, 0.075) * min(w, h)
        fx, fy = rng.normal(bowl, 0.16 * w), edge + rng.uniform(-0.06, 0.14) * h
        fruit = p.vivid() if rng.random() < 0.6 else p.any()
        _disc(pen, fx + 0.3 * r, fy + 0.3 * r, r, p.tone(0.1))
        _disc(pen, fx, fy, r, fruit)
        _disc(pen, fx - 0.35 * r, fy - 0.35 * r, 0.25 * r, p.tone(1.0))
    return image


def _city(rng: Rng, size: Size, p: Palette) -> Image.Image:
    w, h = size
    image = _gradient(size, p.tone(0.7, spread=0.2), p.tone(0.95))
    pen = ImageDraw.Draw(image)
    ground = h * rng.uniform(0.7, 0.85)
    for depth in (0.75, 0.5, 0.3):
        x = -0.05 * w
        while x < w:
            width, top = (
                rng.uniform(0.08, 0.18) * w,
                ground - h * rng.uniform(0.2, 0.6) * (1.2 - depth),
            )
            wall = p.tone(depth, spread=0.2)
            pen.rectangle([x, top, x + width, ground], fill=wall)
            if rng.random() < 0.6:
                roof = [(x, top), (x + width / 2, top - 0.35 * width), (x + width, top)]
                pen.polygon(roof, fill=p.tone(depth - 0.2, spread=0.1))
            step = width / 4
            for row in range(int((ground - top) / (1.6 * step))):
                for column in range(3):
                    wx, wy = x + (column + 0.6) * step, top + (row + 0.4) * 1.6 * step
                    pen.rectangle(
                        [wx, wy, wx + 0.45 * step, wy + 0.8 * step],
                        fill=p.tone(0.95 if rng.random() < 0.4 else 0.05),
                    )
            x += width * rng.uniform(0.9, 1.2)
    pen.polygon([(0, ground), (w, ground), (w, h), (0, h)], fill=p.tone(0.55, spread=0.2))
    pen.polygon(
        [(0.45 * w, ground), (0.55 * w, ground), (0.85 * w, h), (0.15 * w, h)],
        fill=p.tone(0.35, spread=0.1),
    )
    for _ in range(int(rng.integers(2, 9))):
        _figure(pen, rng, p, rng.uniform(0.1, 0.9) * w, h * rng.uniform(0.86, 0.98), 0.14 * h)
    return image


def _figure(
    pen: ImageDraw.ImageDraw, rng: Rng, p: Palette, x: float, y: float, tall: float
) -> None:
    """A robed figure that stands at (x, y)."""
    wide, robe = tall * rng.uniform(0.16, 0.24), p.vivid() if rng.random() < 0.5 else p.any()
    lean = rng.uniform(-0.3, 0.3) * wide
    pen.polygon(
        [
            (x - wide, y),
            (x - 0.6 * wide + lean, y - 0.78 * tall),
            (x + 0.6 * wide + lean, y - 0.78 * tall),
            (x + wide, y),
        ],
        fill=robe,
    )
    fold = _colour(0.6 * np.array(robe))
    for place in (-0.4, 0.1, 0.5):
        pen.line(
            [(x + place * wide, y), (x + 0.5 * place * wide + lean, y - 0.6 * tall)],
            fill=fold,
            width=max(2, int(wide / 9)),
        )
    _oval(pen, x + lean, y - 0.9 * tall, 0.1 * tall, 0.125 * tall, p.tone(0.2, spread=0.15))
    _oval(pen, x + lean, y - 0.88 * tall, 0.08 * tall, 0.1 * tall, p.tone(0.85, spread=0.06))


def _figures(rng: Rng, size: Size, p: Palette) -> Image.Image:
    """A group before arches: genre scenes and religious paintings."""
    w, h = size
    image = _landscape(rng, size, p) if rng.random() < 0.5 else _clouds(rng, size, p, 4, 0.2, 0.6)
    pen = ImageDraw.Draw(image)
    arches = int(rng.integers(0, 4))
    for arch in range(arches):
        left, right = (arch + 0.15) * w / arches, (arch + 0.85) * w / arches
        stone = p.tone(0.5, spread=0.1)
        pen.rectangle(
            [left - 0.1 * w / arches, 0.1 * h, right + 0.1 * w / arches, 0.75 * h], fill=stone
        )
        pen.pieslice([left, 0.18 * h, right, 0.6 * h], 180, 360, fill=p.tone(0.85))
        pen.rectangle([left, 0.38 * h, right, 0.75 * h], fill=p.tone(0.75))
    pen.rectangle([0, 0.75 * h, w, h], fill=p.tone(0.45, spread=0.15))
    count = int(rng.integers(2, 8))
    for x in np.sort(rng.uniform(0.1, 0.9, count)):
        _figure(pen, rng, p, float(x) * w, h * rng.uniform(0.82, 0.97), h * rng.uniform(0.42, 0.6))
    return image


def _blobs(rng: Rng, size: Size, p: Palette) -> Image.Image:
    w, h = size
    image = _clouds(rng, size, p, 5, 0.0, 1.0)
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(5, 14))):
        x, y = rng.uniform(0, w), rng.uniform(0, h)
        _oval(pen, x, y, *(rng.uniform(0.05, 0.25, 2) * min(w, h)), p.any())
    return image


def _flowers(rng: Rng, size: Size, p: Palette) -> Image.Image:
    """Curling stems with blossoms: ornament."""
    w, h = size
    image = _clouds(rng, size, p, 3, 0.6, 1.0)
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(5, 10))):
        x, y, angle = rng.uniform(0, w), h * 1.02, -np.pi / 2
        bend, points = rng.normal(0, 0.05), []
        for _ in range(40):
            points.append((x, y))
            angle += bend + 0.02 * rng.normal()
            bend *= 1.02
            x, y = x + 0.025 * h * np.cos(angle), y + 0.025 * h * np.sin(angle)
        pen.line(points, fill=p.tone(0.25, spread=0.1), width=max(3, w // 90), joint="curve")
        for place in (12, 20, 28):
            _oval(pen, *points[place], 0.035 * w, 0.016 * h, p.tone(0.35, spread=0.1))
        petal, r = p.vivid(), 0.05 * min(w, h)
        for turn in np.linspace(0, 2 * np.pi, 7)[:-1]:
            _disc(pen, x + r * np.cos(turn), y + r * np.sin(turn), 0.7 * r, petal)
        _disc(pen, x, y, 0.5 * r, p.tone(0.95))
    return image


MOTIFS: Mapping[str, Callable[[Rng, Size, Palette], Image.Image]] = {
    "abstract_painting": _blobs,
    "cityscape": _city,
    "genre_painting": _figures,
    "illustration": _flowers,
    "landscape": _landscape,
    "portrait": _portrait,
    "religious_painting": _figures,
    "still_life": _still_life,
}
"""How a painting of each of WikiArt's genres is composed; the genres without one are not made."""


# Ways to lay paint --------------------------------------------------------------------------------


def _smooth(image: Image.Image, rng: Rng, p: Palette, *, blur: float, light: float) -> Image.Image:
    """Glazes without visible strokes: soft edges, a cone of light (`light` 0 to 1) on the motif."""
    image = image.filter(ImageFilter.BoxBlur(blur))
    shading = 0.75 + 0.5 * _field(rng, image.size, 9)
    w, h = image.size
    y, x = np.ogrid[:h, :w]
    cx, cy = rng.uniform(0.35, 0.65) * w, rng.uniform(0.3, 0.5) * h
    away = ((x - cx) / (0.5 * w)) ** 2 + ((y - cy) / (0.55 * h)) ** 2
    shading = shading * (1 - light + light * 1.35 * np.exp(-1.3 * away.astype(np.float32)))
    mask = Image.fromarray(np.clip(shading * 128, 0, 255).astype(np.uint8))
    return (
        ImageChops.overlay(image, Image.merge("RGB", [mask] * 3))
        if light < 0.3
        else (
            ImageChops.multiply(
                image, Image.merge("RGB", [mask.point(lambda v: min(255, v * 2))] * 3)
            )
        )
    )


def _strokes(
    image: Image.Image,
    rng: Rng,
    p: Palette,
    *,
    count: int,
    length: float,
    width: float,
    jitter: float,
    swirl: float = 1.0,
    ground: float = 1.0,
) -> Image.Image:
    """Brush strokes of `length` and `width` (shares of the short side) along a smooth flow."""
    w, h = image.size
    side = min(w, h)
    pixels = np.asarray(image.reduce(4))
    out = Image.blend(Image.new("RGB", image.size, p.tone(0.6)), image, ground)
    pen = ImageDraw.Draw(out)
    angles = _field(rng, image.size, 5) * 2 * np.pi * swirl + rng.uniform(0, np.pi)
    for coarse in (1.8, 1.0):
        n = int(count / coarse**2)
        xs, ys = rng.integers(0, w, n), rng.integers(0, h, n)
        shift = rng.normal(0, jitter, (n, 1)) + rng.normal(0, 0.6 * jitter, (n, 3))
        colours = np.clip(pixels[ys // 4, xs // 4] + shift, 0, 255).astype(np.uint8).tolist()
        reach = coarse * length * side * rng.uniform(0.6, 1.4, n) / 2
        turn = angles[ys, xs] + rng.normal(0, 0.15, n)
        dx, dy = reach * np.cos(turn), reach * np.sin(turn)
        ends = np.stack([xs - dx, ys - dy, xs + dx, ys + dy], 1).tolist()
        wide = np.maximum(1, coarse * width * side * rng.uniform(0.6, 1.4, n)).astype(int).tolist()
        for end, colour, thick in zip(ends, colours, wide, strict=True):
            pen.line(end, fill=tuple(colour), width=thick)
    return out


def _dots(image: Image.Image, rng: Rng, p: Palette, *, radius: float, jitter: float) -> Image.Image:
    """Dots of unmixed colour on a light ground."""
    w, h = image.size
    r = max(2.0, radius * min(w, h))
    pixels = np.asarray(image.reduce(4))
    out = Image.new("RGB", image.size, p.tone(0.97))
    pen = ImageDraw.Draw(out)
    n = int(1.15 * w * h / (np.pi * r * r))
    xs, ys = rng.uniform(0, w, n), rng.uniform(0, h, n)
    colours = pixels[ys.astype(int) // 4, xs.astype(int) // 4] + rng.normal(0, jitter, (n, 3))
    colours = np.clip(colours, 0, 255).astype(np.uint8).tolist()
    boxes = np.stack([xs - r, ys - r, xs + r, ys + r], 1).tolist()
    for box, colour in zip(boxes, colours, strict=True):
        pen.ellipse(box, fill=tuple(colour))
    return out


def _facets(
    image: Image.Image,
    rng: Rng,
    p: Palette,
    *,
    cells: int,
    shift: float,
    outline: bool,
    patterns: float = 0.0,
) -> Image.Image:
    """The motif broken into facets, each seen from elsewhere; `patterns` is the share that is
    pasted paper with stripes."""
    w, h = image.size
    pixels = np.asarray(image.reduce(8))
    out = image.copy()
    pen = ImageDraw.Draw(out)
    rows = max(3, round(cells * h / max(w, h)))
    columns = max(3, round(cells * w / max(w, h)))
    grid = np.stack(np.meshgrid(np.arange(columns + 1.0), np.arange(rows + 1.0)), -1)
    grid += rng.uniform(-0.45, 0.45, grid.shape)
    grid *= (w / columns, h / rows)
    facets = []
    for row in range(rows):
        for column in range(columns):
            corners = [
                grid[row, column],
                grid[row, column + 1],
                grid[row + 1, column + 1],
                grid[row + 1, column],
            ]
            if rng.random() < 0.65:
                k = int(rng.integers(2))
                facets += [
                    [corners[(k + i) % 4] for i in (0, 1, 2)],
                    [corners[(k + i) % 4] for i in (2, 3, 0)],
                ]
            else:
                facets.append(corners)
    for index in rng.permutation(len(facets)).tolist():
        corners = np.array(facets[index])
        middle = corners.mean(0) + rng.normal(0, shift * min(w, h), 2)
        x, y = int(np.clip(middle[0], 0, w - 1)), int(np.clip(middle[1], 0, h - 1))
        colour = pixels[y // 8, x // 8] * rng.uniform(0.72, 1.28)
        points = [tuple(point) for point in corners.tolist()]
        pen.polygon(points, fill=_colour(colour))
        inner = corners[0] + 0.55 * (corners - corners[0])
        pen.polygon([tuple(point) for point in inner.tolist()], fill=_colour(colour * 1.14))
        if rng.random() < patterns:
            _stripes(pen, corners, rng, p)
        if outline:
            pen.line([*points, points[0]], fill=p.tone(0.03), width=max(2, min(w, h) // 260))
    return out


def _stripes(pen: ImageDraw.ImageDraw, corners: np.ndarray, rng: Rng, p: Palette) -> None:
    """Lines of print between two sides of a facet."""
    pen.polygon([tuple(point) for point in corners.tolist()], fill=p.tone(0.93))
    a, b, c, d = corners[0], corners[1], corners[-1], corners[-2]
    for share in np.linspace(0.06, 0.94, int(rng.integers(8, 16))):
        start, end = a + share * (c - a), b + share * (d - b)
        pen.line([*start.tolist(), *end.tolist()], fill=p.tone(0.2), width=2)


def _flat(
    image: Image.Image,
    rng: Rng,
    p: Palette,
    *,
    colours: int,
    line: int,
    halftone: float = 0.0,
) -> Image.Image:
    """Few flat colours, ink lines (`line` pixels) where they meet, perhaps dots of print."""
    inks = Palette([p.tone(i / (colours - 1)) for i in range(colours)], rng).colours
    if colours >= len(p.colours):
        inks = np.concatenate([inks, p.colours])
    book = Image.new("P", (1, 1))
    book.putpalette(np.rint(inks).astype(np.uint8).tobytes())
    soft = image.filter(ImageFilter.BoxBlur(2.5))
    flat = soft.quantize(palette=book, dither=Image.Dither.NONE)
    out = flat.convert("RGB")
    if halftone:
        out = _halftone(out, soft, p, halftone)
    if line:
        steps = np.asarray(flat)
        meet = np.zeros(steps.shape, np.uint8)
        meet[:-1] |= steps[:-1] != steps[1:]
        meet[:, :-1] |= steps[:, :-1] != steps[:, 1:]
        ink = Image.fromarray(meet * 255).filter(ImageFilter.MaxFilter(2 * (line // 2) + 1))
        out.paste(p.tone(0.0), mask=ink)
    return out


def _halftone(out: Image.Image, soft: Image.Image, p: Palette, pitch: float) -> Image.Image:
    """Ben-Day dots: larger where the motif is darker."""
    w, h = out.size
    step = max(6, int(pitch * min(w, h)))
    y, x = np.ogrid[:h, :w]
    wave = np.cos(2 * np.pi * (x + y) / step) + np.cos(2 * np.pi * (x - y) / step)
    dark = 1 - np.asarray(soft.convert("L"), np.float32) / 255
    mask = (wave > 2.2 - 2.6 * dark) & (dark < 0.75)
    out.paste(p.vivid(), mask=Image.fromarray(mask.astype(np.uint8) * 255))
    return out


def _bands(image: Image.Image, rng: Rng, p: Palette, *, soft: float) -> Image.Image:
    """Stacked fields of colour with breathing edges; the motif is not used."""
    w, h = image.size
    out = _clouds(rng, image.size, p, 3, 0.2, 0.6)
    pen = ImageDraw.Draw(out)
    fields = int(rng.integers(2, 5))
    cuts = (np.arange(1, fields) + rng.uniform(-0.35, 0.35, fields - 1)) / fields
    tops = [0.05, *(cuts + 0.02).tolist()]
    bottoms = [*(cuts - 0.02).tolist(), 0.95]
    margin = rng.uniform(0.05, 0.12)
    for top, bottom in zip(tops, bottoms, strict=True):
        pen.rectangle([margin * w, top * h, (1 - margin) * w, bottom * h], fill=p.any())
    out = out.filter(ImageFilter.BoxBlur(soft * min(w, h)))
    return Image.blend(
        out, ImageChops.overlay(out, _clouds(rng, image.size, p, 24, 0.2, 0.9)), 0.25
    )


def _sparse(image: Image.Image, rng: Rng, p: Palette) -> Image.Image:
    """One tone and very little on it: a square, a disc, a few rules; the motif is not used."""
    w, h = image.size
    ground = p.tone(1.0 if rng.random() < 0.8 else 0.0)
    ink = p.tone(0.0) if sum(ground) > 380 else p.tone(1.0)
    out = Image.new("RGB", image.size, ground)
    pen = ImageDraw.Draw(out)
    kind = int(rng.integers(4))
    if kind == 0:
        r = rng.uniform(0.15, 0.33) * min(w, h)
        pen.rectangle([w / 2 - r, h / 2 - r, w / 2 + r, h / 2 + r], fill=p.any())
    elif kind == 1:
        _disc(
            pen, w / 2, h * rng.uniform(0.35, 0.65), rng.uniform(0.12, 0.3) * min(w, h), p.vivid()
        )
    elif kind == 2:
        for place in np.linspace(0.15, 0.85, int(rng.integers(3, 12))).tolist():
            pen.line(
                [(0.12 * w, place * h), (0.88 * w, place * h)], fill=ink, width=max(2, h // 150)
            )
    else:
        share = rng.uniform(0.2, 0.8)
        pen.rectangle(
            [0, share * h, w, h] if rng.random() < 0.5 else [share * w, 0, w, h], fill=p.any()
        )
    return out


def _gestures(image: Image.Image, rng: Rng, p: Palette, *, count: int, width: float) -> Image.Image:
    """Broad sweeps of a dry brush: many bristles side by side."""
    w, h = image.size
    out = Image.blend(image, Image.new("RGB", image.size, p.tone(0.9)), 0.35)
    pen = ImageDraw.Draw(out)
    side = min(w, h)
    for _ in range(count):
        start, end = rng.uniform(-0.1, 1.1, 2) * (w, h), rng.uniform(-0.1, 1.1, 2) * (w, h)
        bow = (start + end) / 2 + rng.normal(0, 0.3, 2) * side
        t = np.linspace(0, 1, 14)[:, None]
        path = (1 - t) ** 2 * start + 2 * t * (1 - t) * bow + t**2 * end
        across = np.gradient(path, axis=0)[:, ::-1] * (-1, 1)
        across /= np.linalg.norm(across, axis=1, keepdims=True) + 1e-9
        colour, broad = np.array(p.any()), width * side * rng.uniform(0.4, 1.6)
        for bristle in np.linspace(-0.5, 0.5, 11):
            if rng.random() < 0.85:
                line = path + across * bristle * broad
                first, last = (
                    sorted(rng.integers(0, 14, 2).tolist()) if rng.random() < 0.3 else (0, 13)
                )
                pen.line(
                    [tuple(point) for point in line[first : last + 1].tolist()],
                    fill=_colour(colour + rng.normal(0, 14)),
                    joint="curve",
                    width=max(2, int(broad / 8)),
                )
    return out


def _drips(image: Image.Image, rng: Rng, p: Palette, *, threads: int) -> Image.Image:
    """Threads and splashes of thrown paint; the motif is not used."""
    w, h = image.size
    out = _clouds(rng, image.size, p, 6, 0.75, 1.0)
    pen = ImageDraw.Draw(out)
    for _ in range(threads):
        angle = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.55, 60))
        step = rng.uniform(0.01, 0.035) * min(w, h)
        xs = rng.uniform(0, w) + np.cumsum(step * np.cos(angle))
        ys = rng.uniform(0, h) + np.cumsum(step * np.sin(angle))
        path = [tuple(point) for point in np.stack([xs, ys], 1).tolist()]
        pen.line(path, fill=p.any(), width=int(rng.integers(1, 7)), joint="curve")
    n = 1200
    radii = 0.7 * (1 + rng.pareto(1.7, n)).clip(0, 25)
    for x, y, r in zip(
        rng.uniform(0, w, n).tolist(), rng.uniform(0, h, n).tolist(), radii.tolist(), strict=True
    ):
        _disc(pen, x, y, r, p.any())
    return out


def _collage(image: Image.Image, rng: Rng, p: Palette) -> Image.Image:
    """Torn posters, layer on layer: scraps of other motifs, print and bare wall."""
    w, h = image.size
    out = Image.blend(image, Image.new("RGB", image.size, p.tone(0.7)), 0.4)
    for _ in range(int(rng.integers(9, 17))):
        sw, sh = (rng.uniform(0.15, 0.5, 2) * (w, h)).astype(int).tolist()
        x, y = rng.integers(-sw // 3, w - sw // 2), rng.integers(-sh // 3, h - sh // 2)
        scrap = Image.new("RGB", (sw, sh), p.any())
        pen = ImageDraw.Draw(scrap)
        if rng.random() < 0.5:
            for line in range(4, sh, max(6, sh // 12)):
                pen.line(
                    [(4, line), (int(sw * rng.uniform(0.5, 1)), line)], fill=p.tone(0.05), width=3
                )
        else:
            _disc(pen, sw / 2, sh / 2, 0.4 * min(sw, sh), p.any())
        mask = Image.new("L", (sw, sh), 0)
        edge = [
            (sw * (0.5 + 0.5 * np.cos(a) * r), sh * (0.5 + 0.5 * np.sin(a) * r))
            for a, r in zip(np.linspace(0, 2 * np.pi, 28), rng.uniform(0.75, 1.4, 28), strict=True)
        ]
        ImageDraw.Draw(mask).polygon(edge, fill=255)
        out.paste(scrap, (int(x), int(y)), mask)
    return out


def _gold(image: Image.Image, rng: Rng, p: Palette) -> Image.Image:
    """A panel with an arch, its gold ground punched with dots."""
    w, h = image.size
    gold = Image.blend(
        Image.new("RGB", image.size, (205, 160, 62)),
        _clouds(rng, image.size, p, 12, 0.5, 1.0),
        0.25,
    )
    mask = Image.new("L", image.size, 0)
    pen = ImageDraw.Draw(mask)
    pen.pieslice([0.06 * w, 0.04 * h, 0.94 * w, 0.9 * h], 180, 360, fill=255)
    pen.rectangle([0.06 * w, 0.46 * h, 0.94 * w, 0.95 * h], fill=255)
    gold.paste(image.filter(ImageFilter.BoxBlur(1)), mask=mask)
    pen = ImageDraw.Draw(gold)
    for turn in np.linspace(np.pi, 2 * np.pi, 40).tolist():
        x, y = (0.5 + 0.47 * np.cos(turn)) * w, (0.47 + 0.46 * np.sin(turn)) * h
        _disc(pen, x, y, 0.008 * min(w, h), (240, 210, 120))
    return gold


def _after(first: Callable[..., Image.Image], then: Callable[..., Image.Image]):
    """Two ways of painting, one over the other."""

    def paint(image: Image.Image, rng: Rng, p: Palette) -> Image.Image:
        return then(first(image, rng, p), rng, p)

    return paint


# Styles -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Style:
    """`count`: how many paintings of the style WikiArt has; `palettes`: colours in hexadecimal, one
    of them is drawn; `genres`: motifs, drawn evenly; `saturation` and `contrast`: 1 leaves them."""

    count: int
    palettes: Sequence[str]
    genres: Sequence[str]
    paint: Callable[[Image.Image, Rng, Palette], Image.Image]
    saturation: float = 1.0
    contrast: float = 1.0
    grain: float = 1.0
    varnish: Colour = field(default=(255, 255, 255))


_FIGURES = ("portrait", "religious_painting", "genre_painting")
_WORLD = ("landscape", "cityscape", "portrait", "still_life", "genre_painting")

STYLES: Mapping[str, Style] = {
    "Abstract_Expressionism": Style(
        count=2782,
        palettes=("101010 e8e0d0 c03020 f0c020 20509a", "0c0c12 f2efe6 8a2a1e d97a20 5a6a3a"),
        genres=("abstract_painting",),
        paint=partial(_gestures, count=26, width=0.14),
    ),
    "Action_painting": Style(
        count=98,
        palettes=("0a0a0a f0ead8 b8b0a0 8a1a10 d8b020", "101418 ece4d0 3a5a70 c8a060 70201a"),
        genres=("abstract_painting",),
        paint=partial(_drips, threads=110),
    ),
    "Analytical_Cubism": Style(
        count=110,
        palettes=("1e1a14 4a3c28 7a6444 a48c60 c8b48a", "1c1c1a 48463e 767060 a09880 c8c0a4"),
        genres=("portrait", "still_life"),
        paint=partial(_facets, cells=15, shift=0.06, outline=True),
        saturation=0.7,
        contrast=1.25,
    ),
    "Art_Nouveau_Modern": Style(
        count=4334,
        palettes=("3a2a20 7a8a50 d8b060 e8d8b0 a85a3a", "24403a 5a8a7a c8b070 f0e6c8 b86a50"),
        genres=("illustration", "illustration", "portrait"),
        paint=partial(_flat, colours=7, line=5),
    ),
    "Baroque": Style(
        count=4240,
        palettes=("080604 2a160a 6a3414 b07838 f0d8a8", "060606 20120c 5a1c12 a86430 ecd0a0"),
        genres=(*_FIGURES, "still_life"),
        paint=partial(_smooth, blur=2.2, light=0.85),
        contrast=1.2,
    ),
    "Color_Field_Painting": Style(
        count=1615,
        palettes=(
            "6a1010 c02818 e86a20 f0b030",
            "101838 283c8a 7a3060 c85a50",
            "203a20 4a7a3a c8c030 f0e8a0",
        ),
        genres=("abstract_painting",),
        paint=partial(_bands, soft=0.02),
        saturation=1.2,
    ),
    "Contemporary_Realism": Style(
        count=481,
        palettes=("202830 506878 8aa8b8 d0dce0 c88a60", "2a2a26 6a7058 a8b090 e4e4d8 b0745a"),
        genres=_WORLD,
        paint=partial(_smooth, blur=0.8, light=0.0),
        saturation=0.85,
        contrast=1.1,
    ),
    "Cubism": Style(
        count=2235,
        palettes=("1a2028 3a5a6a 8a6a3a c8a868 e8dcc0", "20180f 5a6a3a a05a30 d8a860 dce0d0"),
        genres=("portrait", "still_life", "cityscape"),
        paint=partial(_facets, cells=9, shift=0.1, outline=True),
        contrast=1.1,
    ),
    "Early_Renaissance": Style(
        count=1391,
        palettes=("2a1c14 8a2a1c 2a4a7a c89a50 f0dcb0", "241a12 6a1e1e 3a5a3a d0a860 f4e4c0"),
        genres=("religious_painting", "portrait"),
        paint=_gold,
        varnish=(255, 240, 205),
    ),
    "Expressionism": Style(
        count=6736,
        palettes=("0c1420 1a3a6a c8301a f0a020 3a7a4a", "140c18 6a1a50 e05a10 f0d040 1a5a5a"),
        genres=_WORLD,
        paint=partial(_strokes, count=800, length=0.1, width=0.028, jitter=22, swirl=1.6),
        saturation=1.15,
        contrast=1.25,
    ),
    "Fauvism": Style(
        count=934,
        palettes=(
            "1a3ac8 e81a5a f07010 ffd020 20b060 f8e8f0",
            "5a10a0 f03020 10a0b0 f8c010 f070a0 fff4d0",
        ),
        genres=("landscape", "portrait", "cityscape"),
        paint=_after(
            partial(_flat, colours=6, line=0),
            partial(_strokes, count=420, length=0.06, width=0.035, jitter=16),
        ),
        saturation=1.5,
    ),
    "High_Renaissance": Style(
        count=1343,
        palettes=("1a140c 4a3a1e 7a6a3a b8a070 ecd8ac", "181610 3e4428 7a7450 b09868 e8d0a4"),
        genres=_FIGURES,
        paint=partial(_smooth, blur=5.0, light=0.2),
        varnish=(255, 236, 190),
        saturation=0.9,
    ),
    "Impressionism": Style(
        count=13060,
        palettes=(
            "3a4a7a 6a8ab0 a8c0c8 f0d8b8 e8a890 8aa870",
            "44507a 7a9a8a b8c8a0 f4e0c8 c8a0b8 e8b878",
        ),
        genres=("landscape", "landscape", "cityscape", "portrait", "still_life"),
        paint=partial(_strokes, count=3000, length=0.035, width=0.012, jitter=13),
    ),
    "Mannerism_Late_Renaissance": Style(
        count=1279,
        palettes=("101820 2a5a6a c06a8a c8c858 f0e4e0", "141020 5a3a8a c8783a 6ab0a0 f0e8d8"),
        genres=_FIGURES,
        paint=partial(_smooth, blur=1.8, light=0.5),
        contrast=1.15,
    ),
    "Minimalism": Style(
        count=1337,
        palettes=("101010 c8c4bc f4f2ec", "202428 a03020 f6f4f0", "14283c d8d8d4 faf8f4"),
        genres=("abstract_painting",),
        paint=_sparse,
        grain=0.8,
    ),
    "Naive_Art_Primitivism": Style(
        count=2405,
        palettes=(
            "1a3a1a 2a8a3a 3a8ac8 f0d040 e04a2a f8f0e0",
            "203050 2a9a7a 60b0e0 f0a0a0 f0e060 e0602a",
        ),
        genres=("landscape", "genre_painting", "cityscape"),
        paint=_after(
            partial(_flat, colours=8, line=3),
            partial(_strokes, count=260, length=0.02, width=0.01, jitter=10),
        ),
        saturation=1.25,
    ),
    "New_Realism": Style(
        count=314,
        palettes=("101010 d02020 2050a0 f0d020 f0ece4", "181818 e06a10 208a6a d8d0c0 f4f0e8"),
        genres=("abstract_painting", "cityscape"),
        paint=_collage,
    ),
    "Northern_Renaissance": Style(
        count=2552,
        palettes=("0c1410 1e3a2a 3a5a6a 8a2a1e c8b890", "10120c 2a3a1e 4a6a6a a03a20 d4c8a0"),
        genres=("portrait", "religious_painting", "landscape"),
        paint=_after(partial(_smooth, blur=1.0, light=0.1), partial(_flat, colours=24, line=1)),
        contrast=1.1,
    ),
    "Pointillism": Style(
        count=513,
        palettes=(
            "2a3a9a 3a9a5a e8b030 f0e0a0 d85a7a 80a8e0",
            "3a2a8a 50a8a0 f0a040 f8f0c0 c04a90 a0d070",
        ),
        genres=("landscape", "cityscape", "portrait"),
        paint=partial(_dots, radius=0.0085, jitter=46),
        saturation=1.1,
    ),
    "Pop_Art": Style(
        count=1483,
        palettes=("101010 f01a1a f8e010 1a6af0 ffffff", "0a0a14 f02a8a 20d0d0 f8f020 ffffff"),
        genres=("portrait", "still_life"),
        paint=partial(_flat, colours=5, line=7, halftone=0.022),
        saturation=1.5,
        grain=0.7,
    ),
    "Post_Impressionism": Style(
        count=6450,
        palettes=(
            "1a2a5a 2a6a9a e0a020 f0d860 4a8a4a c8602a",
            "20304a 3a7a5a d8902a f0d080 7a5a9a e8b890",
        ),
        genres=("landscape", "landscape", "portrait", "still_life", "cityscape"),
        paint=partial(_strokes, count=1700, length=0.06, width=0.017, jitter=24, swirl=2.4),
        saturation=1.2,
        contrast=1.1,
    ),
    "Realism": Style(
        count=10733,
        palettes=("14120e 3c3424 6a5c40 9a8c68 d0c4a0", "161612 40402e 6e6a50 9c9880 d4d0bc"),
        genres=_WORLD,
        paint=partial(_strokes, count=2600, length=0.022, width=0.009, jitter=7),
        saturation=0.8,
    ),
    "Rococo": Style(
        count=2089,
        palettes=("5a6a7a 9ab0b8 e8b8b0 f4dcc8 fff4e4", "6a6a5a a8b898 f0c0b8 d0c8e0 fff0e8"),
        genres=("portrait", "genre_painting", "landscape"),
        paint=partial(_smooth, blur=3.0, light=0.15),
        contrast=0.85,
    ),
    "Romanticism": Style(
        count=7019,
        palettes=("0a0c10 2a2a30 7a4a2a d88a3a f8e0a0", "080a0c 1e2c38 4a5a60 c07a40 f4d898"),
        genres=("landscape", "landscape", "genre_painting", "portrait"),
        paint=_after(
            partial(_strokes, count=1300, length=0.05, width=0.02, jitter=9),
            partial(_smooth, blur=1.6, light=0.7),
        ),
        contrast=1.1,
    ),
    "Symbolism": Style(
        count=4528,
        palettes=("0a1028 1e2a5a 4a4a8a 8a7ab0 d8c8e0", "081c20 143c48 3a6a78 8aa8a0 e0d8b8"),
        genres=("portrait", "landscape", "religious_painting", "illustration"),
        paint=partial(_smooth, blur=6.5, light=0.4),
    ),
    "Synthetic_Cubism": Style(
        count=216,
        palettes=(
            "141414 2a4a8a b0402a d8b060 f0ece0 4a7a5a",
            "181418 6a3a6a d0702a 60a0a0 f0e8d8 e0c040",
        ),
        genres=("still_life", "portrait"),
        paint=partial(_facets, cells=5, shift=0.12, outline=False, patterns=0.3),
        saturation=1.1,
    ),
    "Ukiyo_e": Style(
        count=1167,
        palettes=("1a2430 2a4a7a 8aa8a8 e8d8b0 c8583a", "20201c 3a5a6a b0a880 f0e0bc a84a3a"),
        genres=("landscape", "genre_painting", "portrait"),
        paint=partial(_flat, colours=6, line=3),
        saturation=0.8,
        varnish=(255, 244, 214),
    ),
}
"""WikiArt's 27 styles with its numbers of paintings, 81,444 in all."""


# A painting ---------------------------------------------------------------------------------------


def draw(style: Style, genre: str, size: Size, rng: Rng) -> Image.Image:
    """A painting of `size` (width, height) pixels, as RGB."""
    colours = np.array(_parse(style.palettes[rng.integers(len(style.palettes))]), np.float64)
    colours = np.clip(colours + rng.normal(0, 9, 3) + rng.normal(0, 7, colours.shape), 0, 255)
    palette = Palette(colours, rng)
    half = (-(-size[0] // 2), -(-size[1] // 2))
    image = style.paint(MOTIFS[genre](rng, half, palette), rng, palette)
    image = ImageEnhance.Color(image).enhance(style.saturation * rng.uniform(0.92, 1.08))
    image = ImageEnhance.Contrast(image).enhance(style.contrast * rng.uniform(0.95, 1.05))
    if style.varnish != (255, 255, 255):
        image = ImageChops.multiply(image, Image.new("RGB", half, style.varnish))
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
