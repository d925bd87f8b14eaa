"""`sfumato bench data`, `order` and `decoding`: how images are loaded."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.cli.data import data_config
from sfumato.cli.options import (
    INTERRUPTED,
    RESUMES,
    Device,
    Pairs,
    Record,
    Settings,
    Source,
    stoppable,
)
from sfumato.cli.show import log, log_wrapped, new_table, print_table, unused
from sfumato.config.schema import DiffusionExperiment, load_experiment

if TYPE_CHECKING:
    from sfumato.bench.loading import Loading

Resolution = Annotated[int, typer.Option(min=1, help="Height and width in pixels.")]


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


# What is printed ----------------------------------------------------------------------------------


def print_rows(rows: Sequence[Sequence[str]]) -> None:
    """A table, the header first."""
    table = new_table(rows[0], padding=(0, 2, 0, 0))
    for row in rows[1:]:
        table.add_row(*row)
    log("")
    print_table(table)


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
