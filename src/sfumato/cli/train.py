"""`sfumato train`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.base.environment import now
from sfumato.base.errors import InputError
from sfumato.cli.options import (
    INTERRUPTED,
    Device,
    Preset,
    Settings,
    checked_source,
    stoppable,
)
from sfumato.cli.show import log

if TYPE_CHECKING:
    from sfumato.training.loop import Run


def train(
    preset: Preset,
    dataset: Annotated[
        str | None, typer.Argument(help="A folder of images, a Hub name OWNER/NAME, or digits.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="The same as the second argument.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder; a run that is there is resumed.")
    ] = None,
    settings: Settings = None,
    strict: Annotated[bool, typer.Option("--strict", help="Turn warnings into errors.")] = False,
    device: Device = "auto",
) -> None:
    """Train a preset. Interrupted and started again with the same --out, it resumes exactly."""
    from sfumato.config.schema import ClipExperiment, DiffusionExperiment, load_experiment

    source = _one_source(dataset, data)
    chosen = [] if source is None else [f"data.source={json.dumps(source)}"]
    experiment = load_experiment(preset, [*chosen, *(settings or [])])
    if not isinstance(experiment, ClipExperiment):
        checked_source(experiment.data.source)
    if isinstance(experiment, DiffusionExperiment):
        from sfumato.text.opening import fetch

        fetch(experiment.text.encoder)

    from sfumato.cli.data import resolve_data
    from sfumato.methods.diffusion import network_line
    from sfumato.methods.registry import method_of, run_experiment
    from sfumato.training.lint import warn
    from sfumato.training.progress import TrainingProgress

    if not isinstance(experiment, ClipExperiment):
        experiment = resolve_data(experiment)
    method = method_of(experiment)
    warn(method.lint(experiment), strict=strict)
    folder = out or new_folder(Path("runs") / experiment.name)
    log(f"{experiment.name}: {experiment.about}")
    if isinstance(experiment, DiffusionExperiment):
        log(network_line(experiment))
    log(f"Run folder {folder}")
    resumes = f"The same command with --out {folder} resumes from here."
    with stoppable(f"Stopped. {resumes}"):
        run = run_experiment(
            experiment, folder, device=device, hooks=[TrainingProgress()], on_start=log_start
        )
    if not run.finished:
        log(f"\nStopped at {run.images_seen:,} images, saved. {resumes}")
        raise typer.Exit(INTERRUPTED)
    log(f"Finished at {run.images_seen:,} images.")
    for line in method.describe(experiment, run):
        log(line)


def _one_source(argument: str | None, option: str | None) -> str | None:
    if argument is not None and option is not None:
        raise InputError(
            f"The data set is given twice: '{argument}' and --data '{option}'.",
            hint="Leave one of them out.",
        )
    return argument if option is None else option


def new_folder(base: Path) -> Path:
    """A folder beside others of the same kind, named by the time; never one that exists."""
    from sfumato.cli.show import unused

    digits = "".join(filter(str.isdigit, now()[:19]))
    return unused(base.with_name(f"{base.name}-{digits[:8]}-{digits[8:]}"))


def log_start(run: "Run") -> None:
    """One line before the first step: new, resumed, or finished."""
    if run.finished:
        log(f"Already trained: {run.images_seen:,} images.")
    elif run.images_seen:
        log(f"Resuming from the checkpoint at {run.images_seen:,} images, on {run.device}.")
    else:
        log(f"Training on {run.device}.")
