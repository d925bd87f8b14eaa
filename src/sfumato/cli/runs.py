"""`sfumato runs`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from sfumato.base.terminal import plain_console
from sfumato.cli.show import log, log_wrapped

if TYPE_CHECKING:
    from sfumato.studies.listing import RunSummary


def runs(
    folder: Annotated[Path, typer.Argument(help="Where the runs lie.")] = Path("runs"),
    json: Annotated[bool, typer.Option("--json", help="Print JSON with every number.")] = False,
) -> None:
    """List runs: state, images seen, last loss, best class accuracy with its 95 % interval."""
    from sfumato.studies.listing import as_json, summaries

    found = summaries(folder)
    if json:
        log(as_json(found))
        return
    if not found:
        log(f"No runs below {folder}.")
        return
    plain_console().print(_table(found))
    for one in found:
        for problem in one.problems:
            log_wrapped(f"{_printable(one.folder)}: {problem}")


def _table(found: "list[RunSummary]") -> Table:
    """Two lines a run; in 80 columns the names of folders are folded, numbers never."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("run", overflow="fold")
    for name in ("state", "images", "loss", "accuracy (%)", "date"):
        right = name in ("images", "loss")
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    for one in found:
        total = "?" if one.total_images is None else f"{one.total_images:,}"
        table.add_row(
            Text(f"{_printable(one.folder)}\n  {one.preset}".rstrip()),
            one.state,
            f"{one.images_seen:,}\nof {total}",
            "-" if one.loss is None else f"{one.loss:.4f}",
            _accuracy(one),
            one.date[:10],
        )
    return table


def _printable(name: str) -> str:
    """A name as text, with marks for bytes that are none."""
    return os.fsencode(name).decode("utf-8", "replace")


def _accuracy(one: "RunSummary") -> str:
    """`98.5 (97.5-99.1)`, and below it w and the number of images."""
    best = one.best
    if best is None:
        return "-"
    scale = "" if best.guidance_scale is None else f"w = {best.guidance_scale:g}, "
    return f"{best.text}\n{scale}of {best.count:,}"
