"""`sfumato bench profile` and `sfumato bench batch-size`: Tables 3 and 4 of the paper."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.base.errors import InputError
from sfumato.cli.checks import parsed_counts
from sfumato.cli.options import Device, Preset, Settings
from sfumato.cli.show import log, log_wrapped, new_table, print_table, unused
from sfumato.config.schema import DiffusionExperiment, load_experiment

if TYPE_CHECKING:
    from sfumato.bench.memory import BatchSizes
    from sfumato.bench.profile import Profile

_PAPER_PRESETS = ("wikiart", "wikiart-150m")
_CPU_SIZES, _GPU_SIZES = (1, 2, 4, 8), (2, 4, 8, 16)


@dataclass(frozen=True, kw_only=True)
class ProfileOptions:
    """What is measured, on which images."""

    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images of a step; else the preset's.")
    ] = None
    steps: Annotated[int, typer.Option(min=2, help="Steps that are measured.")] = 50
    data: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Images; else the preset's.")
    ] = None
    stand_in: Annotated[
        bool, typer.Option("--stand-in", help="Noise in place of images; needs no data.")
    ] = False
    simulate_step_ms: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            metavar="MS",
            help="Load for steps of this length in place of training: how long a GPU would wait.",
        ),
    ] = None


def profile(
    preset: Preset,
    *,
    chosen: ProfileOptions,
    settings: Settings = None,
    out: Annotated[
        Path | None, typer.Option(help="JSON to write; the bar chart lies beside it.")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Chrome trace of three steps to write (.json, .json.gz).")
    ] = None,
    device: Device = "auto",
) -> None:
    """Where the time of a training step goes: the paper's Table 3, and what to change first."""
    experiment = _experiment(preset, chosen, settings)
    if chosen.simulate_step_ms is not None and (trace is not None or chosen.stand_in):
        raise InputError(
            "--simulate-step-ms measures the loading of real images and trains nothing.",
            hint="Leave --trace and --stand-in out.",
        )
    from sfumato.bench.profile import profile_training, write_trace
    from sfumato.bench.stand_in import on_stand_in
    from sfumato.bench.steps import prepared_training

    if chosen.simulate_step_ms is not None:
        found = _simulated(experiment, chosen.simulate_step_ms / 1e3, chosen.steps)
    else:
        with TemporaryDirectory(prefix="sfumato-bench-") as folder:
            if chosen.stand_in:
                experiment = on_stand_in(experiment, Path(folder))
            with prepared_training(experiment, device) as run:
                found = profile_training(run, name=experiment.name, steps=chosen.steps)
                if trace is not None:
                    write_trace(run, path := unused(trace))
                    log(f"Trace   {path}")
    print_profile(found)
    if out is not None:
        _write_profile(found, out, stand_in=chosen.stand_in, settings=list(settings or []))


def _experiment(
    preset: str, chosen: ProfileOptions, settings: list[str] | None
) -> DiffusionExperiment:
    import json

    own = [] if chosen.data is None else [f"data.source={json.dumps(chosen.data)}"]
    if chosen.batch_size is not None:
        own.append(f"training.batch_size={chosen.batch_size}")
    return load_experiment(preset, [*own, *(settings or [])], schema=DiffusionExperiment)


def _simulated(experiment: DiffusionExperiment, seconds: float, steps: int) -> "Profile":
    """The loading of an experiment's images for steps of a given length."""
    import torch

    from sfumato.bench.profile import SimulatedDevice, profile_loading
    from sfumato.data.loaders import open_training, resolve_loading, training_batches
    from sfumato.data.survey import resolve

    data = resolve_loading(resolve(experiment.data))
    batches = training_batches(
        open_training(data),
        data,
        seed=experiment.seed,
        batch_size=experiment.training.batch_size,
        device=torch.device("cpu"),
    )
    return profile_loading(
        batches,
        SimulatedDevice(seconds),
        name=experiment.name,
        step_seconds=seconds,
        steps=steps,
    )


def print_profile(found: "Profile") -> None:
    """A row for each stage, the paper's beside it, and the bottleneck."""
    from sfumato.bench.profile import PAPER_MS, STAGES

    paper = found.name in _PAPER_PRESETS
    table = new_table(["stage", "ms", "95 % interval", "share", *(["paper, ms"] * paper)])
    for name, one in found.estimates().items():
        low, high = one.interval
        row = [STAGES[name], f"{1e3 * one.value:,.2f}", f"{1e3 * low:,.2f} - {1e3 * high:,.2f}"]
        row.append(f"{100 * found.share(name):.1f} %")
        table.add_row(*row, *([f"{PAPER_MS[name]:,.1f}" if name in PAPER_MS else ""] * paper))
    total = ["together", f"{1e3 * found.seconds:,.2f}", "", "100.0 %"]
    table.add_row(*total, *([f"{sum(PAPER_MS.values()):,.1f}"] * paper))
    print_table(table)
    without = f", without these marks {1e3 * found.plain_seconds:,.2f} ms"
    log_wrapped(
        f"{found.name}, {found.batch_size} images a step on {found.device}, means of "
        f"{len(found.steps)} steps. By the clock a step takes {1e3 * found.whole_seconds:,.2f} ms"
        f"{'' if found.simulated else without}: "
        f"{found.batch_size / found.plain_seconds:,.4g} images/s."
    )
    log("")
    log_wrapped(found.bottleneck())


def _write_profile(found: "Profile", out: Path, **conditions: object) -> None:
    from sfumato.base.files import write_bytes
    from sfumato.bench.profile import PAPER_MS, chart, save_profile

    path, picture = unused(out), unused(out.with_suffix(".png"))
    save_profile(found, path, **conditions)
    paper = PAPER_MS if found.name in _PAPER_PRESETS else None
    write_bytes(picture, chart(found, paper=paper))
    log(f"\nRecord  {path}\nChart   {picture}")


# Batch sizes --------------------------------------------------------------------------------------


def _sizes(text: str | None) -> tuple[int, ...] | None:
    sizes = parsed_counts(text)
    if sizes is not None and len(set(sizes)) < 3:
        raise InputError(
            f"--sizes {text} are not three batch sizes.", hint="Give three or more, such as 1,2,4."
        )
    return sizes


@dataclass(frozen=True, kw_only=True)
class SizeOptions:
    """Which sizes are tried, and against which memory."""

    sizes: Annotated[
        Any,
        typer.Option(
            metavar="N,N,...",
            callback=_sizes,
            help="Batch sizes the model is fitted to, with commas.",
        ),
    ] = None
    memory: Annotated[
        float | None,
        typer.Option(min=0.001, metavar="GB", help="Another memory than this device's."),
    ] = None
    margin: Annotated[float, typer.Option(min=0, metavar="GB", help="Left free.")] = 2.0
    most: Annotated[int, typer.Option(min=1, help="Largest batch that is tried.")] = 512
    steps: Annotated[int, typer.Option(min=1, help="Timed steps of each size.")] = 5


def batch_size(
    preset: Preset,
    *,
    chosen: SizeOptions,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="JSON to write, with every trial.")] = None,
    device: Device = "auto",
) -> None:
    """The largest batch that fits, and the smallest that is as fast: the paper's Table 4.

    Trains on noise, each size in a process of its own: no data are needed.
    """
    experiment = load_experiment(preset, settings or [], schema=DiffusionExperiment)
    from sfumato.bench.memory import find_batch_sizes, save_batch_sizes
    from sfumato.generation.loading import resolve_device

    where = resolve_device(device)
    given = chosen.sizes or (_GPU_SIZES if where.type == "cuda" else _CPU_SIZES)
    found = find_batch_sizes(
        experiment,
        given,
        device=where,
        limit_bytes=None if chosen.memory is None else round(1e9 * chosen.memory),
        margin_bytes=round(1e9 * chosen.margin),
        most=chosen.most,
        steps=chosen.steps,
        log=log,
    )
    print_batch_sizes(found, str(where))
    if out is not None:
        path = unused(out)
        save_batch_sizes(found, path, settings=list(settings or []), device=str(where))
        log(f"Record  {path}")


def print_batch_sizes(found: "BatchSizes", device: str) -> None:
    """The trials, the line through their memory, and the two answers."""
    columns = ["images", "peak GB", "line", "ms a step", "images/s", "ms an image"]
    table = new_table(columns, left=())
    ran = [trial for trial in found.trials if not trial.failed]
    for trial in ran:
        rate = trial.images_per_second
        table.add_row(
            f"{trial.batch_size:,}",
            f"{trial.peak_bytes / 1e9:.3f}",
            f"{100 * found.model.error(trial):+.1f} %",
            f"{1e3 * trial.batch_size / rate:,.1f}",
            f"{rate:,.4g}",
            f"{1e3 / rate:,.3g}",
        )
    log("")
    print_table(table)
    model, best = found.model, found.recommended()
    log_wrapped(
        f"{found.name} on {device}. Peak memory = {model.fixed_bytes / 1e9:.3f} GB + "
        f"{model.image_bytes / 1e6:,.1f} MB an image; a line through the smaller sizes is "
        f"{100 * found.held_out_error:+.1f} % off at the largest of --sizes."
    )
    room = f"{found.limit_bytes / 1e9:.1f} GB less {found.margin_bytes / 1e9:g} GB"
    if found.checked is not None:
        checked = f"a real step took {found.checked.peak_bytes / 1e9:.2f} GB"
    else:
        checked = "not tried here"
    log_wrapped(f"Largest batch in {room}: {found.largest:,} images ({checked}).")
    log_wrapped(
        f"Use {best.batch_size:,} images a step: the smallest batch within 3 % of the best "
        f"throughput, {best.images_per_second:,.4g} images/s."
    )
