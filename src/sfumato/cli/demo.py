"""`sfumato demo`."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.base.progress import Progress
from sfumato.cli.checks import checked_folder
from sfumato.cli.evaluate import print_card
from sfumato.cli.grid import DEFAULT_SCALES
from sfumato.cli.options import (
    INTERRUPTED,
    RESUMES,
    Device,
    Settings,
    stoppable,
)
from sfumato.cli.show import log
from sfumato.cli.train import new_folder

if TYPE_CHECKING:
    from sfumato.config.schema import DiffusionExperiment
    from sfumato.evaluation.card import Card


def demo(
    out: Annotated[Path, typer.Option(callback=checked_folder, help="The run's folder.")] = Path(
        "runs/demo"
    ),
    fresh: Annotated[bool, typer.Option("--fresh", help="Start again in a new folder.")] = False,
    settings: Settings = None,
    device: Device = "auto",
) -> None:
    """Train on real handwritten digits, sample them from captions, measure, write a report."""
    from sfumato.config.schema import DiffusionExperiment, load_experiment

    started = time.monotonic()
    experiment = load_experiment("digits", settings or [], schema=DiffusionExperiment)
    from sfumato.methods.registry import run_experiment
    from sfumato.training.lint import lint_experiment, warn
    from sfumato.training.progress import TrainingProgress, print_start

    folder = new_folder(out) if fresh and out.exists() else out
    warn(lint_experiment(experiment))
    run = run_experiment(
        experiment, folder, device=device, hooks=[TrainingProgress()], on_start=print_start
    )
    if not run.finished:
        log(f"\n{RESUMES}")
        raise typer.Exit(INTERRUPTED)
    grid, report = folder / "grid.png", folder / "report.html"
    card = _card_after(run.images_seen, folder)
    if card is not None and grid.exists() and report.exists():
        log(f"The demo in {folder} is finished. `sfumato demo --fresh` starts a new one.")
    else:
        with stoppable():
            card = _sample_and_measure(experiment, folder, device, grid=grid)
        log(f"Done in {time.monotonic() - started:.0f} s.\n")
    print_card(card)
    log(f"\nGrid    {grid}\nReport  {report}")


def _card_after(images_seen: int, folder: Path) -> "Card | None":
    """The run's metric card of its weights after `images_seen` images."""
    from sfumato.base.errors import DamagedDataError
    from sfumato.evaluation.card import FILE_NAME, read_card

    for file in sorted(folder.glob(f"evaluation*/{FILE_NAME}")):
        try:
            card = read_card(file.parent)
        except DamagedDataError:
            continue
        if card.subject.provenance.get("images_seen") == images_seen:
            return card
    return None


def _sample_and_measure(
    experiment: "DiffusionExperiment", folder: Path, device: str, *, grid: Path
) -> "Card":
    """The grid, the preset's own evaluation, kept in the run folder, and the report."""
    from sfumato.base.files import write_bytes
    from sfumato.data.records import load_records
    from sfumato.evaluation.evaluate import evaluate
    from sfumato.evaluation.run_page import write_report
    from sfumato.generation.grids import scale_grid
    from sfumato.generation.loading import load

    model = load(folder, device=device)
    log("Sampling every digit at every guidance scale ...")
    captions, labels = load_records(experiment.data, "test").examples()
    write_bytes(grid, scale_grid(model, captions, labels, scales=DEFAULT_SCALES))
    config = experiment.evaluation
    scales = ", ".join(f"{scale:g}" for scale in config.guidance_scales)
    log(f"Measuring {config.count} images for each of w = {scales} ...")
    card = evaluate(model, log=log, on_images=Progress())
    write_report(folder, experiment=experiment, card=card, grid=grid)
    return card
