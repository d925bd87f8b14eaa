"""`sfumato bench latents`."""

from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.base.errors import InputError
from sfumato.cli.options import Device, Pairs, Record, Settings
from sfumato.cli.show import log, new_table, print_table, unused
from sfumato.config.schema import DiffusionExperiment, load_experiment

if TYPE_CHECKING:
    from sfumato.bench.latents import Cost


def latents(
    preset: Annotated[
        str, typer.Argument(help="A preset's name or a YAML file: its network and sampler.")
    ] = "wikiart-tiny",
    resolutions: Annotated[
        str, typer.Option(metavar="N,N,...", help="Sides of the images in pixels.")
    ] = "32,64,128",
    *,
    factor: Annotated[int, typer.Option(help="Side in pixels of a latent: 2, 4 or 8.")] = 4,
    channels: Annotated[int, typer.Option(min=1, help="Numbers of a latent.")] = 4,
    batch: Annotated[int, typer.Option(min=1, help="Images of a step, and sampled at once.")] = 8,
    pairs: Pairs = 7,
    settings: Settings = None,
    out: Record = None,
    device: Device = "auto",
) -> None:
    """What latents save: the time of training and of sampling, by the side of the images."""
    sides = _sides(resolutions)
    experiment = load_experiment(preset, settings or [], schema=DiffusionExperiment)
    from sfumato.bench.latents import measure_latents, save_latents

    how: dict[str, Any] = {
        "factor": factor,
        "channels": channels,
        "batch": batch,
        "rounds": pairs,
    }
    found = measure_latents(experiment, resolutions=sides, device=device, log=log, **how)
    print_costs(found)
    if out is not None:
        path = unused(out)
        conditions = {"preset": experiment.name, "settings": list(settings or []), **how}
        save_latents(found, path, **conditions)
        log(f"Record {path}, chart {path.with_suffix('.png')}")


def _sides(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(
            f"--resolutions {text}: sides are whole numbers.", hint="Write --resolutions 32,64,128"
        )
    return [int(part) for part in dict.fromkeys(parts)]


def print_costs(costs: "list[Cost]") -> None:
    """Medians, and how many times as fast as in pixels; decoding is a part of sampling."""
    table = new_table(["ms an image", "training", "times", "sampling", "times", "decoding"])
    pixels = {one.resolution: one for one in costs if one.kind == "pixels"}
    for one in costs:
        base = pixels[one.resolution]
        table.add_row(
            f"{one.resolution} px, {one.kind}",
            f"{1000 * median(one.training):,.1f}",
            f"{median(base.training) / median(one.training):.2f}",
            f"{1000 * median(one.sampling):,.1f}",
            f"{median(base.sampling) / median(one.sampling):.2f}",
            f"{1000 * median(one.decoding):,.2f}",
        )
    print_table(table)
