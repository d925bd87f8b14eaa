"""`report.html`: one self-contained page with pictures, curves, tables and how they were made."""

import base64
import io
from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from sfumato import __version__

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def loss_curve(records: list[dict[str, Any]]) -> bytes:
    """PNG of the training loss over images seen."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    figure = Figure(figsize=(7.2, 2.8), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.plot(
        [record["images"] for record in records],
        [record["loss"] for record in records],
        color="#7a4b2a",
        lw=1.4,
        marker="o" if len(records) == 1 else "",  # one point has no line
    )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5, 7)))  # labels of all nine would touch
    axes.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlabel("images seen")
    axes.set_ylabel("training loss")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return png_of(figure)


def png_of(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """The first `left` columns are aligned left, the others right."""
    rules = ["---"] * left + ["---:"] * (len(header) - left)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rules, *rows))


def rendered(template: str, **values: Any) -> str:
    """A page of this room with its style inside; it needs no other file and no network."""
    import jinja2
    import markupsafe

    room = files("sfumato.report")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["percent"] = lambda value: f"{100 * value:.1f} %"
    environment.filters["thousands"] = lambda value: f"{value:,}"
    page = environment.from_string((room / template).read_text("utf-8"))
    style = markupsafe.Markup((room / "style.css").read_text("utf-8"))
    return page.render(style=style, version=__version__, **values)


def data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
