"""`sfumato bench`: our training and sampling beside plain loops; the other benchmarks' names."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.cli.bench_data import data, decoding, order
from sfumato.cli.evolution_bench import evolution
from sfumato.cli.gpu_day import gpu_day
from sfumato.cli.inpainting import inpainting
from sfumato.cli.latents_bench import latents
from sfumato.cli.options import Device, Pairs, Record, Scales, Settings, SolverOptions, register
from sfumato.cli.profiling import batch_size, profile
from sfumato.cli.scaling import scaling
from sfumato.cli.show import log, new_table, open_model, print_table, unused
from sfumato.cli.studio_bench import studio
from sfumato.config.schema import DiffusionExperiment, load_experiment
from sfumato.generation.bundle_names import is_model

if TYPE_CHECKING:
    from sfumato.bench.steps import Comparison


def train(
    preset: Annotated[str, typer.Argument(help="A preset's name or a YAML file.")] = "digits",
    pairs: Pairs = 15,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of each timing.")] = 8,
    settings: Settings = None,
    out: Record = None,
    device: Device = "auto",
) -> None:
    """Our training step against a bare loop on the same network, data and batch."""
    experiment = load_experiment(preset, settings or [], schema=DiffusionExperiment)
    from sfumato.bench.plain_loops import plain_training
    from sfumato.bench.steps import compare_training, prepared_training
    from sfumato.generation.loading import resolve_device

    with prepared_training(experiment, device) as run:
        plain_step = plain_training(experiment, run)
        comparison = compare_training(run, plain_step, pairs=pairs, steps=steps)
    conditions = {
        "model": experiment.name,
        "settings": list(settings or []),
        "batch_size": experiment.training.batch_size,
        "steps": steps,
        "device": str(resolve_device(device)),
    }
    print_comparisons([comparison], conditions, out)


def sample(
    model: Annotated[
        str, typer.Argument(help="A run, a pipeline, bundled:mnist, or a preset (untrained).")
    ] = "digits",
    *,
    scales: Scales = "0,1,5",
    batch: Annotated[int, typer.Option(min=1, help="Images sampled at once.")] = 32,
    pairs: Pairs = 9,
    solver: SolverOptions,
    out: Record = None,
    device: Device = "auto",
) -> None:
    """Our sampling against the paper's loop, with the same scheduler, steps and batch."""
    experiment = None if is_model(model) else load_experiment(model, schema=DiffusionExperiment)
    from sfumato.bench.steps import compare_sampling, untrained_model

    if experiment is None:
        opened = open_model(model, device, **solver.changes())
    else:
        opened = untrained_model(experiment, device=device).with_(**solver.changes())
    comparisons = compare_sampling(opened, scales=scales, batch=batch, pairs=pairs)
    conditions = {
        "model": model,
        "batch_size": batch,
        "sampler": opened.sampling.sampler,
        "steps": opened.sampling.steps,
        "device": str(opened.device),
    }
    print_comparisons(comparisons, conditions, out)


bench_app = typer.Typer(
    help="Where the time and the memory of training, sampling and loading go.", no_args_is_help=True
)
register(
    bench_app,
    [
        (train, "sfumato bench train digits --out bench.json"),
        (sample, "sfumato bench sample runs/demo --scales 0,1,5"),
        (profile, "sfumato bench profile wikiart --batch-size 16 --out profile.json"),
        (batch_size, "sfumato bench batch-size wikiart --out memory.json"),
        (data, "sfumato bench data wikiart --out bench.json"),
        (order, "sfumato bench order wikiart-sorted --out runs/order"),
        (decoding, "sfumato bench decoding wikiart"),
        (scaling, "sfumato bench scaling cifar10 --ranks 16"),
        (latents, "sfumato bench latents wikiart-tiny --out runs/latents.json"),
        (inpainting, "sfumato bench inpainting bundled:mnist --out runs/inpainting.json"),
        (studio, "sfumato bench studio bundled:mnist --out runs/studio.json"),
        (evolution, "sfumato bench evolution bundled:mnist --steps 10 --out runs/evolution.json"),
        (gpu_day, "sfumato bench gpu-day --mnist mnist --cifar10 cifar10 --out runs/gpu-day"),
    ],
)


# What is printed ----------------------------------------------------------------------------------


def print_comparisons(
    comparisons: "Sequence[Comparison]", conditions: Mapping[str, Any], out: Path | None
) -> None:
    """A table of speeds and ratios, and all timings in a JSON file."""
    from sfumato.bench.steps import save_comparisons

    table = new_table(["", "ours", "plain", "ratio", "95 % interval", "bar", ""])
    for row in comparisons:
        speeds = [
            f"{row.images / median(seconds):.1f} images/s"
            for seconds in (row.ours_seconds, row.plain_seconds)
        ]
        interval = f"{row.ratio.low:.3f} - {row.ratio.high:.3f}"
        verdict = "" if row.reached else "missed"
        ratio = f"{row.ratio.value:.3f}"
        table.add_row(row.name, *speeds, ratio, interval, f"{row.bar:g}", verdict)
    print_table(table)
    log(
        f"Ratio: time of the plain loop over ours, median of {comparisons[0].ratio.count} pairs "
        f"taken in turn; {', '.join(f'{k} {v}' for k, v in conditions.items() if v)}."
    )
    if out is not None:
        path = unused(out)
        save_comparisons(comparisons, path, **conditions)
        log(f"Record  {path}")
