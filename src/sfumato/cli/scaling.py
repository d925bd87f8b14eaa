"""`sfumato bench scaling`."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.base.errors import InputError
from sfumato.cli.checks import checked_file
from sfumato.cli.show import log, log_wrapped, new_table, print_table, unused
from sfumato.config.schema import DiffusionExperiment, load_experiment

if TYPE_CHECKING:
    from sfumato.bench.scaling import Hardware
    from sfumato.bench.scaling_measured import Measured
    from sfumato.bench.scaling_tables import Table


def scaling(
    presets: Annotated[
        list[str] | None, typer.Argument(help="Presets with a U-Net, or YAML files; else all.")
    ] = None,
    ranks: Annotated[int, typer.Option(min=2, help="GPUs, one a machine.")] = 8,
    batch: Annotated[int, typer.Option(min=1, help="Images of a rank in each step.")] = 32,
    tflops: Annotated[float, typer.Option(min=1e-3, help="Peak of a GPU: H100, bfloat16.")] = 989,
    utilisation: Annotated[
        float, typer.Option(min=1e-3, max=1, help="Share of the peak that training reaches.")
    ] = 0.4,
    measured_ranks: Annotated[
        int | None,
        typer.Option("--measure", min=2, help="Compare with so many processes on this machine."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=3, help="Rounds of --measure.")] = 9,
    out: Annotated[
        Path | None, typer.Option(callback=checked_file, help="JSON to write, with every number.")
    ] = None,
) -> None:
    """Data-parallel training on paper: communication, memory, efficiency, failures."""
    names = presets or (["digits"] if measured_ranks else _unet_presets())
    experiments = [load_experiment(name, schema=DiffusionExperiment) for name in names]
    if measured_ranks is not None:
        _measure(experiments, measured_ranks, batch, rounds, out)
        return
    from sfumato.bench.network_cost import network_cost
    from sfumato.bench.scaling import Hardware
    from sfumato.bench.scaling_tables import tables

    hardware = Hardware(peak_flops=tflops * 1e12, utilisation=utilisation)
    costs = [network_cost(one) for one in experiments]
    shown = tables(costs, hardware, ranks=ranks, batch=batch)
    for table in shown:
        _print_table(table)
    _print_assumptions(hardware)
    record = {"assumed": asdict(hardware), "networks": [asdict(cost) for cost in costs]}
    _write(out, {**record, "tables": [asdict(table) for table in shown]})


def _unet_presets() -> list[str]:
    """Those with a network of their own: a student has its teacher's."""
    from sfumato.config.overrides import preset_names

    presets = {name: load_experiment(name) for name in preset_names()}
    return [
        name
        for name, preset in presets.items()
        if isinstance(preset, DiffusionExperiment) and preset.distillation is None
    ]


def _print_table(table: "Table") -> None:
    log(f"\n{table.title}")
    shown = new_table(table.columns, padding=(0, 2, 0, 0))
    for row in table.cells():
        shown.add_row(*row)
    print_table(shown)
    log_wrapped(table.note)


def _print_assumptions(hardware: "Hardware") -> None:
    """In the order of their first use above."""
    log_wrapped(
        f"\nAssumed, not measured: {hardware.peak_flops / 1e12:g} TFLOP/s at "
        f"{hardware.utilisation:.0%} (--tflops, --utilisation), "
        f"{1e6 * hardware.latency_seconds:g} us a hop between machines, in a node "
        f"{hardware.node_bytes_per_second / 1e9:g} GB/s and "
        f"{1e6 * hardware.node_latency_seconds:g} us; step times of ranks vary by "
        f"{hardware.straggling:.0%}; a GPU fails every {hardware.rank_mtbf_seconds / 3600:,.0f} h; "
        f"checkpoints are written at {hardware.write_bytes_per_second / 1e9:g} GB/s, a restart "
        f"takes {hardware.restart_seconds:g} s."
    )


def _measure(
    experiments: Sequence[DiffusionExperiment],
    ranks: int,
    batch: int,
    rounds: int,
    out: Path | None,
) -> None:
    for one in experiments:
        if "auto" in (one.data.resolution, one.data.channels):
            raise InputError(
                f"The network of {one.name} depends on the data.",
                hint="Measure another preset, for example digits.",
            )
    from sfumato.bench.scaling_measured import measure

    found = [measure(one, ranks=ranks, batch=batch, rounds=rounds) for one in experiments]
    for one in found:
        _print_measured(one)
    _write(out, {"measured": [asdict(one) for one in found]})


def _print_measured(measured: "Measured") -> None:
    log(
        f"\n{measured.name}: {measured.ranks} processes of one thread on {measured.cpus} CPUs, "
        f"{measured.batch} images a rank, {len(measured.rounds)} rounds"
    )
    shown = new_table(["", "median", "95 % interval"], padding=(0, 2, 0, 0))
    for name, estimate in measured.estimates().items():
        low, high = estimate.interval
        shown.add_row(name, f"{estimate.value:.4g}", f"{low:.4g} - {high:.4g}")
    print_table(shown)
    log_wrapped("Ratios: predicted over measured, in each round.")


def _write(out: Path | None, record: dict[str, Any]) -> None:
    if out is None:
        return
    from sfumato.base.environment import environment, now
    from sfumato.base.files import write_json

    path = unused(out)
    write_json(path, {"date": now(), "environment": environment(), **record})
    log(f"Record  {path}")
