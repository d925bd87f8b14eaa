"""`sfumato bench`: training, sampling and data loading beside plain loops."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.base.errors import InputError
from sfumato.cli.checks import checked_file, checked_folder
from sfumato.cli.data import data_config
from sfumato.cli.options import (
    INTERRUPTED,
    RESUMES,
    Device,
    Scales,
    Settings,
    SolverOptions,
    Source,
    register,
    stoppable,
)
from sfumato.cli.scaling import scaling
from sfumato.cli.show import (
    check_empty,
    log,
    log_wrapped,
    new_table,
    open_model,
    print_table,
    unused,
)
from sfumato.config.schema import DiffusionExperiment, load_experiment
from sfumato.generation.bundle_names import is_model

if TYPE_CHECKING:
    from sfumato.bench.loading import Loading
    from sfumato.bench.steps import Comparison

Pairs = Annotated[int, typer.Option(min=3, help="Rounds of timings, taken in turn.")]
Record = Annotated[
    Path | None,
    typer.Option("--out", callback=checked_file, help="JSON to write, with every timing."),
]
Resolution = Annotated[int, typer.Option(min=1, help="Height and width in pixels.")]


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
    from sfumato.bench.steps import compare_training, plain_training, prepared_training
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


@dataclass(frozen=True, kw_only=True)
class DayOptions:
    """What was prepared before; a part without its data is left out."""

    mnist: Annotated[Path | None, typer.Option(help="A folder of MNIST.")] = None
    cifar10: Annotated[Path | None, typer.Option(help="A folder of CIFAR-10.")] = None
    classifier: Annotated[str, typer.Option(help="A run of CIFAR-10's classifier.")] = "auto"
    tests: Annotated[Path | None, typer.Option(help="tests/test_gpu.py of a checkout.")] = None

    def check(self) -> None:
        """`InputError` for CIFAR-10 without a classifier."""
        if self.cifar10 is not None and self.classifier == "auto":
            raise InputError(
                "CIFAR-10 needs a classifier that was trained before: training one takes most of a "
                "day like this.",
                hint="Give --classifier RUN, a run of `sfumato train classifier`.",
            )


def gpu_day(
    out: Annotated[
        Path,
        typer.Option(callback=checked_folder, help="Folder for the record, pictures and runs."),
    ],
    *,
    minutes: Annotated[float, typer.Option(min=0.1, help="Minutes in all.")] = 8.0,
    presets: Annotated[
        str, typer.Option(help="Whose steps are timed, with commas.")
    ] = "mnist,cifar10-small,cifar10",
    count: Annotated[int, typer.Option(min=10, help="Images of each guidance scale.")] = 1_000,
    prepared: DayOptions,
    settings: Settings = None,
    device: Device = "auto",
) -> None:
    """A few minutes of one GPU: tests, speed of each preset, MNIST whole, CIFAR-10 for the rest."""
    names, own = presets.split(","), list(settings or [])
    for name in names:
        load_experiment(name, own, schema=DiffusionExperiment)
    check_empty(out)
    prepared.check()
    from sfumato.bench.gpu_day import Plan, gpu_day

    plan = Plan(
        out=out,
        device=device,
        minutes=minutes,
        presets=names,
        settings=own,
        count=count,
        **asdict(prepared),
    )
    record = gpu_day(plan, log)
    print_day(record)
    log(f"Record  {out / 'gpu-day.json'}")
    parts = [found for found in record.values() if isinstance(found, dict)]
    if any("failed" in found or found.get("exit_code") for found in parts):
        raise typer.Exit(1)


def print_day(record: Mapping[str, Any]) -> None:
    """The steps that were timed as a table, then what each training came to."""
    table = new_table(["step of", "batch", "ms", "images/s", "of floor", "bare", "diffusers"])
    for name, found in record.items():
        if name.startswith("step ") and "over" in found:
            ratios = [f"{one['value']:.2f}" for one in found["over"].values()]
            table.add_row(
                name.removeprefix("step "),
                str(found["batch_size"]),
                f"{found['step_ms']:.1f}",
                f"{found['images_per_second']:,.0f}",
                f"{100 * found['share_of_floor']:.0f} %",
                *ratios,
            )
    print_table(table)
    for name in ("mnist", "cifar10-small"):
        found = record.get(name, {})
        if "images_seen" in found:
            log(f"{name}: {found['images_seen']:,} images in {found['training_seconds']:.0f} s")
        for row in found.get("rows", []):
            log(f"  {row['title']}: class accuracy {row.get('class_accuracy', 'not measured')}")
    tests = record["tests"]
    for line in (tests.get("summary", ""), *tests.get("failed_tests", [])):
        if line:
            log(f"tests: {line}")
    for name, found in record.items():
        if isinstance(found, dict) and "failed" in found:
            log(f"{name} failed: {found['failed']}")


@dataclass(frozen=True, kw_only=True)
class LoaderOptions:
    """What every loader of a comparison is given."""

    batch: Annotated[int, typer.Option(min=1, help="Images of a batch.")] = 16
    workers: Annotated[int, typer.Option(min=0, help="Worker processes of every loader.")] = 2
    batches: Annotated[
        int | None, typer.Option(min=1, help="Most batches of each timing; else an epoch.")
    ] = None
    only: Annotated[str | None, typer.Option(help="Ways to load, with commas.")] = None


def data(
    folder: Source,
    *,
    pairs: Pairs = 3,
    loaders: LoaderOptions,
    resolution: Resolution = 128,
    settings: Settings = None,
    out: Record = None,
) -> None:
    """The paper's Table 2: its three loaders, `datasets`, and ours, on your files."""
    config = data_config(folder, settings, resolution=resolution)
    from sfumato.base.files import write_bytes
    from sfumato.bench.loaders import WAYS
    from sfumato.bench.loading import compare_loading, save_loading
    from sfumato.bench.loading_page import chart, write_loading
    from sfumato.data.opening import source_name
    from sfumato.data.survey import resolve

    config = resolve(config)
    only = loaders.only
    with stoppable("Stopped before the last round: nothing is kept."):
        loading = compare_loading(
            config,
            pairs=pairs,
            batch_size=loaders.batch,
            workers=loaders.workers,
            most_batches=loaders.batches,
            ways=list(WAYS) if only is None else [name.strip() for name in only.split(",")],
            log=log,
        )
    print_loading(loading)
    if out is not None:
        path, picture = unused(out), unused(out.with_suffix(".png"))
        page = unused(out.with_suffix(".html"))
        conditions = {"source": source_name(config), "resolution": resolution}
        save_loading(loading, path, **conditions)
        write_bytes(picture, chart(loading))
        write_loading(loading, config, page, **conditions)
        log(f"Record  {path}\nChart   {picture}\nPage    {page}")


def order(
    folder: Source,
    images: Annotated[int, typer.Option(min=1, help="Images that each run sees.")] = 8000,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each order.")] = 3,
    resolution: Resolution = 32,
    settings: Settings = None,
    out: Annotated[
        Path, typer.Option(help="Folder of the runs; those that are there are resumed.")
    ] = Path("runs/order"),
    device: Device = "auto",
) -> None:
    """What the order of the images does to training: random, stream, file by file, as stored."""
    chosen = [
        f"data.source={json.dumps(folder)}",
        f"data.resolution={resolution}",
        "data.loading=memory",
        f"training.images={images}",
        f"training.sample_every_images={10 * images}",
    ]
    experiment = load_experiment("small", [*chosen, *(settings or [])], schema=DiffusionExperiment)
    from sfumato.bench.order import compare_orders, table_rows
    from sfumato.data.survey import resolve
    from sfumato.training.progress import TrainingProgress

    experiment = experiment.model_copy(update={"data": resolve(experiment.data)})
    found = compare_orders(
        experiment, out, seeds=range(seeds), device=device, log=log, progress=TrainingProgress
    )
    if found is None:
        log(f"\n{RESUMES}")
        raise typer.Exit(INTERRUPTED)
    print_rows(table_rows(found))
    log(
        f"{len(found[0].losses):,} held-out images at the same noise, mean of {seeds} seeds after "
        f"{images:,} images each; the interval is over images, the spread over seeds."
    )
    log(f"Record  {out / 'order.json'}")


def decoding(
    source: Source,
    resolution: Resolution = 128,
    most: Annotated[int, typer.Option(min=1, help="Images that are decoded each time.")] = 512,
    settings: Settings = None,
) -> None:
    """How fast a source is decoded, against bare Pillow; how fast prepared data are gathered."""
    config = data_config(source, settings, resolution=resolution)
    from sfumato.bench.decoding import decoding_speed, gathering_speed
    from sfumato.data.opening import open_images
    from sfumato.data.survey import resolve

    config = resolve(config)
    size = f"{config.resolution}x{config.resolution}"
    if open_images(config).prepared is not None:
        speed = gathering_speed(config)
        log(f"Gathered   {speed:,.0f} images/s at {size}: random batches from the mapped file")
        return
    found = decoding_speed(config, most=most)
    log(
        f"Ours       {found.ours:.1f} images/s to {size}: {found.images:,} images read and decoded "
        f"on {found.cores} threads\n"
        f"Bare       {found.bare:.1f} images/s: Pillow alone, JPEGs at reduced scale too, on "
        f"{found.cores} processes\n"
        f"Full       {found.full:.1f} images/s: the same without reduced scales\n"
        f"Difference mean {found.mean_difference:.2f}, most {found.max_difference} of 255, PSNR "
        f"{found.psnr_db:.1f} dB: reduced scales against full decoding"
    )


bench_app = typer.Typer(
    help="Time our training and sampling beside a plain loop over diffusers.", no_args_is_help=True
)
register(
    bench_app,
    [
        (train, "sfumato bench train digits --out bench.json"),
        (sample, "sfumato bench sample runs/demo --scales 0,1,5"),
        (data, "sfumato bench data wikiart --out bench.json"),
        (order, "sfumato bench order wikiart-sorted --out runs/order"),
        (decoding, "sfumato bench decoding wikiart"),
        (scaling, "sfumato bench scaling cifar10 --ranks 16"),
        (gpu_day, "sfumato bench gpu-day --mnist mnist --cifar10 cifar10 --out runs/gpu-day"),
    ],
)


# What is printed ----------------------------------------------------------------------------------


def print_rows(rows: Sequence[Sequence[str]]) -> None:
    """A table, the header first."""
    table = new_table(rows[0], padding=(0, 2, 0, 0))
    for row in rows[1:]:
        table.add_row(*row)
    log("")
    print_table(table)


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


def print_loading(loading: "Loading") -> None:
    from sfumato.bench.loaders import WAYS
    from sfumato.bench.loading_page import in_figures

    names = ["", "s a\nbatch", "images/s", "peak\nMB", "style\nentropy", "displaced", "ours", "bar"]
    table = new_table(names, padding=(0, 1, 0, 0))
    for row in loading.rows:
        if row.problem:
            table.add_row(row.label, row.problem)
            continue
        ratio, bar = loading.ratio(row.name), WAYS[row.name].bar
        table.add_row(
            row.label,
            f"{row.seconds_a_batch:.4f}",
            in_figures(loading.batch_size / row.seconds_a_batch),
            f"{row.peak_bytes / 1e6:,.0f}",
            "" if row.entropy is None else f"{row.entropy:.2f}",
            "" if row.displacement is None else f"{row.displacement:.2f}",
            "" if ratio is None else f"{in_figures(ratio)} x",
            "" if bar is None else f"{bar:g} x",
        )
    log("")
    print_table(table)
    for name, gain in loading.gains().items():
        log(f"Gain by {name}: {gain:.2f} x")
    labelled = any(row.entropy is not None for row in loading.rows)
    log_wrapped(
        f"{loading.images:,} training images, batches of {loading.batch_size}, {loading.workers} "
        f"workers, medians of {len(loading.rows[0].timings)} rounds taken in turn. peak: memory of "
        "the loader's processes. ours: how many times faster sfumato's stream is; bar: what it "
        "should be at least. Style entropy: of a batch against random batches"
        + ("" if labelled else " (empty: the data have no labels)")
        + ". Displaced: from the order of the files, 0.33 in a random order."
    )
