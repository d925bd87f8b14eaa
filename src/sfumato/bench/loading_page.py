"""Loading as the paper shows it: Table 2 beside the paper's own figures, Figure 14 as an order."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sfumato.base.files import write_text
from sfumato.bench.loaders import WAYS
from sfumato.bench.loading import OURS, Loading
from sfumato.bench.order import file_by_file
from sfumato.config.sections import DataConfig
from sfumato.data.loading import SampleOrder
from sfumato.data.streaming.order import StreamOrder
from sfumato.data.streaming.stream import open_stream
from sfumato.report.page import data_url, rendered

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPER = {
    "random": ("10-15 s", "varies"),
    "cache": ("3-5 s", "~2 GB"),
    "files": ("0.1-0.5 s", "~400 MB"),
}
"""Table 2 of the paper, a batch of 16: by our ways' names, seconds and memory."""
_DOTS = 4_000


def write_loading(loading: Loading, config: DataConfig, path: Path, **conditions: Any) -> None:
    """A page with Table 2, the bars, and Figure 14 for these very files."""
    rows = [
        {
            "label": row.label,
            "seconds": row.seconds_a_batch,
            "rate": loading.batch_size / row.seconds_a_batch,
            "memory": row.peak_bytes / 1e6,
            "entropy": row.entropy,
            "displacement": row.displacement,
            "ratio": loading.ratio(row.name),
            "bar": WAYS[row.name].bar,
            "paper": PAPER.get(row.name, ("", "")),
            "ours": row.name == OURS,
        }
        for row in loading.rows
        if row.timings
    ]
    page = rendered(
        "loading.html",
        loading=loading,
        rows=rows,
        problems=[(row.label, row.problem) for row in loading.rows if row.problem],
        gains=loading.gains(),
        bars=data_url(chart(loading)),
        order=data_url(order_figure(config)),
        conditions=conditions,
    )
    write_text(path, page)


def file_orders(config: DataConfig, *, seed: int = 0) -> tuple[dict[str, np.ndarray], int]:
    """The file (N,) that each sample of the first epoch comes from, by way of ordering, and how
    many files there are. Nothing but the files' columns of labels is read."""
    records = open_stream(config, "train")
    names = list(dict.fromkeys(str(group.file) for group in records.groups))
    of_group = [names.index(str(group.file)) for group in records.groups]
    of_sample = np.repeat(of_group, records.sizes)
    count = len(of_sample)
    orders = {
        "random (sfumato, prepared or in memory)": SampleOrder(count, seed=seed).indices(0, count),
        "file by file (the paper, Figure 14)": file_by_file(records, seed).indices(0, count),
        "sfumato, stream": StreamOrder(records.sizes, seed=seed).indices(0, count),
    }
    return {name: of_sample[np.asarray(order)] for name, order in orders.items()}, len(names)


def order_figure(config: DataConfig) -> bytes:
    """PNG, Figure 14 as a picture of what it says: which file each sample of an epoch is from."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    orders, files = file_orders(config)
    figure = Figure(figsize=(11, 3.4), dpi=130, layout="constrained")
    panels = figure.subplots(1, len(orders), sharey=True)
    draw = np.random.default_rng(0)
    for axes, (name, order) in zip(panels, orders.items(), strict=True):
        shown = np.sort(draw.permutation(len(order))[:_DOTS])
        height = order[shown] + draw.uniform(-0.35, 0.35, len(shown))
        axes.plot(shown, height, ".", ms=1.4, mew=0, color="#2a6f97")
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("place in the epoch")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(-0.8, files - 0.2)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("file")
    return _png(figure)


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def in_figures(value: float) -> str:
    """Three figures, or all of those before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def chart(loading: Loading) -> bytes:
    """A PNG of bars: images a second of every way, on a scale of powers of ten."""
    from matplotlib.figure import Figure

    rows = [row for row in loading.rows if row.timings][::-1]
    rates = [loading.batch_size / row.seconds_a_batch for row in rows]
    figure = Figure(figsize=(8, 0.45 * len(rows) + 1.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    colours = ["#2a6f97" if row.label.startswith("sfumato") else "#b8b8b8" for row in rows]
    bars = axes.barh([row.label for row in rows], rates, color=colours)
    axes.bar_label(bars, [in_figures(rate) for rate in rates], padding=3)
    axes.set(xscale="log", xlim=(min(rates) / 2, max(rates) * 4))
    axes.set_xlabel(f"images a second, batches of {loading.batch_size}, {loading.workers} workers")
    axes.spines[["top", "right"]].set_visible(False)
    return _png(figure)
