"""How a painting of each genre is composed, in the colours of a palette."""

from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageDraw

from sfumato.bench.paintings.canvas import (
    Palette,
    Rng,
    Size,
    clouds,
    disc,
    gradient,
    oval,
    to_colour,
)


def _landscape(rng: Rng, size: Size, p: Palette) -> Image.Image:
    w, h = size
    horizon = rng.uniform(0.35, 0.6) * h
    image = gradient(size, p.tone(0.75, spread=0.15), p.tone(0.95, spread=0.1))
    image = Image.blend(image, clouds(rng, size, p, 7, 0.65, 1.0), 0.45)
    pen = ImageDraw.Draw(image)
    if rng.random() < 0.6:
        disc(
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
            disc(
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


def _portrait(rng: Rng, size: Size, p: Palette) -> Image.Image:
    w, h = size
    image = clouds(rng, size, p, 4, 0.02, 0.4)
    pen = ImageDraw.Draw(image)
    r = rng.uniform(0.13, 0.19) * min(w, h)
    x, y = w * rng.uniform(0.42, 0.58), h * rng.uniform(0.32, 0.42)
    skin, shade = p.tone(0.86, spread=0.06), p.tone(0.62, spread=0.06)
    coat, hair = p.tone(0.3, spread=0.25), p.tone(0.15, spread=0.15)
    turn = rng.uniform(-0.35, 0.35) * r
    oval(pen, x, y + 5.2 * r, 3.3 * r, 3.1 * r, coat)
    pen.polygon(
        [(x - 0.9 * r, y + 2.2 * r), (x + 0.9 * r, y + 2.2 * r), (x, y + 4 * r)], fill=p.tone(0.95)
    )
    oval(pen, x - 0.1 * turn, y - 0.25 * r, 1.35 * r, 1.65 * r, hair)
    pen.rectangle([x - 0.45 * r, y + r, x + 0.45 * r, y + 2.3 * r], fill=shade)
    oval(pen, x, y, r, 1.35 * r, skin)
    pen.pieslice(
        [x - r, y - 1.35 * r, x + r, y + 1.35 * r],
        *((-90, 90) if turn < 0 else (90, 270)),
        fill=shade,
    )
    oval(pen, x + 0.35 * turn, y, 0.85 * r, 1.3 * r, skin)
    pen.pieslice([x - 1.1 * r, y - 1.6 * r, x + 1.1 * r, y - 0.1 * r], 180, 360, fill=hair)
    for side in (-1, 1):
        ex = x + turn + side * 0.4 * r
        oval(pen, ex, y - 0.02 * r, 0.2 * r, 0.1 * r, p.tone(1.0))
        disc(pen, ex, y - 0.02 * r, 0.09 * r, p.tone(0.0))
        pen.line(
            [(ex - 0.22 * r, y - 0.24 * r), (ex + 0.22 * r, y - 0.26 * r)],
            fill=hair,
            width=max(2, int(r / 12)),
        )
    pen.polygon(
        [(x + turn, y), (x + 1.6 * turn, y + 0.5 * r), (x + 0.8 * turn, y + 0.52 * r)], fill=shade
    )
    oval(pen, x + turn, y + 0.78 * r, 0.3 * r, 0.09 * r, p.vivid())
    return image


def _still_life(rng: Rng, size: Size, p: Palette) -> Image.Image:
    w, h = size
    image = clouds(rng, size, p, 3, 0.1, 0.6)
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
        disc(pen, fx + 0.3 * r, fy + 0.3 * r, r, p.tone(0.1))
        disc(pen, fx, fy, r, fruit)
        disc(pen, fx - 0.35 * r, fy - 0.35 * r, 0.25 * r, p.tone(1.0))
    return image


def _city(rng: Rng, size: Size, p: Palette) -> Image.Image:
    w, h = size
    image = gradient(size, p.tone(0.7, spread=0.2), p.tone(0.95))
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
    fold = to_colour(0.6 * np.array(robe))
    for place in (-0.4, 0.1, 0.5):
        pen.line(
            [(x + place * wide, y), (x + 0.5 * place * wide + lean, y - 0.6 * tall)],
            fill=fold,
            width=max(2, int(wide / 9)),
        )
    oval(pen, x + lean, y - 0.9 * tall, 0.1 * tall, 0.125 * tall, p.tone(0.2, spread=0.15))
    oval(pen, x + lean, y - 0.88 * tall, 0.08 * tall, 0.1 * tall, p.tone(0.85, spread=0.06))


def _figures(rng: Rng, size: Size, p: Palette) -> Image.Image:
    """A group before arches: genre scenes and religious paintings."""
    w, h = size
    image = _landscape(rng, size, p) if rng.random() < 0.5 else clouds(rng, size, p, 4, 0.2, 0.6)
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
    image = clouds(rng, size, p, 5, 0.0, 1.0)
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(5, 14))):
        x, y = rng.uniform(0, w), rng.uniform(0, h)
        oval(pen, x, y, *(rng.uniform(0.05, 0.25, 2) * min(w, h)), p.any())
    return image


def _flowers(rng: Rng, size: Size, p: Palette) -> Image.Image:
    """Curling stems with blossoms: ornament."""
    w, h = size
    image = clouds(rng, size, p, 3, 0.6, 1.0)
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
            oval(pen, *points[place], 0.035 * w, 0.016 * h, p.tone(0.35, spread=0.1))
        petal, r = p.vivid(), 0.05 * min(w, h)
        for turn in np.linspace(0, 2 * np.pi, 7)[:-1]:
            disc(pen, x + r * np.cos(turn), y + r * np.sin(turn), 0.7 * r, petal)
        disc(pen, x, y, 0.5 * r, p.tone(0.95))
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
