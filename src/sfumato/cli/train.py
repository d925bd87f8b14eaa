"""`sfumato train`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.base.environment import now
from sfumato.base.errors import InputError
from sfumato.base.words import counted
from sfumato.cli.checks import checked_folder, checked_source, is_first_rank
from sfumato.cli.dry_run import dry_run
from sfumato.cli.options import (
    INTERRUPTED,
    Device,
    Preset,
    Processes,
    Settings,
    TrainingOptions,
    run_in_processes,
    stoppable,
)
from sfumato.cli.show import log, unused
from sfumato.config.schema import (
    DiffusionExperiment,
    Experiment,
    WithImages,
    load_experiment,
)

if TYPE_CHECKING:
    from sfumato.training.loop import Hook


DataSet = Annotated[
    str | None, typer.Argument(help="A folder of images, a Hub name OWNER/NAME, or digits.")
]
SameDataSet = Annotated[
    str | None, typer.Option(metavar="SOURCE", help="The same as the second argument.")
]
RunFolder = Annotated[
    Path | None,
    typer.Option(callback=checked_folder, help="The run's folder; a run that is there is resumed."),
]
Origin = Annotated[
    str | None,
    typer.Option(
        "--from", metavar="MODEL", help="Begin with this model's weights, network and encoder."
    ),
]
Strict = Annotated[bool, typer.Option("--strict", help="Turn warnings into errors.")]


@dataclass(frozen=True, kw_only=True)
class HowOptions:
    """By how many processes, how long and how strictly."""

    strict: Strict = False
    device: Device = "auto"
    processes: Processes = None
    time_limit: Annotated[
        float | None, typer.Option(min=0, help="Minutes after which training ends, saved.")
    ] = None
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Measure one step on noise; print what a run would take."),
    ] = False
    price: Annotated[
        float, typer.Option(min=0, help="Dollars of an hour of the device, for --dry-run.")
    ] = 2.0


def train(
    preset: Preset,
    dataset: DataSet = None,
    data: SameDataSet = None,
    out: RunFolder = None,
    *,
    origin: Origin = None,
    training: TrainingOptions,
    settings: Settings = None,
    how: HowOptions,
) -> None:
    """Train a preset. Interrupted and started again with the same --out, it resumes exactly."""
    source, settings = one_source(dataset, data), training.overrides(settings or [])
    experiment = loaded(preset, source, settings, origin=origin, out=out)
    if how.dry_run:
        if source is not None:
            checked_source(source)
        dry_run(experiment, how.device, how.price)
        return
    check_sources(experiment, out)
    out = out or new_folder(Path("runs") / experiment.name)
    if how.processes is not None:
        from sfumato.data.shares import check_shares

        check_shares(experiment.length(1)[1], how.processes)
        run_in_processes(how.processes, "--out", str(out))
    changed = [*([] if source is None else [f"data.source={source}"]), *settings]
    train_experiment(experiment, out, how, changed)


def train_experiment(
    experiment: Experiment,
    out: Path,
    how: HowOptions,
    changed: Sequence[str] = (),
    *,
    given: Path | None = None,
) -> None:
    """Train, and say how it ended. `changed`: as in `_looked`; `given`: the --out of a command that
    trains several runs."""
    from sfumato.methods.registry import method_of, run_experiment
    from sfumato.training.hooks import TimeLimitHook
    from sfumato.training.progress import TrainingProgress, print_start

    resumes = f"The same command with --out {given or out} resumes from here."
    hooks: list[Hook] = [TrainingProgress()]
    if how.time_limit is not None:
        hooks.append(TimeLimitHook(seconds=60 * how.time_limit))
    with stoppable(f"Stopped. {resumes}"):
        run = run_experiment(
            experiment,
            out,
            device=how.device,
            hooks=hooks,
            look=partial(_looked, changed=changed, out=out, strict=how.strict),
            on_start=print_start,
        )
    if not run.finished:
        log(f"\nStopped at {counted(run.images_seen, 'image')}, saved. {resumes}")
        raise typer.Exit(INTERRUPTED)
    if not run.world.is_main:
        return
    log(f"Finished at {counted(run.images_seen, 'image')}.")
    for line in method_of(experiment).describe(experiment, run):
        log(line)


def loaded(
    preset: str,
    source: str | None,
    settings: Sequence[str],
    *,
    origin: str | None,
    out: Path | None,
) -> Experiment:
    """The experiment; what is mistyped is reported before torch is imported."""
    chosen = [] if source is None else [f"data.source={json.dumps(source)}"]
    if origin is None:
        return load_experiment(preset, [*chosen, *settings])
    from sfumato.generation.origin import load_from

    return load_from(origin, preset, [*chosen, *settings], out)


def check_sources(experiment: Experiment, out: Path | None) -> None:
    """What is missing is reported before torch is imported."""
    if out is not None and is_first_rank():
        from sfumato.training.folder import check_is_run

        check_is_run(out)
    if is_first_rank():
        from sfumato.training.trackers.registry import check_trackers

        check_trackers(getattr(experiment.training, "trackers", ()))
    if isinstance(experiment, WithImages):
        checked_source(experiment.data.source)
    if isinstance(experiment, DiffusionExperiment):
        from sfumato.text.opening import fetch

        fetch(experiment.text.encoder)


def _looked(
    experiment: Experiment, *, changed: Sequence[str], out: Path, strict: bool
) -> Experiment:
    """The experiment with its data resolved, linted; a report of what will be trained. `changed`:
    what was given beside the preset, which its description does not know."""
    from sfumato.cli.data import resolve_data
    from sfumato.methods.diffusion import network_line
    from sfumato.methods.registry import method_of
    from sfumato.training.lint import warn

    if isinstance(experiment, WithImages):
        experiment = resolve_data(experiment)
    warn(method_of(experiment).lint(experiment), strict=strict)
    log(f"{experiment.name}: {experiment.about}")
    if changed:
        log(f"Changed: {', '.join(changed)}")
    if isinstance(experiment, DiffusionExperiment):
        if experiment.origin is not None:
            origin = experiment.origin.model
            log(f"Begins with the weights, the network and the image format of {origin}.")
        log(network_line(experiment))
    log(f"Run folder {out}")
    return experiment


def one_source(argument: str | None, option: str | None) -> str | None:
    if argument is not None and option is not None:
        raise InputError(
            f"The data set is given twice: '{argument}' and --data '{option}'.",
            hint="Leave one of them out.",
        )
    return argument if option is None else option


def new_folder(base: Path) -> Path:
    """A folder beside others of the same kind, named by the time; never one that exists."""
    digits = "".join(filter(str.isdigit, now()[:19]))
    return unused(base.with_name(f"{base.name}-{digits[:8]}-{digits[8:]}"))
