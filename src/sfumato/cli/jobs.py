"""`sfumato jobs`."""

from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.cli.show import log, new_table, print_table

if TYPE_CHECKING:
    from sfumato.launch.jobs import Job


def jobs(
    folder: Annotated[Path, typer.Argument(help="Where the runs lie.")] = Path("runs"),
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the jobs that were submitted: state, nodes, time used and left, restarts, images."""
    from sfumato.launch.jobs import jobs_below

    found = jobs_below(folder)
    if json:
        log(dumps([asdict(one) for one in found], indent=2))
        return
    if not found:
        log(f"No jobs below {folder}.")
        return
    left = (0, 1, 2, 3)
    table = new_table(
        ["job", "run", "state", "nodes", "used", "left", "restarts", "images"], left=left
    )
    for one in found:
        table.add_row(*_row(one))
    print_table(table)


def _row(one: "Job") -> list[str]:
    """A job that has left the queue has the state of its run."""
    run, queued = one.run, one.queued
    images = "-"
    if run is not None:
        total = "?" if run.total_images is None else f"{run.total_images:,}"
        images = f"{run.images_seen:,} of {total}"
    if queued is None:
        return [one.job, one.folder, "not begun" if run is None else run.state, *4 * "-", images]
    waits = f" ({queued.reason})" if queued.reason else ""
    return [
        one.job,
        one.folder,
        f"{queued.state.lower()}{waits}",
        queued.nodes or "-",
        queued.used,
        queued.left,
        str(queued.restarts),
        images,
    ]
