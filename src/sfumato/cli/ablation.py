"""What `sfumato ablate` prints."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from sfumato.cli.show import Progress, print_table, say
from sfumato.studies.ablation import load_ablation, run_ablation


def ablate_and_print(
    name: str,
    overrides: Sequence[str],
    *,
    out: Path | None,
    only: Sequence[str],
    seeds: Sequence[int],
    device: str,
) -> bool:
    """Run an ablation (or go on) and print its tables; False where it was asked to stop."""
    ablation = load_ablation(name)
    folder = out or Path("runs") / f"ablation-{ablation.name}"
    say(f"{ablation.name}: {ablation.about}\nFolder {folder}")
    found = run_ablation(
        ablation,
        folder,
        overrides=overrides,
        only=only,
        seeds=seeds,
        device=device,
        say=say,
        progress=Progress,
    )
    if found is None:
        say("\nStopped and saved. The same command goes on from here.")
        return False
    for one in found:
        header, *rows = one.table()
        table = Table(box=None, pad_edge=False, header_style="bold", title=f"w = {one.scale}")
        for place, column in enumerate(header):
            table.add_column(column, justify="right" if place else "left", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        print_table(table)
    for kind in ("md", "png", "json"):
        say(str(folder / f"ablation.{kind}"))
    return True
