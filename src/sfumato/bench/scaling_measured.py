"""The arithmetic of `bench.scaling` against processes on this machine, which talk over gloo.

Compute is measured with one rank at work, the link with all-reduces of two sizes; the time of a
step of several ranks is predicted from both and then measured.
"""

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sfumato.base.doctor.findings import Host
from sfumato.base.doctor.machine import usable_cpus
from sfumato.base.errors import SfumatoError
from sfumato.base.files import read_json, write_json
from sfumato.bench.scaling import Link, Step, bucket_sizes, ring_bytes, ring_seconds, step
from sfumato.config.schema import DiffusionExperiment
from sfumato.evaluation.metrics.intervals import Estimate, bootstrap_median
from sfumato.models.unet import build_unet

SMALL_BYTES, MIDDLE_BYTES, LARGE_BYTES = 4 * 2**10, 2**20, 8 * 2**20
"""All-reduces: the small one gives the latency, the large one the bandwidth, the middle one is
predicted."""
_REPEATS = 8
_TIMEOUT = timedelta(minutes=5)


@dataclass(frozen=True, kw_only=True)
class Round:
    """Seconds of one round: of a step, and of an all-reduce by its bytes."""

    alone: float
    """One rank computes, the others wait."""
    alone_cpu: float
    """The same in processor time, which other programs on the machine do not lengthen."""
    together: float
    """All ranks compute at once, without communication."""
    granted: float
    """CPUs that the ranks had meanwhile: their processor time over the time. Not a second."""
    distributed: float
    """The same with DistributedDataParallel."""
    all_reduce: dict[int, float]

    def link(self, ranks: int) -> Link:
        """The link whose ring takes as long as the small and the large all-reduce."""
        small, large = self.all_reduce[SMALL_BYTES], self.all_reduce[LARGE_BYTES]
        sent = ring_bytes(LARGE_BYTES - SMALL_BYTES, ranks)
        rate = sent / max(large - small, 1e-9)
        latency = (small - ring_bytes(SMALL_BYTES, ranks) / rate) / (2 * (ranks - 1))
        return Link(bytes_per_second=rate, latency_seconds=max(latency, 0.0))


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Rounds of `ranks` processes of one thread on `cpus` CPUs, `batch` images a rank."""

    name: str
    parameters: int
    ranks: int
    cpus: int
    batch: int
    rounds: list[Round]

    def predicted(self, one: Round, *, quiet: bool) -> Step:
        """A step by the arithmetic, from the compute of one rank and the link.

        Ranks beyond the CPUs take turns: beyond those of the machine if it is `quiet`, else beyond
        those that other programs left. Communication is hidden only where a CPU is left for it.
        """
        factor = max(1.0, self.ranks / self.cpus)
        compute = one.alone * factor if quiet else one.alone_cpu * self.ranks / one.granted
        sizes = bucket_sizes(self.parameters)
        link = one.link(self.ranks)
        return step(compute, sizes, self.ranks, link, overlap=self.ranks < self.cpus)

    def estimates(self) -> dict[str, Estimate]:
        """Medians over the rounds, with intervals; ratios are predicted over measured."""
        values = [self._values(one) for one in self.rounds]
        return {name: bootstrap_median([one[name] for one in values]) for name in values[0]}

    def _values(self, one: Round) -> dict[str, float]:
        link = one.link(self.ranks)
        quiet, busy = (self.predicted(one, quiet=quiet).seconds for quiet in (True, False))
        return {
            "step of one rank alone, ms": 1e3 * one.alone,
            "CPUs that the ranks had": one.granted,
            "link, Gbit/s": 8e-9 * link.bytes_per_second,
            "latency of a hop, ms": 1e3 * link.latency_seconds,
            "communication of a step, ms": 1e3
            * self.predicted(one, quiet=True).communication_seconds,
            "step measured, ms": 1e3 * one.distributed,
            "step predicted, all CPUs, ms": 1e3 * quiet,
            "step predicted, CPUs had, ms": 1e3 * busy,
            "ratio, all CPUs": quiet / one.distributed,
            "ratio, CPUs had": busy / one.distributed,
            "ratio, all-reduce of 1 MiB": ring_seconds(MIDDLE_BYTES, self.ranks, link)
            / one.all_reduce[MIDDLE_BYTES],
        }


def measure(
    experiment: DiffusionExperiment, *, ranks: int, batch: int, rounds: int, steps: int = 3
) -> Measured:
    """Time `rounds` rounds of `steps` steps on `ranks` processes of one thread each.

    The experiment says how large images are. `SfumatoError` where a process fails.
    """
    with TemporaryDirectory(prefix="sfumato-bench-") as folder:
        arguments = (ranks, experiment, batch, rounds, steps, folder)
        try:
            mp.spawn(_rank, args=arguments, nprocs=ranks)
        except Exception as error:
            raise SfumatoError(f"A process of the measurement failed: {error}") from error
        found = read_json(Path(folder) / "rounds.json")
    return Measured(
        name=experiment.name,
        parameters=found["parameters"],
        ranks=ranks,
        cpus=usable_cpus(Host()),
        batch=batch,
        rounds=[_round(values) for values in found["rounds"]],
    )


def _round(values: dict) -> Round:
    sizes = {int(size): seconds for size, seconds in values["all_reduce"].items()}
    return Round(**{**values, "all_reduce": sizes})


# What each process does ---------------------------------------------------------------------------


def _rank(
    rank: int,
    ranks: int,
    experiment: DiffusionExperiment,
    batch: int,
    rounds: int,
    steps: int,
    folder: str,
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks, timeout=_TIMEOUT
    )
    network, train = _training(experiment, batch)
    found = [_time_round(rank, network, train, steps) for _ in range(rounds + 1)][1:]
    if rank == 0:
        parameters = sum(parameter.numel() for parameter in network.parameters())
        record = {"parameters": parameters, "rounds": [asdict(one) for one in found]}
        write_json(Path(folder) / "rounds.json", record)
    dist.barrier()
    # The threads of gloo and autograd abort a process now and then that ends in the usual way.
    os._exit(0)


def _training(
    experiment: DiffusionExperiment, batch: int
) -> tuple[DistributedDataParallel, Callable[[], None]]:
    """A bare step of the U-Net on noise, and the wrapped network."""
    config, (channels, side) = experiment.model, experiment.network_shape
    unet: nn.Module = build_unet(config, resolution=side, channels=channels, seed=0)
    network = DistributedDataParallel(unet.train())
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4, fused=True)
    generator = torch.Generator().manual_seed(0)
    shape = (batch, channels, side, side)
    images = torch.randn(shape, generator=generator)
    tokens = torch.randn(
        (batch, experiment.text.max_tokens, config.cross_attention_dim), generator=generator
    )
    times = torch.zeros(batch)

    def train() -> None:
        network(images, times, tokens).sample.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return network, train


def _time_round(
    rank: int, network: DistributedDataParallel, train: Callable[[], None], steps: int
) -> Round:
    alone = alone_cpu = 0.0
    dist.barrier()
    with network.no_sync():
        if rank == 0:
            before = time.process_time()
            alone = _seconds(train, steps)
            alone_cpu = (time.process_time() - before) / steps
        dist.barrier()  # a rank that waits here takes no CPU
        before = time.process_time()
        together = _together(train, steps)
        used = torch.tensor([(time.process_time() - before) / steps], dtype=torch.float64)
    dist.all_reduce(used)
    return Round(
        alone=alone,
        alone_cpu=alone_cpu,
        together=together,
        granted=used.item() / together,
        distributed=_together(train, steps),
        all_reduce={size: _all_reduce(size) for size in (SMALL_BYTES, MIDDLE_BYTES, LARGE_BYTES)},
    )


def _seconds(work: Callable[[], object], times: int) -> float:
    started = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - started) / times


def _together(work: Callable[[], object], times: int) -> float:
    """Seconds of `work` until the last rank has done it, started together."""
    dist.barrier()
    started = time.perf_counter()
    for _ in range(times):
        work()
    dist.barrier()
    return (time.perf_counter() - started) / times


def _all_reduce(size: int) -> float:
    values = torch.zeros(size // 4)
    dist.all_reduce(values)  # gloo connects, and touches its memory
    return _together(lambda: dist.all_reduce(values), _REPEATS)
