"""`sfumato watch`."""

import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.base.terminal import plain_console

if TYPE_CHECKING:
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
    console.print(side_by_side(views, console.width, colours=console.color_system is not None))


def _keep_watching(watched: "list[Watched]", every: float) -> None:
    """Until Ctrl-C, or until no run trains any more."""
    from rich.live import Live

    from sfumato.cli.watch_view import side_by_side

    console = plain_console()
    colours = console.color_system is not None
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            views = [one.look() for one in watched]
            live.update(side_by_side(views, console.width, colours=colours), refresh=True)
            if all(view.state != "training" for view in views):
                return
            time.sleep(every)
