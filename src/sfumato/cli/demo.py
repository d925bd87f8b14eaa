"""The demo: train the digits preset, draw its grid, measure it, write a report."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sfumato.base.errors import DamagedDataError
from sfumato.base.files import write_bytes
from sfumato.config.schema import DiffusionExperiment, load_experiment
from sfumato.data.records import load_records
from sfumato.evaluation.card import FILE_NAME, MetricCard, read_card
from sfumato.evaluation.measure import Evaluated, evaluate
from sfumato.evaluation.pictures import write_pictures
from sfumato.evaluation.real import OnImages
from sfumato.evaluation.run_page import write_report
from sfumato.evaluation.target import model_target
from sfumato.generation.grids import scale_grid
from sfumato.generation.model import ImageGenerator
from sfumato.methods.registry import run_experiment
from sfumato.training.lint import lint_experiment, tell
from sfumato.training.loop import Hook, Run

GRID_SCALES = (0.0, 1.0, 2.0, 3.0, 5.0)


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """Where the demo's pictures and numbers are."""

    card: MetricCard
    grid: Path
    report: Path


def new_folder(base: Path) -> Path:
    """A folder beside others of the same kind, named by the time; never one that exists."""
    folder = base.with_name(f"{base.name}-{datetime.now():%Y%m%d-%H%M%S}")
    number = 2
    while folder.exists():
        folder = base.with_name(f"{base.name}-{datetime.now():%Y%m%d-%H%M%S}-{number}")
        number += 1
    return folder


def run_demo(
    folder: Path,
    *,
    fresh: bool,
    overrides: Sequence[str],
    device: str,
    say: Callable[[str], None],
    progress: Hook,
    on_start: Callable[[Run], None] = lambda run: None,
    on_images: OnImages = lambda what, done, total: None,
) -> DemoResult | None:
    """Everything from captions to report; None if it was asked to stop before its end."""
    started = time.monotonic()
    if fresh and folder.exists():
        folder = new_folder(folder)
    experiment = load_experiment("digits", overrides)
    tell(lint_experiment(experiment))
    result_files = (folder / "grid.png", folder / "report.html")
    run = run_experiment(experiment, folder, device=device, hooks=[progress], on_start=on_start)
    if not run.finished:
        return None
    card = _card_after(run.images_seen, folder)
    if card is not None and all(file.exists() for file in result_files):
        say(f"The demo in {folder} is finished. `sfumato demo --fresh` starts a new one.")
        return DemoResult(card=card, grid=result_files[0], report=result_files[1])
    generator = ImageGenerator.open(folder, device=device)
    records = load_records(experiment.data, "test")
    say("Drawing every digit at every guidance scale ...")
    write_bytes(
        result_files[0],
        scale_grid(generator, *records.examples(), scales=GRID_SCALES),
    )
    evaluated = measure(experiment, generator, folder, say=say, on_images=on_images)
    write_report(folder, experiment=experiment, evaluated=evaluated, grid=result_files[0])
    say(f"Done in {time.monotonic() - started:.0f} s.\n")
    return DemoResult(card=evaluated.card, grid=result_files[0], report=result_files[1])


def _card_after(images_seen: int, folder: Path) -> MetricCard | None:
    """The run's metric card of its weights after `images_seen` images."""
    for file in sorted(folder.glob(f"evaluation*/{FILE_NAME}")):
        try:
            card = read_card(file.parent)
        except DamagedDataError:
            continue  # of an earlier version of sfumato, or damaged
        if card.subject.provenance.get("images_seen") == images_seen:
            return card
    return None


def measure(
    experiment: DiffusionExperiment,
    generator: ImageGenerator,
    folder: Path,
    *,
    say: Callable[[str], None],
    on_images: OnImages,
) -> Evaluated:
    """The preset's own evaluation, kept in the run folder."""
    config = experiment.evaluation
    say(
        f"Measuring {config.count} images for each of w = "
        f"{', '.join(f'{scale:g}' for scale in config.guidance_scales)} ..."
    )
    evaluated = evaluate(
        model_target(generator, folder, config),
        config,
        base=folder / "evaluation",
        say=say,
        on_images=on_images,
    )
    write_pictures(evaluated)
    return evaluated
