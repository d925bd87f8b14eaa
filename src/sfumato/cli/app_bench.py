"""Commands of `sfumato bench`: parse and call."""

from pathlib import Path
from typing import Annotated

import typer

from sfumato.cli.options import (
    GOES_ON,
    INTERRUPTED,
    Device,
    SamplerName,
    Scales,
    Settings,
    Steps,
    stoppable,
)

bench_app = typer.Typer(
    help="Time our training and sampling beside a plain loop over diffusers.", no_args_is_help=True
)

Pairs = Annotated[int, typer.Option(help="Pairs of timings, taken in turn; at least 7.")]
Record = Annotated[Path | None, typer.Option("--out", help="JSON to write, with every timing.")]


@bench_app.command("train", epilog="Example: `sfumato bench train digits --out bench.json`")
def bench_train(
    preset: Annotated[str, typer.Argument(help="A preset's name or a YAML file.")] = "digits",
    pairs: Pairs = 15,
    steps: Annotated[int, typer.Option(help="Training steps of each timing.")] = 8,
    settings: Settings = None,
    out: Record = None,
    device: Device = "auto",
) -> None:
    """Our training step against a bare loop on the same network, data and batch."""
    from sfumato.cli.bench import bench_training

    bench_training(preset, settings or [], pairs=pairs, steps=steps, device=device, out=out)


@bench_app.command("sample", epilog="Example: `sfumato bench sample runs/demo --scales 0,1,5`")
def bench_sample(
    model: Annotated[
        str, typer.Argument(help="A run, a pipeline, bundled:mnist, or a preset (untrained).")
    ] = "digits",
    scales: Scales = "0,1,5",
    batch: Annotated[int, typer.Option(help="Images drawn at once.")] = 32,
    pairs: Pairs = 9,
    steps: Steps = None,
    sampler: SamplerName = None,
    out: Record = None,
    device: Device = "auto",
) -> None:
    """Our sampling against the paper's loop, with the same scheduler, steps and batch."""
    from sfumato.cli.bench import bench_sampling
    from sfumato.cli.show import parse_scales

    bench_sampling(
        model,
        scales=parse_scales(scales) or (),
        batch=batch,
        pairs=pairs,
        steps=steps,
        scheduler=sampler,
        device=device,
        out=out,
    )


@bench_app.command("data", epilog="Example: `sfumato bench data wikiart --out bench.json`")
def bench_data(
    folder: Annotated[str, typer.Argument(help="A folder of Parquet files.")],
    pairs: Annotated[int, typer.Option(help="Rounds of timings; at least 3.")] = 3,
    batch: Annotated[int, typer.Option(help="Images of a batch.")] = 16,
    workers: Annotated[int, typer.Option(help="Worker processes of every loader.")] = 2,
    batches: Annotated[
        int | None, typer.Option(help="Most batches of each timing; without it, an epoch.")
    ] = None,
    only: Annotated[str | None, typer.Option(help="Ways to load, with commas.")] = None,
    resolution: Annotated[int, typer.Option(help="Height and width in pixels.")] = 128,
    settings: Settings = None,
    out: Record = None,
) -> None:
    """The paper's Table 2: its three loaders, `datasets`, and ours, on your files."""
    from sfumato.cli.bench import bench_data

    with stoppable("Stopped before the last round: nothing is kept."):
        bench_data(
            folder,
            settings or [],
            pairs=pairs,
            batch=batch,
            workers=workers,
            batches=batches,
            only=only,
            resolution=resolution,
            out=out,
        )


@bench_app.command("order", epilog="Example: `sfumato bench order wikiart-sorted --out runs/order`")
def bench_order(
    folder: Annotated[str, typer.Argument(help="A folder of Parquet files, sorted by class.")],
    images: Annotated[int, typer.Option(min=1, help="Images that each run sees.")] = 8000,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each order.")] = 3,
    resolution: Annotated[int, typer.Option(help="Height and width in pixels.")] = 32,
    settings: Settings = None,
    out: Annotated[Path, typer.Option(help="Folder; started again, it goes on.")] = Path(
        "runs/order"
    ),
    device: Device = "auto",
) -> None:
    """What the order of the images does to training: random, stream, file by file, as stored."""
    from sfumato.cli.bench import bench_order

    if not bench_order(
        folder,
        settings or [],
        images=images,
        seeds=seeds,
        resolution=resolution,
        out=out,
        device=device,
    ):
        typer.echo(f"\n{GOES_ON}")
        raise typer.Exit(INTERRUPTED)


@bench_app.command("decoding", epilog="Example: `sfumato bench decoding wikiart`")
def bench_decoding(
    source: Annotated[str, typer.Argument(help="A source of encoded images, or prepared data.")],
    resolution: Annotated[int, typer.Option(help="Height and width in pixels.")] = 128,
    most: Annotated[int, typer.Option(help="Images that are decoded each time.")] = 512,
    settings: Settings = None,
) -> None:
    """How fast a source is decoded, against bare Pillow; how fast prepared data are gathered."""
    from sfumato.cli.bench import bench_decoding

    bench_decoding(source, settings or [], resolution=resolution, most=most)
