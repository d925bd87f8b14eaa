"""Ways to lay paint over a motif."""

from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from sfumato.bench.paintings.canvas import Palette, Rng, clouds, disc, smooth_noise, to_colour


def _smooth(image: Image.Image, rng: Rng, p: Palette, *, blur: float, light: float) -> Image.Image:
    """Glazes without visible strokes: soft edges, a cone of light (`light` 0 to 1) on the motif."""
    image = image.filter(ImageFilter.BoxBlur(blur))
    shading = 0.75 + 0.5 * smooth_noise(rng, image.size, 9)
    w, h = image.size
    y, x = np.ogrid[:h, :w]
    cx, cy = rng.uniform(0.35, 0.65) * w, rng.uniform(0.3, 0.5) * h
    away = ((x - cx) / (0.5 * w)) ** 2 + ((y - cy) / (0.55 * h)) ** 2
    shading = shading * (1 - light + light * 1.35 * np.exp(-1.3 * away.astype(np.float32)))
    mask = Image.fromarray(np.clip(shading * 128, 0, 255).astype(np.uint8))
    if light < 0.3:
        return ImageChops.overlay(image, Image.merge("RGB", [mask] * 3))
    return ImageChops.multiply(
        image, Image.merge("RGB", [mask.point(lambda v: min(255, v * 2))] * 3)
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
) -> Image.Image:
    """Brush strokes of `length` and `width` (shares of the short side) along a smooth flow."""
    w, h = image.size
    side = min(w, h)
    pixels = np.asarray(image.reduce(4))
    p.tone(0.6)  # unused; it keeps the sequence of random numbers
    out = image.copy()
    pen = ImageDraw.Draw(out)
    angles = smooth_noise(rng, image.size, 5) * 2 * np.pi * swirl + rng.uniform(0, np.pi)
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
    facets = _broken(rng, w, h, cells)
    for index in rng.permutation(len(facets)).tolist():
        corners = np.array(facets[index])
        middle = corners.mean(0) + rng.normal(0, shift * min(w, h), 2)
        x, y = int(np.clip(middle[0], 0, w - 1)), int(np.clip(middle[1], 0, h - 1))
        colour = pixels[y // 8, x // 8] * rng.uniform(0.72, 1.28)
        points = [tuple(point) for point in corners.tolist()]
        pen.polygon(points, fill=to_colour(colour))
        inner = corners[0] + 0.55 * (corners - corners[0])
        pen.polygon([tuple(point) for point in inner.tolist()], fill=to_colour(colour * 1.14))
        if rng.random() < patterns:
            _stripes(pen, corners, rng, p)
        if outline:
            pen.line([*points, points[0]], fill=p.tone(0.03), width=max(2, min(w, h) // 260))
    return out


def _broken(rng: Rng, w: int, h: int, cells: int) -> list[list[np.ndarray]]:
    """The corners of uneven quadrangles, `cells` along the long side, of which two in three are cut
    into triangles."""
    rows, columns = (max(3, round(cells * side / max(w, h))) for side in (h, w))
    grid = np.stack(np.meshgrid(np.arange(columns + 1.0), np.arange(rows + 1.0)), -1)
    grid += rng.uniform(-0.45, 0.45, grid.shape)
    grid *= (w / columns, h / rows)
    facets = []
    for row, column in np.ndindex(rows, columns):
        corners = [grid[row + y, column + x] for y, x in ((0, 0), (0, 1), (1, 1), (1, 0))]
        if rng.random() < 0.65:
            k = int(rng.integers(2))
            facets += [[corners[(k + i) % 4] for i in part] for part in ((0, 1, 2), (2, 3, 0))]
        else:
            facets.append(corners)
    return facets


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
    out = clouds(rng, image.size, p, 3, 0.2, 0.6)
    pen = ImageDraw.Draw(out)
    fields = int(rng.integers(2, 5))
    cuts = (np.arange(1, fields) + rng.uniform(-0.35, 0.35, fields - 1)) / fields
    tops = [0.05, *(cuts + 0.02).tolist()]
    bottoms = [*(cuts - 0.02).tolist(), 0.95]
    margin = rng.uniform(0.05, 0.12)
    for top, bottom in zip(tops, bottoms, strict=True):
        pen.rectangle([margin * w, top * h, (1 - margin) * w, bottom * h], fill=p.any())
    out = out.filter(ImageFilter.BoxBlur(soft * min(w, h)))
    return Image.blend(out, ImageChops.overlay(out, clouds(rng, image.size, p, 24, 0.2, 0.9)), 0.25)


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
        disc(pen, w / 2, h * rng.uniform(0.35, 0.65), rng.uniform(0.12, 0.3) * min(w, h), p.vivid())
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
                    fill=to_colour(colour + rng.normal(0, 14)),
                    joint="curve",
                    width=max(2, int(broad / 8)),
                )
    return out


def _drips(image: Image.Image, rng: Rng, p: Palette, *, threads: int) -> Image.Image:
    """Threads and splashes of thrown paint; the motif is not used."""
    w, h = image.size
    out = clouds(rng, image.size, p, 6, 0.75, 1.0)
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
        disc(pen, x, y, r, p.any())
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
            disc(pen, sw / 2, sh / 2, 0.4 * min(sw, sh), p.any())
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
        clouds(rng, image.size, p, 12, 0.5, 1.0),
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
        disc(pen, x, y, 0.008 * min(w, h), (240, 210, 120))
    return gold


BRUSHES: Mapping[str, Callable[..., Image.Image]] = {
    "smooth": _smooth,
    "strokes": _strokes,
    "dots": _dots,
    "facets": _facets,
    "flat": _flat,
    "bands": _bands,
    "sparse": _sparse,
    "gestures": _gestures,
    "drips": _drips,
    "collage": _collage,
    "gold": _gold,
}
"""Ways to lay paint: each takes an image, a generator, a palette and settings of its own."""
