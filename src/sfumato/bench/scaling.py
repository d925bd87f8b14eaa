"""Data-parallel training on paper: communication, memory, efficiency, failures. No torch.

Times are in seconds, sizes in bytes. A *rank* is a process with one accelerator.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log2, sqrt
from statistics import NormalDist
from typing import Protocol

FLOAT32_BYTES, BFLOAT16_BYTES = 4, 2
ADAM_MOMENTS = 2
FORWARD_SHARE = 1 / 3
"""Of a step's compute: the backward pass takes two products for each of the forward pass."""
FIRST_BUCKET_BYTES, BUCKET_BYTES = 2**20, 25 * 2**20
"""Buckets of float32 gradients in torch's DistributedDataParallel, the first ready one smaller."""
EFFICIENT = 0.9
_NORMAL = NormalDist()


class Network(Protocol):
    """What the arithmetic needs of a network (`bench.network_cost.NetworkCost`)."""

    @property
    def parameters(self) -> int: ...
    @property
    def block_parameters(self) -> int: ...
    @property
    def forward_flops(self) -> int: ...
    @property
    def activation_bytes(self) -> int: ...
    @property
    def averages(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """Assumptions, none of them measured here."""

    peak_flops: float = 989e12
    """H100 SXM, bfloat16, dense, by its data sheet."""
    utilisation: float = 0.4
    """Share of the peak that training reaches; small networks reach far less."""
    latency_seconds: float = 10e-6
    """Of one hop of a ring between machines."""
    node_ranks: int = 8
    node_bytes_per_second: float = 450e9
    """NVLink of an H100, one direction, by its data sheet."""
    node_latency_seconds: float = 3e-6
    straggling: float = 0.02
    """Standard deviation of a rank's step time over its mean."""
    rank_mtbf_seconds: float = 16_384 * 54 * 86_400 / 419
    """Mean time between failures of a rank: 419 unexpected interruptions in 54 days on 16,384 GPUs
    (The Llama 3 Herd of Models, 2024, Section 3.3.4)."""
    write_bytes_per_second: float = 1e9
    """Of a checkpoint, by one rank."""
    restart_seconds: float = 300.0

    def seconds_an_image(self, network: Network) -> float:
        """Compute of forward and backward pass: three times the forward pass."""
        flops = network.forward_flops / FORWARD_SHARE
        return flops / (self.peak_flops * self.utilisation)

    def link(self, gbit: float) -> "Link":
        return Link(bytes_per_second=gbit * 1e9 / 8, latency_seconds=self.latency_seconds)

    @property
    def node_link(self) -> "Link":
        return Link(
            bytes_per_second=self.node_bytes_per_second, latency_seconds=self.node_latency_seconds
        )


# Communication ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Link:
    """From a rank to the next one in a ring."""

    bytes_per_second: float
    latency_seconds: float = 0.0


def ring_bytes(size: float, ranks: int) -> float:
    """What each rank sends in a ring all-reduce of `size` bytes: reduce-scatter and all-gather of
    (N - 1) / N of them each (Patarasuk and Yuan 2009)."""
    return 2 * (ranks - 1) / ranks * size


def ring_seconds(size: float, ranks: int, link: Link) -> float:
    """2 (N - 1) hops in sequence."""
    hops = 2 * (ranks - 1)
    return ring_bytes(size, ranks) / link.bytes_per_second + hops * link.latency_seconds


def hierarchical_seconds(
    size: float, nodes: int, node_ranks: int, *, inside: Link, between: Link
) -> float:
    """Reduce-scatter inside each node, rings between nodes, all-gather inside.

    Each of a node's ranks has a ring of its own for its part; they share the node's network.
    """
    part = size / node_ranks
    shared = Link(
        bytes_per_second=between.bytes_per_second / node_ranks,
        latency_seconds=between.latency_seconds,
    )
    return ring_seconds(size, node_ranks, inside) + ring_seconds(part, nodes, shared)


def bucket_sizes(parameters: int, gradient_bytes: int = FLOAT32_BYTES) -> list[float]:
    """Sizes of the buckets in the order in which the backward pass fills them."""
    rest, sizes, most = float(parameters * FLOAT32_BYTES), [], FIRST_BUCKET_BYTES
    while rest > 0:
        sizes.append(min(rest, most) * gradient_bytes / FLOAT32_BYTES)
        rest, most = rest - most, BUCKET_BYTES
    return sizes


# A step -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Step:
    """`exposed_seconds`: communication that no compute hides."""

    compute_seconds: float
    communication_seconds: float
    exposed_seconds: float

    @property
    def seconds(self) -> float:
        return self.compute_seconds + self.exposed_seconds

    @property
    def efficiency(self) -> float:
        """Images a second and rank, over those of one rank alone."""
        return self.compute_seconds / self.seconds


def step(
    compute_seconds: float, sizes: Sequence[float], ranks: int, link: Link, *, overlap: bool = True
) -> Step:
    """A data-parallel step whose gradients are reduced in buckets of `sizes`, one after another.

    With `overlap` a bucket starts when the backward pass has filled it and the one before is done.
    The backward pass is taken to fill bytes at an even pace. The last bucket is filled at its end,
    so nothing hides that one.
    """
    seconds = [ring_seconds(size, ranks, link) for size in sizes]
    if not overlap:
        total = sum(seconds)
        return Step(
            compute_seconds=compute_seconds, communication_seconds=total, exposed_seconds=total
        )
    backward = (1 - FORWARD_SHARE) * compute_seconds
    filled, done = 0.0, 0.0
    for size, taken in zip(sizes, seconds, strict=True):
        filled += size
        ready = compute_seconds - backward * (1 - filled / sum(sizes))
        done = max(ready, done) + taken
    return Step(
        compute_seconds=compute_seconds,
        communication_seconds=sum(seconds),
        exposed_seconds=max(done - compute_seconds, 0.0),
    )


def least_batch(
    seconds_an_image: float,
    sizes: Sequence[float],
    ranks: int,
    link: Link,
    *,
    overlap: bool = True,
    efficiency: float = EFFICIENT,
) -> int:
    """The smallest batch of a rank with which a step is at least that efficient."""

    def reached(batch: int) -> bool:
        found = step(batch * seconds_an_image, sizes, ranks, link, overlap=overlap)
        return found.efficiency >= efficiency

    high = 1
    while not reached(high):
        high *= 2
    low = high // 2  # not reached, or 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high


def most_ranks(batch_size: int, seconds_an_image: float, sizes: Sequence[float], link: Link) -> int:
    """The most ranks, a power of two, that a global batch keeps at least 90 % efficient."""
    most = 1
    for power in range(1, int(log2(batch_size)) + 1):
        ranks = 2**power
        if step(batch_size / ranks * seconds_an_image, sizes, ranks, link).efficiency >= EFFICIENT:
            most = ranks
    return most


# Memory -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one rank. `replicated`: DDP, all of it. `sharded`: FSDP, full sharding."""

    weights: float
    gradients: float
    moments: float
    averages: float
    activations: float
    gathered: float
    """FSDP: weights and gradients of the block that is being computed."""
    ranks: int

    @property
    def state(self) -> float:
        return self.weights + self.gradients + self.moments + self.averages

    @property
    def replicated(self) -> float:
        return self.state + self.activations

    @property
    def sharded(self) -> float:
        return self.state / self.ranks + self.gathered + self.activations


def memory(network: Network, *, batch: int, ranks: int) -> Memory:
    """Everything in float32 but activations, which are bfloat16; DDP's buckets are its gradients
    (`gradient_as_bucket_view`)."""
    weights = FLOAT32_BYTES * network.parameters
    return Memory(
        weights=weights,
        gradients=weights,
        moments=ADAM_MOMENTS * weights,
        averages=network.averages * weights,
        activations=batch * network.activation_bytes * BFLOAT16_BYTES / FLOAT32_BYTES,
        gathered=2 * FLOAT32_BYTES * network.block_parameters,
        ranks=ranks,
    )


# Many ranks ---------------------------------------------------------------------------------------


def slowest_of(ranks: int, deviation: float) -> float:
    """Mean of the largest of `ranks` normal step times over the mean of one; a step takes as long
    as its slowest rank. E[max] is the integral of 1 - F^N above 0 less that of F^N below."""
    width, most = 0.01, 8.0
    middles = [width * (place + 0.5) for place in range(round(most / width))]
    above = sum(1 - _NORMAL.cdf(one) ** ranks for one in middles)
    below = sum(_NORMAL.cdf(-one) ** ranks for one in middles)
    return 1 + deviation * width * (above - below)


def young_seconds(checkpoint_seconds: float, mtbf_seconds: float) -> float:
    """Interval between checkpoints that loses least, to first order (Young 1974)."""
    return sqrt(2 * checkpoint_seconds * mtbf_seconds)


def daly_seconds(checkpoint_seconds: float, mtbf_seconds: float) -> float:
    """The same to higher order (Daly 2006, Eq. 37)."""
    if checkpoint_seconds >= 2 * mtbf_seconds:
        return mtbf_seconds
    ratio = checkpoint_seconds / (2 * mtbf_seconds)
    young = young_seconds(checkpoint_seconds, mtbf_seconds)
    return young * (1 + sqrt(ratio) / 3 + ratio / 9) - checkpoint_seconds


def lost_share(
    interval_seconds: float,
    checkpoint_seconds: float,
    mtbf_seconds: float,
    restart_seconds: float = 0.0,
) -> float:
    """Share of the time that goes into checkpoints, work done twice and restarts, to first order:
    a failure loses half of an interval in the mean."""
    again = (interval_seconds + checkpoint_seconds) / 2 + restart_seconds
    return checkpoint_seconds / interval_seconds + again / mtbf_seconds


def checkpoint_bytes(network: Network) -> int:
    """Weights, moments and averages in float32."""
    return FLOAT32_BYTES * network.parameters * (1 + ADAM_MOMENTS + network.averages)
