"""`sfumato ablate`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from sfumato.cli.options import INTERRUPTED, RESUMES, Device, Settings, checked_source
from sfumato.cli.show import log, new_table, print_table


def ablate(
    ablation: Annotated[str, typer.Argument(help="An ablation's name, or its YAML file.")],
    dataset: Annotated[
        str | None,
        typer.Argument(callback=checked_source, help="Another source of images than the preset's."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the runs; those that are there are resumed.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Arms to train now; may be repeated.")
    ] = None,
    seeds: Annotated[
        list[int] | None, typer.Option("--seed", help="Seeds to train now; may be repeated.")
    ] = None,
    settings: Settings = None,
    device: Device = "auto",
) -> None:
    """Which setting does what: arms of several seeds on equal images, evaluated in training."""
    from sfumato.config.ablation import load_ablation

    source = [] if dataset is None else [f"data.source={json.dumps(dataset)}"]
    overrides = [*source, *(settings or [])]
    chosen = load_ablation(ablation)
    for arm in chosen.arms:  # mistyped settings are reported before torch is imported
        chosen.experiment(arm, chosen.seeds[0], overrides)
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
        say=log,
        progress=TrainingProgress,
    )
    if found is None:
        log(f"\n{RESUMES}")
        raise typer.Exit(INTERRUPTED)
    for one in found:
        header, *rows = one.table()
        table = new_table(header, title=f"w = {one.scale}")
        for row in rows:
            table.add_row(*row)
        print_table(table)
    for kind in ("md", "png", "json"):
        log(str(folder / f"ablation.{kind}"))
