"""The tables of `sfumato bench scaling`: the arithmetic of `bench.scaling` for several networks."""

from collections.abc import Sequence
from dataclasses import dataclass

from sfumato.bench.network_cost import NetworkCost
from sfumato.bench.scaling import (
    BFLOAT16_BYTES,
    FLOAT32_BYTES,
    FORWARD_SHARE,
    Hardware,
    bucket_sizes,
    checkpoint_bytes,
    daly_seconds,
    hierarchical_seconds,
    least_batch,
    lost_share,
    memory,
    most_ranks,
    ring_bytes,
    ring_seconds,
    slowest_of,
    step,
    young_seconds,
)

GBITS = (25, 100, 400)
MANY_RANKS = (8, 64, 1024)
_GRADIENTS = {"fp32": FLOAT32_BYTES, "bf16": BFLOAT16_BYTES}
_MANY_GBIT = 400


@dataclass(frozen=True, kw_only=True)
class Table:
    """Numbers, how each column prints them, and a note on what they mean."""

    title: str
    columns: list[str]
    formats: list[str]
    rows: list[list[float | str]]
    note: str

    def cells(self) -> list[list[str]]:
        return [
            [form.format(value) for form, value in zip(self.formats, row, strict=True)]
            for row in self.rows
        ]


def tables(
    costs: Sequence[NetworkCost], hardware: Hardware, *, ranks: int, batch: int
) -> list[Table]:
    largest = max(costs, key=lambda cost: cost.parameters)
    return [
        network_table(costs, ranks),
        step_table(costs, hardware, ranks=ranks, batch=batch),
        memory_table(costs, ranks=ranks, batch=batch),
        batch_table(costs, hardware, ranks=ranks),
        many_table(largest, hardware),
    ]


def network_table(costs: Sequence[NetworkCost], ranks: int) -> Table:
    rows: list[list[float | str]] = [
        [
            cost.name,
            cost.parameters,
            1e-9 * cost.forward_flops / FORWARD_SHARE,
            *(1e-6 * ring_bytes(size * cost.parameters, ranks) for size in _GRADIENTS.values()),
        ]
        for cost in costs
    ]
    return Table(
        title="Networks",
        columns=["preset", "parameters", "GFLOP/image", "MB fp32", "MB bf16"],
        formats=["{}", "{:,}", "{:.2f}", "{:.1f}", "{:.1f}"],
        rows=rows,
        note=f"GFLOP of forward and backward pass. MB: what each of {ranks} ranks sends in a step.",
    )


def step_table(
    costs: Sequence[NetworkCost], hardware: Hardware, *, ranks: int, batch: int
) -> Table:
    rows: list[list[float | str]] = []
    for cost in costs:
        compute = batch * hardware.seconds_an_image(cost)
        for name, width in _GRADIENTS.items():
            row: list[float | str] = [cost.name, name, 1e3 * compute]
            sizes = bucket_sizes(cost.parameters, width)
            for link in map(hardware.link, GBITS):
                whole = step(compute, sizes, ranks, link, overlap=False)
                hidden = step(compute, sizes, ranks, link)
                seconds = (whole.exposed_seconds, hidden.exposed_seconds)
                row += [*(1e3 * one for one in seconds), hidden.efficiency]
            rows.append(row)
    names = [name for gbit in GBITS for name in (f"{gbit}G", "exposed", "eff.")]
    return Table(
        title=f"A step on {ranks} ranks, one a machine, {batch} images a rank, in ms",
        columns=["preset", "gradients", "compute", *names],
        formats=["{}", "{}", "{:.2f}", *(["{:.2f}", "{:.2f}", "{:.0%}"] * len(GBITS))],
        rows=rows,
        note="25G: all-reduce at 25 Gbit/s without overlap. exposed: what is left beside the "
        "backward pass. eff.: with overlap, compute over the whole step.",
    )


def memory_table(costs: Sequence[NetworkCost], *, ranks: int, batch: int) -> Table:
    rows: list[list[float | str]] = []
    for cost in costs:
        found = memory(cost, batch=batch, ranks=ranks)
        parts = (found.weights, found.gradients, found.moments, found.averages, found.activations)
        sizes = (*parts, found.replicated, found.sharded)
        rows.append([cost.name, *(1e-6 * size for size in sizes)])
    return Table(
        title=f"Memory of a rank, {batch} images, in MB",
        columns=["preset", "weights", "grad.", "Adam", "averages", "activ.", "DDP", "FSDP"],
        formats=["{}", *(["{:,.0f}"] * 7)],
        rows=rows,
        note=f"FSDP: weights, gradients, moments and averages sharded over {ranks} ranks, and the "
        "largest block gathered. Activations in bfloat16. Without the framework's own memory.",
    )


def batch_table(costs: Sequence[NetworkCost], hardware: Hardware, *, ranks: int) -> Table:
    links = [hardware.link(gbit) for gbit in GBITS]
    rows: list[list[float | str]] = []
    for cost in costs:
        seconds, sizes = hardware.seconds_an_image(cost), bucket_sizes(cost.parameters)
        row: list[float | str] = [cost.name]
        for link in links:
            row += [
                least_batch(seconds, sizes, ranks, link, overlap=overlap)
                for overlap in (False, True)
            ]
        row.append(cost.batch_size)
        row += [most_ranks(cost.batch_size, seconds, sizes, link) for link in links]
        in_node = most_ranks(cost.batch_size, seconds, sizes, hardware.node_link)
        rows.append([*row, min(in_node, hardware.node_ranks)])
    names = [name for gbit in GBITS for name in (f"{gbit}G", "overlap")]
    return Table(
        title=f"Least images of a rank for 90 % efficiency on {ranks} ranks, fp32 gradients",
        columns=["preset", *names, "batch", *(f"N {gbit}G" for gbit in GBITS), "N node"],
        formats=["{}", *(["{:,}"] * (2 * len(GBITS) + 1)), *(["{}"] * (len(GBITS) + 1))],
        rows=rows,
        note="batch: the preset's, over all ranks. N: the most ranks (a power of two) that it "
        "keeps 90 % efficient with overlap, one a machine, and in one node of "
        f"{hardware.node_ranks}.",
    )


def many_table(cost: NetworkCost, hardware: Hardware) -> Table:
    """Past one node: the network of a node is shared by its GPUs."""
    size, between = FLOAT32_BYTES * cost.parameters, hardware.link(_MANY_GBIT)
    written = checkpoint_bytes(cost) / hardware.write_bytes_per_second
    rows: list[list[float | str]] = []
    for ranks in MANY_RANKS:
        nodes, mtbf = ranks // hardware.node_ranks, hardware.rank_mtbf_seconds / ranks
        flat = ring_seconds(size, ranks, hardware.node_link if nodes == 1 else between)
        in_nodes = hierarchical_seconds(
            size, nodes, hardware.node_ranks, inside=hardware.node_link, between=between
        )
        daly = daly_seconds(written, mtbf)
        rows.append(
            [
                ranks,
                1e3 * flat,
                1e3 * in_nodes,
                slowest_of(ranks, hardware.straggling) - 1,
                mtbf / 3600,
                young_seconds(written, mtbf) / 60,
                daly / 60,
                lost_share(daly, written, mtbf, hardware.restart_seconds),
            ]
        )
    return Table(
        title=f"{cost.name} on nodes of {hardware.node_ranks} GPUs, {_MANY_GBIT} Gbit/s a node",
        columns=["GPUs", "flat", "in nodes", "wait", "MTBF, h", "Young", "Daly", "lost"],
        formats=[*("{:,}", "{:.2f}", "{:.2f}", "{:.1%}", "{:,.0f}", "{:.1f}", "{:.1f}", "{:.2%}")],
        rows=rows,
        note="flat, in nodes: ms of an all-reduce of all fp32 gradients at once in one ring, and "
        "first inside the nodes. wait: for the slowest rank. Young, Daly: minutes between "
        f"checkpoints of {checkpoint_bytes(cost) / 1e9:.2f} GB. lost: checkpoints, work done "
        "twice, restarts.",
    )
