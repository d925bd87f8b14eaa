"""`sfumato bench gpu-day`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from sfumato.base.errors import InputError
from sfumato.cli.checks import checked_folder
from sfumato.cli.options import Device, Settings
from sfumato.cli.show import check_empty, log, new_table, print_table
from sfumato.config.schema import DiffusionExperiment, load_experiment


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
    ] = "mnist,cifar10-small,cifar10,wikiart",
    count: Annotated[int, typer.Option(min=10, help="Images of each guidance scale.")] = 1_000,
    prepared: DayOptions,
    settings: Settings = None,
    device: Device = "auto",
) -> None:
    """A few minutes of one GPU: tests, speed of each preset, MNIST whole, CIFAR-10 for the rest."""
    names, own = presets.split(","), list(settings or [])
    trained = {"mnist": prepared.mnist, "cifar10-small": prepared.cifar10}
    for name in [*names, *(name for name, data in trained.items() if data is not None)]:
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
            accuracy, distance = (
                row.get(name, "not measured") for name in ("class_accuracy", "frechet.classifier")
            )
            log(f"  {row['title']}: class accuracy {accuracy}, Frechet distance {distance}")
    tests = record["tests"]
    for line in (tests.get("summary", ""), *tests.get("failed_tests", [])):
        if line:
            log(f"tests: {line}")
    for name, found in record.items():
        if isinstance(found, dict) and "failed" in found:
            log(f"{name} failed: {found['failed']}")
