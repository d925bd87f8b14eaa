"""`sfumato ablate`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.cli.checks import checked_source
from sfumato.cli.options import (
    INTERRUPTED,
    RESUMES,
    Device,
    Settings,
)
from sfumato.cli.show import log, new_table, print_table
from sfumato.config.ablation import load_ablation

if TYPE_CHECKING:
    from sfumato.studies.ablation import AblationResult


Dataset = Annotated[
    str | None,
    typer.Argument(callback=checked_source, help="Another source of images than the preset's."),
]
Out = Annotated[
    Path | None, typer.Option(help="Folder of the runs; those that are there are resumed.")
]
Only = Annotated[
    list[str] | None, typer.Option("--only", help="Variants to train now; may be repeated.")
]
Seeds = Annotated[
    list[int] | None, typer.Option("--seed", help="Seeds to train now; may be repeated.")
]


def ablate(
    ablation: Annotated[str, typer.Argument(help="An ablation's name, or its YAML file.")],
    dataset: Dataset = None,
    out: Out = None,
    only: Only = None,
    seeds: Seeds = None,
    settings: Settings = None,
    device: Device = "auto",
) -> None:
    """Which setting does what: variants of several seeds on equal images, evaluated in training."""
    source = [] if dataset is None else [f"data.source={json.dumps(dataset)}"]
    overrides = [*source, *(settings or [])]
    chosen = load_ablation(ablation)
    for variant in chosen.variants:  # mistyped settings are reported before torch is imported
        chosen.experiment(variant, chosen.seeds[0], overrides)
    from sfumato.studies.ablation import run_ablation
    from sfumato.training.progress import TrainingProgress

    folder = out or Path("runs") / f"ablation-{chosen.name}"
    log(f"{chosen.name}: {chosen.about}\nFolder {folder}")
    found = run_ablation(
        chosen,
        folder,
        overrides=overrides,
        only=only or [],
        seeds=seeds or [],
        device=device,
        log=log,
        progress=TrainingProgress,
    )
    if found is None:
        log(f"\n{RESUMES}")
        raise typer.Exit(INTERRUPTED)
    _print_tables(found)
    for kind in ("md", "png", "json"):
        log(str(folder / f"ablation.{kind}"))


def _print_tables(found: "Sequence[AblationResult]") -> None:
    for one in found:
        header, rows = one.table()
        table = new_table(header, title=f"w = {one.scale}")
        for row in rows:
            table.add_row(*row)
        print_table(table)
