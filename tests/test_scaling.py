"""Scaling on paper: closed forms, counts by hand, and two processes on this machine."""

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from sfumato.bench.network_cost import NetworkCost, forward_cost, network_cost
from sfumato.bench.scaling import (
    BUCKET_BYTES,
    FIRST_BUCKET_BYTES,
    Hardware,
    Link,
    bucket_sizes,
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
from sfumato.bench.scaling_measured import LARGE_BYTES, MIDDLE_BYTES, SMALL_BYTES, Measured, Round
from sfumato.bench.scaling_tables import batch_table, tables
from sfumato.config.overrides import preset_names
from sfumato.config.schema import DiffusionExperiment, load_experiment
from sfumato.models.sizes import parameter_count

LINK = Link(bytes_per_second=1e9, latency_seconds=1e-5)
COST = NetworkCost(
    name="net",
    parameters=20_000_000,
    block_parameters=5_000_000,
    forward_flops=10**10,
    activation_bytes=4_000_000,
    averages=2,
    batch_size=256,
)


# Communication ------------------------------------------------------------------------------------


def test_a_ring_sends_what_its_steps_send() -> None:
    """Counted chunk by chunk: N - 1 sends of 1 / N in each of the two phases."""
    for ranks in (2, 3, 8, 1024):
        sends = [1.0 / ranks] * (ranks - 1) * 2
        assert ring_bytes(1.0, ranks) == pytest.approx(sum(sends))
        assert ring_seconds(1e9, ranks, LINK) == pytest.approx(sum(sends) + len(sends) * 1e-5)
    assert ring_bytes(1e6, 1) == 0


def test_a_simulated_ring_sums_with_that_traffic() -> None:
    """A second implementation: an all-reduce that moves chunks from rank to rank."""
    ranks, size = 5, 40
    values = torch.randint(100, (ranks, ranks, size // ranks))  # rank, chunk, element
    total, sent = values.sum(0), 0
    for phase in range(2):
        for turn in range(ranks - 1):
            moved = values.clone()
            for rank in range(ranks):
                chunk, there = (rank - turn + phase) % ranks, (rank + 1) % ranks
                old = moved[there, chunk] if phase == 0 else 0
                values[there, chunk] = old + moved[rank, chunk]
                sent += moved[rank, chunk].numel()
    assert all(torch.equal(values[rank], total) for rank in range(ranks))
    assert sent / ranks == ring_bytes(size, ranks)


def test_a_hierarchy_has_the_flat_ring_as_its_limits() -> None:
    fast = Link(bytes_per_second=1e11)
    one_node = hierarchical_seconds(1e8, 1, 8, inside=fast, between=LINK)
    assert one_node == pytest.approx(ring_seconds(1e8, 8, fast))
    single = hierarchical_seconds(1e8, 8, 1, inside=fast, between=LINK)
    assert single == pytest.approx(ring_seconds(1e8, 8, LINK))
    # The node's network is shared, so what is gained are hops.
    many = hierarchical_seconds(1e8, 128, 8, inside=Link(bytes_per_second=1e15), between=LINK)
    assert many == pytest.approx(2 * 127 / 128 * 0.1 + 2 * 127 * 1e-5)
    assert many < ring_seconds(1e8, 1024, LINK)


def test_buckets_hold_the_gradients() -> None:
    assert bucket_sizes(1000) == [4000]
    sizes = bucket_sizes(20_000_000)
    assert sum(sizes) == 80_000_000
    assert sizes[:3] == [FIRST_BUCKET_BYTES, BUCKET_BYTES, BUCKET_BYTES]
    assert bucket_sizes(20_000_000, 2) == [size / 2 for size in sizes]


# A step -------------------------------------------------------------------------------------------


def test_without_communication_efficiency_is_1() -> None:
    free = Link(bytes_per_second=math.inf)
    for overlap in (False, True):
        assert step(0.1, [1e6, 2e6], 8, free, overlap=overlap).efficiency == 1
    assert least_batch(1e-3, [1e6], 8, free) == 1
    assert step(0.1, [1e6], 1, LINK).exposed_seconds == 0  # one rank sends nothing


def test_the_last_bucket_is_never_hidden() -> None:
    sizes = [1e6, 1e6, 3e6]
    slow_compute = step(100.0, sizes, 8, LINK)
    assert slow_compute.exposed_seconds == pytest.approx(ring_seconds(3e6, 8, LINK))
    # With instant compute nothing is hidden.
    instant = step(1e-12, sizes, 8, LINK)
    assert instant.exposed_seconds == pytest.approx(instant.communication_seconds)
    whole = step(0.1, sizes, 8, LINK, overlap=False)
    assert whole.exposed_seconds == pytest.approx(sum(ring_seconds(one, 8, LINK) for one in sizes))


def test_two_buckets_by_hand() -> None:
    """Compute 3 s, backward from 1 s to 3 s; each bucket takes 1.5 s at 2 ranks."""
    link = Link(bytes_per_second=1.0)
    found = step(3.0, [1.5, 1.5], 2, link)  # 2 (N - 1) / N = 1
    # The first is full at 2 s and done at 3.5 s, so the second ends at 5 s.
    assert found.exposed_seconds == pytest.approx(2.0)
    assert found.efficiency == pytest.approx(0.6)


def test_efficiency_rises_with_bandwidth_and_batch() -> None:
    sizes = bucket_sizes(COST.parameters)
    for overlap in (False, True):
        by_gbit = [
            step(0.05, sizes, 16, Hardware().link(gbit), overlap=overlap).efficiency
            for gbit in (1, 10, 25, 100, 400, 1600)
        ]
        by_batch = [
            step(one * 1e-3, sizes, 16, LINK, overlap=overlap).efficiency for one in range(1, 200)
        ]
        for found in (by_gbit, by_batch):
            assert all(low < high <= 1 for low, high in pairwise(found))


def test_the_least_batch_is_the_least() -> None:
    sizes, image = bucket_sizes(COST.parameters), 1e-3
    for overlap in (False, True):
        batch = least_batch(image, sizes, 8, LINK, overlap=overlap)
        reached, missed = (
            step(one * image, sizes, 8, LINK, overlap=overlap).efficiency
            for one in (batch, batch - 1)
        )
        assert missed < 0.9 <= reached
    # Without overlap in closed form: communication is a ninth of the compute.
    communication = sum(ring_seconds(size, 8, LINK) for size in sizes)
    assert least_batch(image, sizes, 8, LINK, overlap=False) == math.ceil(9 * communication / image)


def test_the_most_ranks_of_a_global_batch() -> None:
    assert most_ranks(256, 1.0, [1e6], Link(bytes_per_second=math.inf)) == 256
    assert most_ranks(256, 1e-9, [1e9], LINK) == 1
    # 256 s of compute over N, and 2 (N - 1) / N * 10 s exposed: 0.9 needs 256 >= 180 (N - 1).
    assert most_ranks(256, 1.0, [10.0], Link(bytes_per_second=1.0)) == 2


def test_memory_of_a_rank() -> None:
    found = memory(COST, batch=16, ranks=4)
    assert found.state == 20e6 * 4 * (1 + 1 + 2 + 2)
    assert found.activations == 16 * 2e6
    assert found.replicated == found.state + found.activations
    assert found.sharded == found.state / 4 + 2 * 20e6 + 32e6


# Many ranks ---------------------------------------------------------------------------------------


def test_the_slowest_of_many() -> None:
    assert slowest_of(1, 0.5) == pytest.approx(1)
    assert slowest_of(1024, 0) == 1
    # Of two and of three normal values in closed form.
    assert slowest_of(2, 1) == pytest.approx(1 + 1 / math.sqrt(math.pi), abs=1e-5)
    assert slowest_of(3, 1) == pytest.approx(1 + 1.5 / math.sqrt(math.pi), abs=1e-5)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(20_000, 1024, generator=generator).amax(1).mean().item()
    assert slowest_of(1024, 1) == pytest.approx(1 + drawn, rel=0.003)


def test_young_and_daly_are_where_the_least_is_lost() -> None:
    for written, mtbf in ((1.0, 1e6), (60.0, 86_400.0), (300.0, 3600.0)):
        young, daly = young_seconds(written, mtbf), daly_seconds(written, mtbf)
        assert young == math.sqrt(2 * written * mtbf)
        # Young's is the minimum of the first-order loss, found by search.
        best = min(range(1, 100_001), key=lambda one: lost_share(one, written, mtbf))
        assert young == pytest.approx(best, abs=1)
        # Daly's of the exact expectation for exponential failures (his Eq. 20, without restart).
        exact = min(
            range(1, 100_001),
            key=lambda one: expected(one, written, mtbf),
        )
        assert daly == pytest.approx(exact, rel=0.002, abs=1)
    assert daly_seconds(30.0, 10.0) == 10.0


def expected(interval: float, written: float, mtbf: float) -> float:
    """Time for a second of work with failures at rate 1 / M: M (e^((t + d) / M) - 1) / t."""
    return mtbf * math.expm1((interval + written) / mtbf) / interval


def test_a_gpu_of_the_llama_cluster() -> None:
    assert Hardware().rank_mtbf_seconds * 419 == 16_384 * 54 * 86_400


# The networks -------------------------------------------------------------------------------------


def test_flops_and_kept_bytes_by_hand() -> None:
    linear = nn.Linear(6, 5, bias=False)
    assert forward_cost(linear, torch.zeros(3, 6)) == (2 * 3 * 6 * 5, 4 * 3 * 6)
    conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    found = forward_cost(conv, torch.zeros(2, 3, 10, 10))
    assert found == (2 * 2 * 8 * 10 * 10 * 3 * 9, 4 * 2 * 3 * 10 * 10)


class Attention(nn.Module):
    def forward(self, query, key, value):
        return nn.functional.scaled_dot_product_attention(query, key, value)


def test_flops_of_attention_by_hand() -> None:
    """Two products of (queries, keys, channels), in every head."""
    query, key = (torch.zeros(2, 4, count, 16, requires_grad=True) for count in (64, 8))
    flops, _ = forward_cost(Attention(), query, key, key)
    assert flops == 2 * (2 * 2 * 4 * 64 * 8 * 16)


UNETS = [
    name
    for name in preset_names()
    if isinstance(one := load_experiment(name), DiffusionExperiment) and one.distillation is None
]


def test_the_cost_of_a_preset_is_that_of_its_network_with_storage() -> None:
    from sfumato.models.unet import build_unet

    experiment = load_experiment("digits", schema=DiffusionExperiment)
    unet = build_unet(experiment.model, resolution=16, channels=1, seed=0)
    tokens = torch.zeros(3, experiment.text.max_tokens, 512)
    inputs = torch.zeros(3, 1, 16, 16), torch.zeros(3), tokens
    flops, kept = forward_cost(unet, *inputs)
    cost = network_cost(experiment)
    assert flops == 3 * cost.forward_flops
    # The encoding of time is kept too; it has the size of a batch.
    assert kept == 3 * cost.activation_bytes
    assert cost.parameters == parameter_count(experiment)
    assert 0 < cost.block_parameters < cost.parameters
    assert network_cost(load_experiment("mnist-fast", schema=DiffusionExperiment)).averages == 4


def test_a_backward_pass_takes_two_forward_passes() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    from sfumato.models.unet import build_unet

    experiment = load_experiment("mnist", schema=DiffusionExperiment)
    with torch.device("meta"):
        unet = build_unet(experiment.model, resolution=28, channels=1, seed=0)
        inputs = torch.empty(1, 1, 28, 28), torch.empty(1), torch.empty(1, 8, 512)
        with FlopCounterMode(display=False) as whole:
            unet(*inputs).sample.sum().backward()
    forward = network_cost(experiment).forward_flops
    assert whole.get_total_flops() == pytest.approx(3 * forward, rel=0.03)


# The command --------------------------------------------------------------------------------------


def test_the_command_prints_and_writes(sfumato, tmp_path: Path) -> None:
    done = sfumato("bench", "scaling", "digits", "mnist", "--out", str(tmp_path / "out.json"))
    assert done.code == 0, done.err
    for words in ("1,640,929", "90 % efficiency", "FSDP", "Daly", "Assumed, not measured"):
        assert words in done.out
    record = json.loads((tmp_path / "out.json").read_text())
    assert [one["name"] for one in record["networks"]] == ["digits", "mnist"]
    networks, steps, *_ = record["tables"]
    assert networks["rows"][0][3] == pytest.approx(1e-6 * ring_bytes(4 * 1_640_929, 8))
    assert len(steps["rows"]) == 4


@pytest.fixture(scope="module")
def costs() -> dict[str, NetworkCost]:
    """Of every preset with a U-Net: counted once, which takes seconds."""
    return {name: network_cost(load_experiment(name, schema=DiffusionExperiment)) for name in UNETS}


@pytest.mark.slow
def test_every_preset_with_a_unet_is_listed(sfumato, costs, monkeypatch) -> None:
    counted = "sfumato.bench.network_cost.network_cost"
    monkeypatch.setattr(counted, lambda experiment: costs[experiment.name])
    listed = sfumato("bench", "scaling")
    first = listed.out.split("A step on")[0]
    assert [name for name in UNETS if f"\n{name} " in first] == UNETS
    assert "clip" not in first


@pytest.mark.slow
def test_the_tables_in_the_docs_are_those_of_the_command(costs) -> None:
    text = (Path(__file__).parents[1] / "docs" / "scaling.md").read_text()
    costs = list(costs.values())
    for table in tables(costs, Hardware(), ranks=8, batch=32):
        for row in (table.columns, *table.cells()):
            assert f"| {' | '.join(row)} |" in text, table.title
    slower = Hardware(utilisation=0.04)
    found = batch_table(costs[:1], slower, ranks=8)
    assert (found.columns[3:5], found.rows[0][4]) == (["100G", "overlap"], 52)
    assert "needs 52 images a rank in place of 516" in text


def test_a_preset_whose_size_is_unknown_is_not_measured(sfumato) -> None:
    refused = sfumato("bench", "scaling", "small", "--measure", "2")
    assert refused.code == 2
    assert "depends on the data" in refused.err


def test_a_round_gives_back_its_link() -> None:
    """All-reduces as a known link takes them: the link, and a step by hand."""
    link = Link(bytes_per_second=2e9, latency_seconds=1e-4)
    sizes = (SMALL_BYTES, MIDDLE_BYTES, LARGE_BYTES)
    for ranks in (2, 4):
        one = Round(
            alone=0.1,
            alone_cpu=0.08,
            together=0.25,
            granted=1.6,
            distributed=0.3,
            all_reduce={size: ring_seconds(size, ranks, link) for size in sizes},
        )
        found = one.link(ranks)
        assert found.bytes_per_second == pytest.approx(2e9)
        assert found.latency_seconds == pytest.approx(1e-4)
        measured = Measured(
            name="x", parameters=10**6, ranks=ranks, cpus=2, batch=1, rounds=[one] * 3
        )
        quiet = measured.predicted(one, quiet=True)
        assert quiet.compute_seconds == pytest.approx(0.1 * ranks / 2)
        # No CPU is left for communication: nothing is hidden.
        reduced = sum(ring_seconds(size, ranks, link) for size in bucket_sizes(10**6))
        assert quiet.exposed_seconds == pytest.approx(reduced)
        busy = measured.predicted(one, quiet=False)
        assert busy.compute_seconds == pytest.approx(0.08 * ranks / 1.6)
        assert measured.estimates()["ratio, all-reduce of 1 MiB"].value == pytest.approx(1)


@pytest.mark.slow
def test_two_processes_are_measured(sfumato, tmp_path: Path) -> None:
    """Loosely: other tests run at the same time."""
    out = tmp_path / "measured.json"
    done = sfumato(
        *("bench", "scaling", "digits", "--measure", "2", "--batch", "2", "--rounds", "3"),
        *("--out", str(out)),
    )
    assert done.code == 0, done.err
    (measured,) = json.loads(out.read_text())["measured"]
    assert measured["parameters"] == 1_640_929
    assert len(measured["rounds"]) == 3
    for one in measured["rounds"]:
        assert one["alone_cpu"] > 0
        assert 0 < one["granted"] <= 2 * 1.1
        assert one["distributed"] > 0.3 * one["together"]
    assert "ratio, CPUs had" in done.out
