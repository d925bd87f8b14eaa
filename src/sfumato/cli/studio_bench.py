"""`sfumato bench studio`."""

from typing import Annotated

import typer

from sfumato.base.files import write_json
from sfumato.cli.checks import check_server_packages
from sfumato.cli.options import ModelPath, Record
from sfumato.cli.show import log, new_table, print_table, unused


def studio(
    model: ModelPath = "bundled:mnist",
    prompt: Annotated[str, typer.Argument(help="In quotes.")] = "A handwritten digit 7",
    *,
    pictures: Annotated[int, typer.Option(min=1, help="Pictures after the first.")] = 20,
    out: Record = None,
) -> None:
    """Seconds from the command to the page and to the first picture, and of the next ones."""
    check_server_packages("bench studio")
    from sfumato.base.environment import command, hardware, now
    from sfumato.bench.studio import BARS, measure_studio

    times = measure_studio(model, prompt, pictures=pictures)
    table = new_table(["", "seconds", "bar"])
    for name, seconds in times.measured().items():
        table.add_row(name, f"{seconds:.2f}", f"{BARS[name]:g}")
    print_table(table)
    if out is not None:
        about = {"command": command(), "date": now(), "hardware": hardware(), "bars": BARS}
        path = unused(out)
        write_json(path, {**about, **times.measured(), "following": list(times.following)})
        log(f"Record {path}")
