"""`sfumato watch`."""

import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.base.terminal import plain_console

if TYPE_CHECKING:
    from rich.console import Console

    from sfumato.cli.watch_pictures import Drawing, Placed
    from sfumato.studies.watching import Watched


def watch(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")],
    once: Annotated[bool, typer.Option("--once", help="Print one view, and end.")] = False,
    every: Annotated[
        float, typer.Option(min=0.2, metavar="SECONDS", help="Time between two looks.")
    ] = 2.0,
) -> None:
    """Watch runs while they train: loss, images/s, time left, newest samples. Only files are read.

    Any folder that is seen from here will do, on a shared disk too. Ctrl-C ends it.
    """
    from sfumato.studies.watching import Watched

    watched = [Watched(run) for run in runs]
    if not once and plain_console().is_terminal:
        with suppress(KeyboardInterrupt):
            _keep_watching(watched, every)
    _print(watched)


def _print(watched: "list[Watched]") -> None:
    from sfumato.cli.watch_view import side_by_side

    console = plain_console()
    views = [one.look() for one in watched]
    console.print(side_by_side(views, console.width, _characters(console)))


def _keep_watching(watched: "list[Watched]", every: float) -> None:
    """Until Ctrl-C, or until no run trains any more."""
    from rich.live import Live
    from rich.segment import SegmentLines

    from sfumato.cli.watch_pictures import placed
    from sfumato.cli.watch_view import side_by_side

    console = plain_console()
    drawing = _pixels() or _characters(console)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            views = [one.look() for one in watched]
            lines = console.render_lines(
                side_by_side(views, console.width, drawing), pad=False, new_lines=False
            )
            live.update(SegmentLines(lines, new_lines=True), refresh=True)
            if drawing.as_pixels:
                console.file.write(_escapes(placed(lines, console.height), drawing))
                console.file.flush()
            if all(view.state != "training" for view in views):
                return
            time.sleep(every)


def _characters(console: "Console") -> "Drawing":
    from sfumato.cli.watch_pictures import Drawing

    return Drawing("blocks" if console.color_system is not None else "shades")


def _pixels() -> "Drawing | None":
    """Where the terminal draws pictures."""
    from sfumato.base.graphics import cell_size, terminal_graphics
    from sfumato.cli.watch_pictures import Drawing

    how = terminal_graphics()
    return None if how is None else Drawing(how, cell_size())


def _escapes(pictures: "list[Placed]", drawing: "Drawing") -> str:
    """Each picture at its place, in place of those that were there."""
    from sfumato.base.graphics import CLEAR_KITTY, kitty, sixel

    parts = [CLEAR_KITTY] if drawing.how == "kitty" else []
    for one in pictures:
        parts.append(f"\x1b[{one.row + 1};{one.column + 1}H")
        if drawing.how == "kitty":
            parts.append(kitty(one.picture, one.columns, one.rows))
        else:
            parts.append(sixel(one.picture))
    return "".join(parts)
