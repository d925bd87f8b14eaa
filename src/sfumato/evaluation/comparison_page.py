"""The page of a comparison: what differs, and both sets of images side by side."""

from pathlib import Path

from torch import Tensor

from sfumato.base.files import write_bytes, write_json, write_text
from sfumato.base.images import png_bytes, to_pil
from sfumato.evaluation.compare import MEANINGS, Comparison, Side, disagreements
from sfumato.report.page import data_url, rendered
from sfumato.report.samples import font, shortened

_INK = "#333333"
_SHOWN = 20
_SHOWN_DISAGREEMENTS = 10


def write_comparison(folder: Path, comparison: Comparison, first: Side, second: Side) -> Path:
    """`comparison.json`, `pairs.png` and `comparison.html` in `folder`; the page's path."""
    name = _row_names(first, second)
    pairs = pair_grid(first, second, list(range(min(_SHOWN, comparison.count))), names=name)
    only = [
        (who, pair_grid(first, second, numbers[:_SHOWN_DISAGREEMENTS], names=name), len(numbers))
        for who, numbers in zip(name, disagreements(first, second), strict=True)
        if numbers
    ]
    write_json(folder / "comparison.json", comparison.model_dump(mode="json"))
    write_bytes(folder / "pairs.png", pairs)
    page = rendered(
        "comparison.html",
        comparison=comparison,
        names=name,
        meanings=MEANINGS,
        pairs=data_url(pairs),
        only=[(who, data_url(picture), count) for who, picture, count in only],
    )
    write_text(folder / "comparison.html", page)
    return folder / "comparison.html"


def pair_grid(
    first: Side, second: Side, numbers: list[int], *, names: tuple[str, str], columns: int = 10
) -> bytes:
    """A PNG: images of the first above those of the second, of the same seed and caption."""
    from PIL import Image, ImageDraw

    ours, theirs = first.images(numbers), second.images(numbers)
    side = ours[0].shape[-1] * max(1, -(-64 // ours[0].shape[-1]))
    label, gap, margin = font(14), 4, 16
    shown = [shortened(name, label, 220) for name in names]
    left = margin + int(max(label.getlength(name) for name in shown)) + 12
    columns = min(columns, len(numbers))
    pair_px = 2 * (side + gap) + 14
    rows = -(-len(numbers) // columns)
    canvas = Image.new(
        "RGB", (left + columns * (side + gap) + margin, margin + rows * pair_px), "white"
    )
    pen = ImageDraw.Draw(canvas)

    def paste(image: Tensor, x: int, y: int) -> None:
        canvas.paste(to_pil(image).resize((side, side), Image.Resampling.NEAREST), (x, y))

    for row in range(rows):
        for place, name in enumerate(shown):
            y = margin + row * pair_px + place * (side + gap)
            pen.text((left - 12, y + side // 2), name, font=label, fill=_INK, anchor="rm")
    for place, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        x = left + place % columns * (side + gap)
        y = margin + place // columns * pair_px
        paste(a, x, y)
        paste(b, x, y + side + gap)
    return png_bytes(canvas)


def _row_names(first: Side, second: Side) -> tuple[str, str]:
    """The shortest names that tell the two apart."""
    if first.name == second.name:
        return first.row.title, second.row.title
    if first.row.title == second.row.title:
        return first.name, second.name
    return f"{first.name}, {first.row.title}", f"{second.name}, {second.row.title}"
