"""What the bench commands print."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from sfumato.base.files import write_bytes
from sfumato.bench.decoding import decoding_speed, gathering_speed
from sfumato.bench.loaders import WAYS
from sfumato.bench.loading import Loading, compare_loading, save_loading
from sfumato.bench.loading_page import chart, in_figures, write_loading
from sfumato.bench.order import compare_orders, told
from sfumato.bench.steps import (
    Comparison,
    compare_sampling,
    compare_training,
    save_comparisons,
    untrained_generator,
)
from sfumato.cli.show import Progress, print_table, say, say_wrapped, unused
from sfumato.config.schema import load_experiment
from sfumato.data.records import open_images, source_name
from sfumato.data.survey import resolve
from sfumato.diffusion.solvers.schedulers import sampler_of
from sfumato.generation.bundle_names import is_bundled
from sfumato.generation.model import ImageGenerator, resolve_device


def bench_training(
    preset: str,
    settings: Sequence[str],
    *,
    pairs: int,
    steps: int,
    device: str,
    out: Path | None,
) -> None:
    experiment = load_experiment(preset, settings)
    comparison = compare_training(experiment, pairs=pairs, steps=steps, device=device)
    conditions = {
        "model": experiment.name,
        "settings": list(settings),
        "batch_size": experiment.training.batch_size,
        "steps": steps,
        "device": str(resolve_device(device)),
    }
    print_comparisons([comparison], conditions, out)


def bench_sampling(
    model: str,
    *,
    scales: Sequence[float],
    batch: int,
    pairs: int,
    steps: int | None,
    scheduler: str | None,
    device: str,
    out: Path | None,
) -> None:
    if Path(model).is_dir() or is_bundled(model):
        generator = ImageGenerator.open(model, device=device)
    else:
        generator = untrained_generator(load_experiment(model), device=device)
    generator.use(scheduler=scheduler, steps=steps)
    comparisons = compare_sampling(generator, scales=scales, batch=batch, pairs=pairs)
    conditions = {
        "model": model,
        "batch_size": batch,
        "scheduler": sampler_of(generator.pipeline.scheduler)[0],
        "steps": generator.pipeline.config["num_inference_steps"],
        "device": str(generator.pipeline.unet.device),
    }
    print_comparisons(comparisons, conditions, out)


def print_comparisons(
    comparisons: Sequence[Comparison], conditions: Mapping[str, Any], out: Path | None
) -> None:
    """A table of speeds and ratios, and all timings in a JSON file."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for name in ("ours", "plain", "ratio", "95 % interval", "bar", ""):
        table.add_column(name, justify="right")
    for row in comparisons:
        speeds = [
            f"{row.images / median(seconds):.1f} images/s"
            for seconds in (row.ours_seconds, row.plain_seconds)
        ]
        interval = f"{row.ratio.low:.3f} - {row.ratio.high:.3f}"
        verdict = "" if row.reached else "missed"
        table.add_row(
            row.name, *speeds, f"{row.ratio.value:.3f}", interval, f"{row.bar:g}", verdict
        )
    print_table(table)
    say(
        f"Ratio: time of the plain loop over ours, median of {comparisons[0].ratio.count} pairs "
        f"taken in turn; {', '.join(f'{k} {v}' for k, v in conditions.items() if v)}."
    )
    if out is not None:
        path = unused(out)
        save_comparisons(comparisons, path, **conditions)
        say(f"Record  {path}")


def bench_decoding(source: str, settings: Sequence[str], *, resolution: int, most: int) -> None:
    """Say how fast the images of a source come."""
    chosen = [f"data.source={json.dumps(source)}", f"data.resolution={resolution}"]
    config = resolve(load_experiment("small", [*chosen, *settings]).data)
    form = f"{config.resolution}x{config.resolution}"
    if open_images(config).prepared is not None:
        speed = gathering_speed(config)
        say(f"Gathered   {speed:,.0f} images/s at {form}: random batches from the mapped file")
        return
    found = decoding_speed(config, most=most)
    say(
        f"Ours       {found.ours:.1f} images/s to {form}: {found.images:,} images read and decoded "
        f"on {found.cores} threads\n"
        f"Bare       {found.bare:.1f} images/s: Pillow alone, JPEGs at reduced scale too, on "
        f"{found.cores} processes\n"
        f"Full       {found.full:.1f} images/s: the same without reduced scales\n"
        f"Difference mean {found.mean_difference:.2f}, most {found.max_difference} of 255, PSNR "
        f"{found.psnr_db:.1f} dB: reduced scales against full decoding"
    )


def bench_data(
    folder: str,
    settings: Sequence[str],
    *,
    pairs: int,
    batch: int,
    workers: int,
    batches: int | None,
    only: str | None,
    resolution: int,
    out: Path | None,
) -> None:
    """Compare the ways to load `folder`; a table, and with `out` a record, a chart and a page."""
    chosen = [f"data.source={json.dumps(folder)}", f"data.resolution={resolution}"]
    config = resolve(load_experiment("small", [*chosen, *settings]).data)
    ways = list(WAYS) if only is None else [name.strip() for name in only.split(",")]
    loading = compare_loading(
        config,
        pairs=pairs,
        batch_size=batch,
        workers=workers,
        most_batches=batches,
        ways=ways,
        log=say,
    )
    print_loading(loading)
    if out is not None:
        path, picture = unused(out), unused(out.with_suffix(".png"))
        page = unused(out.with_suffix(".html"))
        conditions = {"source": source_name(config), "resolution": resolution}
        save_loading(loading, path, **conditions)
        write_bytes(picture, chart(loading))
        write_loading(loading, config, page, **conditions)
        say(f"Record  {path}\nChart   {picture}\nPage    {page}")


def print_loading(loading: Loading) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("")
    for name in (
        "s a\nbatch",
        "images/s",
        "peak\nMB",
        "style\nentropy",
        "displaced",
        "ours",
        "bar",
    ):
        table.add_column(name, justify="right", no_wrap=True)
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
    say("")
    print_table(table)
    for name, gain in loading.gains().items():
        say(f"Gain by {name}: {gain:.2f} x")
    labelled = any(row.entropy is not None for row in loading.rows)
    say_wrapped(
        f"{loading.images:,} training images, batches of {loading.batch_size}, {loading.workers} "
        f"workers, medians of {len(loading.rows[0].timings)} rounds taken in turn. peak: memory of "
        "the loader's processes. ours: how many times faster sfumato's stream is; bar: what it "
        "should be at least. Style entropy: of a batch against random batches"
        + ("" if labelled else " (empty: the data have no labels)")
        + ". Displaced: from the order of the files, 0.33 in a random order."
    )


def bench_order(
    folder: str,
    settings: Sequence[str],
    *,
    images: int,
    seeds: int,
    resolution: int,
    out: Path,
    device: str,
) -> bool:
    """Train every order on `folder` and say what it did; False where it was asked to stop."""
    chosen = [
        f"data.source={json.dumps(folder)}",
        f"data.resolution={resolution}",
        "data.loading=memory",
        f"training.images={images}",
        f"training.sample_every_images={10 * images}",
    ]
    experiment = load_experiment("small", [*chosen, *settings])
    experiment = experiment.model_copy(update={"data": resolve(experiment.data)})
    found = compare_orders(
        experiment, out, seeds=range(seeds), device=device, log=say, progress=Progress
    )
    if found is None:
        return False
    header, *rows = told(found)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for place, name in enumerate(header):
        table.add_column(name, justify="right" if place else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    say("")
    print_table(table)
    say(
        f"{len(found[0].losses):,} held-out images at the same noise, mean of {seeds} seeds after "
        f"{images:,} images each; the interval is over images, the spread over seeds."
    )
    say(f"Record  {out / 'order.json'}")
    return True
