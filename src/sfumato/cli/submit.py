"""`sfumato submit`: training as jobs of SLURM."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.base.errors import ConfigError
from sfumato.base.words import counted
from sfumato.cli.checks import checked_folder
from sfumato.cli.options import Device, Preset, Settings, TrainingOptions, register
from sfumato.cli.show import log, new_table, print_table
from sfumato.cli.train import (
    DataSet,
    Origin,
    RunFolder,
    SameDataSet,
    Strict,
    check_sources,
    loaded,
    new_folder,
    one_source,
)
from sfumato.config.schema import Experiment

if TYPE_CHECKING:
    from sfumato.launch.script import Resources

submit_app = typer.Typer(help="Train as jobs of a SLURM cluster.", no_args_is_help=True)


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """What the job asks of the cluster."""

    nodes: Annotated[int, typer.Option(min=1, help="Machines of a run.")] = 1
    gpus_per_node: Annotated[
        int, typer.Option(min=0, help="GPUs of a node, each with a process; 0 trains on the CPU.")
    ] = 1
    cpus: Annotated[int, typer.Option(min=1, help="CPU cores of a process.")] = 4
    memory: Annotated[int, typer.Option(min=1, help="Memory of a process, in GB.")] = 32
    time: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Time limit: minutes, H:MM:SS or D-HH; else the partition's."
        ),
    ] = None
    save_seconds: Annotated[
        int, typer.Option(min=1, max=65_535, help="Seconds before the limit to save and requeue.")
    ] = 120
    partition: Annotated[str | None, typer.Option(help="Partition of the cluster.")] = None
    account: Annotated[str | None, typer.Option(help="Account that pays.")] = None
    sbatch: Annotated[
        list[str] | None,
        typer.Option(metavar="OPTION", help="Any option of sbatch, as --qos=long; repeatable."),
    ] = None
    print_: Annotated[
        bool, typer.Option("--print", help="Only print the script; nothing is written.")
    ] = False

    def resources(self) -> "Resources":
        """`InputError` for a time that SLURM does not know."""
        from sfumato.launch.script import Resources

        named = {"--partition": self.partition, "--account": self.account}
        options = [f"{name}={value}" for name, value in named.items() if value is not None]
        return Resources(
            nodes=self.nodes,
            gpus_per_node=self.gpus_per_node,
            cpus=self.cpus,
            memory=self.memory,
            time=self.time,
            save_seconds=self.save_seconds,
            options=[*options, *(self.sbatch or [])],
        )


@dataclass(frozen=True, kw_only=True)
class WhatOptions:
    """On what, from where and how strictly: as `sfumato train` has them."""

    data: SameDataSet = None
    origin: Origin = None
    strict: Strict = False
    device: Device = "auto"

    def arguments(self, preset: str, source: str | None, settings: Sequence[str]) -> list[str]:
        """The command line of `sfumato train`, without --out."""
        named = {"--data": source, "--from": self.origin}
        given = [part for name, value in named.items() if value for part in (name, value)]
        given += ["--strict"] if self.strict else []
        given += ["--device", self.device] if self.device != "auto" else []
        return [preset, *given, *set_arguments(settings)]


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """Which runs, and how many of them at once."""

    over: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SECTION.KEY=V,V,...", help="Values of a setting to train with; repeatable."
        ),
    ] = None
    parallel: Annotated[
        int | None, typer.Option(min=1, help="Runs that may train at the same time.")
    ] = None


def set_arguments(settings: Sequence[str]) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def train(
    preset: Preset,
    dataset: DataSet = None,
    out: RunFolder = None,
    *,
    what: WhatOptions,
    training: TrainingOptions,
    settings: Settings = None,
    job: JobOptions,
) -> None:
    """Train a preset as a job. It saves before its time limit and when it is preempted, is
    requeued, and goes on."""
    resources = job.resources()
    source, settings = one_source(dataset, what.data), training.overrides(settings or [])
    experiment = loaded(preset, source, settings, origin=what.origin, out=out)
    if not job.print_:
        check_sources(experiment, out)
    _check_processes(experiment, resources)
    folder = out or new_folder(Path("runs") / experiment.name)
    _check_run(experiment, folder)
    _submit(folder, what.arguments(preset, source, settings), job)


def sweep(
    preset: Preset,
    dataset: DataSet = None,
    out: Annotated[
        Path | None, typer.Option(callback=checked_folder, help="Folder of the runs.")
    ] = None,
    *,
    which: SweepOptions,
    what: WhatOptions,
    training: TrainingOptions,
    settings: Settings = None,
    job: JobOptions,
) -> None:
    """Train a preset with each combination of values as an array of jobs; results.md has one table
    of them."""
    from sfumato.launch.sweep import check_sweep, combinations

    if not which.over:
        raise ConfigError(
            "A sweep needs values.",
            hint="--over training.optimizer.lr=0.001,0.0003 --over seed=0,1",
        )
    resources, runs = job.resources(), combinations(which.over)
    source, settings = one_source(dataset, what.data), training.overrides(settings or [])
    experiments = {
        name: loaded(preset, source, [*settings, *own], origin=what.origin, out=None)
        for name, own in runs.items()
    }
    _check_distinct(experiments)
    first = next(iter(experiments.values()))
    folder = out or new_folder(Path("runs") / f"{first.name}-sweep")
    check_sweep(folder, runs)
    for name, experiment in experiments.items():
        if not job.print_:
            check_sources(experiment, None)
        _check_processes(experiment, resources)
        _check_run(experiment, folder / name)
    _submit(
        folder, what.arguments(preset, source, settings), job, runs=runs, parallel=which.parallel
    )


def results(
    folder: Annotated[Path, typer.Argument(help="The folder of a sweep.")],
) -> None:
    """Print the table of a sweep, and write results.md and results.json into its folder."""
    from sfumato.launch.sweep import results_table, write_results

    header, rows = results_table(write_results(folder))
    table = new_table(header, left=range(len(header) - 3))
    for row in rows:
        table.add_row(*row)
    print_table(table)
    log(str(folder / "results.md"))


register(
    submit_app,
    [
        (train, "sfumato submit train cifar10 --nodes 2 --gpus-per-node 4 --time 12:00:00"),
        (
            sweep,
            "sfumato submit sweep digits --over training.optimizer.lr=0.001,0.0003 --over seed=0,1",
        ),
        (results, "sfumato submit results runs/digits-sweep"),
    ],
)


def _submit(
    folder: Path,
    arguments: Sequence[str],
    job: JobOptions,
    *,
    runs: Mapping[str, Sequence[str]] | None = None,
    parallel: int | None = None,
) -> None:
    """Print the script of a job, or submit it and say where it is."""
    from sfumato.base.files import JOB
    from sfumato.launch.jobs import SCRIPT, submit_job
    from sfumato.launch.script import job_script

    own = None if runs is None else {name: set_arguments(one) for name, one in runs.items()}
    script = job_script(folder, arguments, job.resources(), runs=own, parallel=parallel)
    if job.print_:
        log(script.rstrip("\n"))
        return
    number = submit_job(folder, script, runs=runs)
    tasks = "" if runs is None else f", {counted(len(runs), 'run')}"
    log(f"Submitted job {number}{tasks}: {folder}")
    log(f"Script {folder / JOB / SCRIPT}; output in {folder / JOB}")
    log("`sfumato jobs` shows where it runs.")


def _check_distinct(experiments: Mapping[str, Experiment]) -> None:
    """`ConfigError` for two runs of the same settings, such as 0.001 and 1e-3."""
    known: dict[str, str] = {}
    for name, experiment in experiments.items():
        same = known.setdefault(experiment.model_dump_json(), name)
        if same != name:
            raise ConfigError(
                f"The runs {same} and {name} have the same settings.",
                hint="Give each value of --over once.",
            )


def _check_processes(experiment: Experiment, resources: "Resources") -> None:
    """`ConfigError` where these processes cannot share the training."""
    size = resources.nodes * resources.processes
    if size == 1:
        return
    from sfumato.data.shares import check_shares

    check_shares(experiment.length(1)[1], size)
    from sfumato.methods.registry import method_of

    if not method_of(experiment).distributed:
        raise ConfigError(
            f"{experiment.name} is trained in one process, not in {size}.",
            hint="Leave out --nodes and --gpus-per-node.",
        )


def _check_run(experiment: Experiment, folder: Path) -> None:
    """`ConfigError` for a folder that holds another experiment."""
    if not (folder / "experiment.yaml").exists():
        return
    from sfumato.methods.registry import method_of
    from sfumato.training.folder import check_folder

    check_folder(method_of(experiment).resolve(experiment), folder)
