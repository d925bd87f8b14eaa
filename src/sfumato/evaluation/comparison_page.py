"""A comparison as a table and as a page with both sets of images side by side."""

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from sfumato.base.files import write_bytes, write_json, write_text
from sfumato.evaluation.metrics.registry import all_metrics, metric_of
from sfumato.evaluation.pictures import image_rows
from sfumato.evaluation.tables import Table, format_table, sentence, wrapped
from sfumato.report.grids import font, shortened
from sfumato.report.page import data_url, rendered

if TYPE_CHECKING:
    from sfumato.evaluation.compare import Comparison, Side

_COLUMNS = 10
_SHOWN, _SHOWN_DISAGREEMENTS = 20, 10


def comparison_table(comparison: "Comparison") -> Table:
    """A row for each metric: both, real images, the difference, and which is better."""
    rows = []
    for one in comparison.differences:
        metric = metric_of(one.key)

        def text(value: float | None, percent: bool = metric.percent) -> str:
            if value is None:
                return ""
            return f"{100 * value:.1f} %" if percent else f"{value:.3g}"

        factor = 100 if metric.percent else 1
        apart = f"{factor * one.difference:+.2g}"
        apart += f" ({factor * one.low:.2g}, {factor * one.high:.2g})"
        if one.only_first is not None:
            apart += f", {one.only_first} to {one.only_second}, p = {one.p_value:.2g}"
        better = {"first": comparison.names[0], "second": comparison.names[1]}.get(one.better, "")
        rows.append([one.title, text(one.first), text(one.second), text(one.real), apart, better])
    return Table(columns=["", *comparison.names, "real", "difference", "better"], rows=rows)


def comparison_notes(comparison: "Comparison") -> str:
    """How to read the table."""
    names = {one.key.partition(".")[0] for one in comparison.differences}
    about = [one.about for name, one in all_metrics().items() if name in names and one.about]
    beside = [one.title for name, one in all_metrics().items() if name in names and not one.better]
    text = (
        f"{comparison.count:,} pairs of the same seed and caption. Class accuracy by McNemar's "
        "exact test over the images that only one got right, the rest by a paired bootstrap, in "
        f"brackets 95 % intervals. Difference: first less second. {sentence(about)}"
    )
    return text + (f" Read beside real images: {', '.join(beside)}." if beside else "")


def format_comparison(comparison: "Comparison", *, width: int = 100) -> str:
    """The table and how to read it, as text."""
    table = format_table(comparison_table(comparison), width=width, left=True)
    return f"{table}\n{wrapped(comparison_notes(comparison), width)}"


def write_comparison(folder: Path, comparison: "Comparison", first: "Side", second: "Side") -> Path:
    """`comparison.json`, `pairs.png` and `comparison.html` in `folder`; the page's path."""
    shown = list(range(min(_SHOWN, comparison.count)))
    only = [
        (who, pair_grid(first, second, numbers[:_SHOWN_DISAGREEMENTS], comparison), len(numbers))
        for who, numbers in zip(comparison.names, disagreements(first, second), strict=True)
        if numbers
    ]
    pairs = pair_grid(first, second, shown, comparison)
    write_json(folder / "comparison.json", comparison.model_dump(mode="json"))
    if pairs is not None:
        write_bytes(folder / "pairs.png", pairs)
    page = rendered(
        "comparison.html",
        comparison=comparison,
        table=comparison_table(comparison),
        notes=comparison_notes(comparison),
        pairs=data_url(pairs) if pairs is not None else "",
        only=[(who, data_url(png), count) for who, png, count in only if png is not None],
    )
    write_text(folder / "comparison.html", page)
    return folder / "comparison.html"


def disagreements(first: "Side", second: "Side") -> tuple[list[int], list[int]]:
    """Numbers of the images that only the first got right, and that only the second did."""
    if "class_accuracy" not in first.values or "class_accuracy" not in second.values:
        return [], []
    right, also = (side.values["class_accuracy"].bool() for side in (first, second))
    only_first, only_second = right & ~also, also & ~right
    return only_first.nonzero().flatten().tolist(), only_second.nonzero().flatten().tolist()


def pair_grid(
    first: "Side", second: "Side", numbers: list[int], comparison: "Comparison"
) -> bytes | None:
    """A PNG: images of the first above those of the second, of the same seed and caption; None
    where the images are not kept."""
    both: list[list[Tensor]] = [side.images(numbers) for side in (first, second)]
    if not both[0] or not both[1]:
        return None
    names = [shortened(name, font(14), 220) for name in comparison.names]
    rows = [
        (name, images[start : start + _COLUMNS])
        for start in range(0, len(numbers), _COLUMNS)
        for name, images in zip(names, both, strict=True)
    ]
    return image_rows(rows, gap_after=2)
