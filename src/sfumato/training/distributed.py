"""Several processes that train one model: who is there, and what they tell each other.

A process is a rank of a `World`. Every rank draws the random numbers of the global batch and keeps
its own rows, so a run has the same order and the same noise on any number of ranks. Rank 0 alone
reads and writes the run folder; the others get the state of a resumed run from it, so the folder
need not be visible to them.
"""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import PrefixStore, TCPStore  # pyright: ignore

from sfumato.base.doctor.findings import Host
from sfumato.base.doctor.launch import check_launch, launch_of
from sfumato.base.environment import processors
from sfumato.base.errors import DistributedError
from sfumato.training.state import Stateful, join_state, take_apart

RENDEZVOUS_SECONDS = 40
"""How long ranks wait for each other at the start."""
STEP_SECONDS = 30 * 60
"""How long a rank waits for the others in training: rank 0 may be sampling or saving."""


@dataclass(frozen=True)
class World:
    """The processes of a run; `rank` is this one's number, `local_rank` that on its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    store: Any = None
    """Text that ranks leave for each other: a `torch.distributed.Store`."""
    shards: bool = False
    """Whether weights are divided among ranks; then every rank takes part in reading and using
    them."""

    @property
    def is_main(self) -> bool:
        """Whether this rank writes the run folder."""
        return self.rank == 0

    def device(self, kind: torch.device) -> torch.device:
        """This rank's device of a kind: GPU `local_rank` of its machine, or the CPU."""
        if self.size == 1 or kind.type != "cuda" or kind.index is not None:
            return kind
        return torch.device("cuda", self.local_rank)

    def wrap(self, network: nn.Module, averages: Sequence[nn.Module]) -> nn.Module:
        """`network` with gradients averaged over ranks in its backward pass; itself if alone. Where
        weights are divided, they and their `averages` are divided in place."""
        if self.size == 1:
            return network
        if self.shards:
            from sfumato.training.sharding import shard

            shard([network, *averages])
            return network
        from torch.nn.parallel import DistributedDataParallel

        # Buckets are views of the gradients: no copy, and half of the memory. On a CPU an exchange
        # costs more to start than it gains beside the backward pass, which has all cores: one.
        on_cpu = next(network.parameters()).device.type == "cpu"
        return DistributedDataParallel(
            network,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            bucket_cap_mb=1_000_000 if on_cpu else None,
        )

    @contextmanager
    def synchronised(self, network: Any, *, last: bool) -> Iterator[None]:
        """Around a micro-batch of a wrapped `network`: only the last one of a step exchanges
        gradients."""
        if self.size == 1:
            yield
        elif self.shards:
            network.set_requires_gradient_sync(last)
            yield
        else:
            with nullcontext() if last else network.no_sync():
                yield

    def states(self, parts: Mapping[str, Stateful]) -> dict[str, Any]:
        """The whole state dictionary of each part. Where weights are divided, every rank must call
        this."""
        if self.shards:
            from sfumato.training.sharding import whole_state

            return {name: whole_state(part, keep=self.is_main) for name, part in parts.items()}
        return {name: part.state_dict() for name, part in parts.items()}

    def begin_mean(self, values: Tensor) -> Callable[[], object]:
        """Begin to average `values` over ranks in place. The returned call waits for the result: on
        a CPU the host, on a GPU what is queued there from then on."""
        if self.size == 1:
            return lambda: None
        values /= self.size
        work = torch.distributed.all_reduce(values, async_op=True)
        assert work is not None  # every rank is one of the group
        return work.wait

    def agree(self, what: str, **values: str) -> None:
        """`DistributedError` where a value differs between ranks. `what` names this comparison."""
        if self.size == 1:
            return
        found = self.exchange(what, json.dumps(values))
        first = json.loads(found[0])
        for rank, text in enumerate(found):
            other = json.loads(text)
            different = [name for name in first if first[name] != other.get(name)]
            if different:
                raise DistributedError(
                    f"Rank 0 and rank {rank} differ in their {' and '.join(different)}: "
                    + "; ".join(f"{first[n]} and {other.get(n)}" for n in different)
                    + ".",
                    hint="Start all ranks with the same command, code and data.",
                )

    def exchange(self, what: str, text: str) -> list[str]:
        """The text of every rank, by rank. `what` names this exchange, and is used once."""
        if self.size == 1:
            return [text]
        limit = timedelta(days=7)  # rank 0 may be training a classifier; a lost rank ends the wait
        keys = [f"{what}/{rank}" for rank in range(self.size)]
        self.store.set(keys[self.rank], text)
        self.store.wait(keys, limit)
        found = [self.store.get(key).decode() for key in keys]
        self.store.set(f"{keys[self.rank]}/read", "")
        if self.is_main:  # the store may be its own: it ends with this process
            self.store.wait([f"{key}/read" for key in keys], limit)
        return found

    def share(self, state: Mapping[str, Any] | None, device: torch.device) -> dict[str, Any]:
        """Rank 0's nested state dictionary of tensors and plain values, on every rank."""
        tensors: dict[str, Tensor] = {}
        tree = take_apart(state, tensors) if self.is_main else None
        shapes = {name: [list(t.shape), str(t.dtype)] for name, t in tensors.items()}
        text = self._text(json.dumps([tree, shapes]) if self.is_main else "", device)
        tree, shapes = json.loads(text)
        received = {}
        for name, (shape, dtype) in shapes.items():
            kind = getattr(torch, dtype.removeprefix("torch."))
            empty = torch.empty(shape, dtype=kind, device=device)
            tensor = tensors[name].to(device) if self.is_main else empty
            torch.distributed.broadcast(tensor, 0)
            received[name] = tensor.cpu()
        return join_state(tree, received)

    def _text(self, text: str, device: torch.device) -> str:
        """Rank 0's text on every rank."""
        content = torch.frombuffer(bytearray(text.encode() or b" "), dtype=torch.uint8).to(device)
        length = torch.tensor([len(content)], device=device)
        torch.distributed.broadcast(length, 0)
        if not self.is_main:
            content = torch.empty(int(length), dtype=torch.uint8, device=device)
        torch.distributed.broadcast(content, 0)
        return content.cpu().numpy().tobytes().decode()

    def own_state(self, part: Stateful, state: Any, device: torch.device) -> Any:
        """This rank's share of rank 0's `state` of a part: all of it, or its part where weights are
        divided."""
        if self.size == 1:
            return state
        state = self.share(state, device)
        if not self.shards:
            return state
        from sfumato.training.sharding import divided_state

        return divided_state(part, state)

    def wait(self) -> None:
        """Wait until every rank is here; the loss of a rank ends the wait."""
        if self.size > 1:
            # On the CPU: gloo notices that a rank is gone, where NCCL waits for its timeout.
            torch.distributed.all_reduce(torch.zeros(1))


_MEETINGS = count()
"""Counts the worlds of this process, which all ranks open in the same order."""
ALONE = World()
"""One process."""


@contextmanager
def open_world(device: torch.device) -> Iterator[World]:
    """The processes that torchrun or `sfumato train --processes` started, connected; `ALONE` where
    neither did.

    `DistributedError` where the environment contradicts itself, a rank does not come within 40
    seconds, or one is lost inside the block.
    """
    world = world_of(os.environ)
    if world.size == 1:
        yield world
        return
    _check_devices(world, device)
    if "OMP_NUM_THREADS" not in os.environ:
        beside = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        torch.set_num_threads(max(1, processors() // beside))
    try:
        store = _meet(world)
        _connect(world, device, PrefixStore("group", store))
        yield replace(world, store=store)
    except RuntimeError as error:
        if not _is_loss(error):
            raise
        raise DistributedError(
            f"Rank {world.rank} lost another rank, so training cannot go on.",
            hint="The output of the rank that failed says why. The same command resumes from the "
            "last checkpoint.",
        ) from error
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _connect(world: World, device: torch.device, store: Any) -> None:
    """Open the connections of collectives; `DistributedError` where the network refuses."""
    own = None
    if device.type == "cuda":
        own = world.device(device)
        torch.cuda.set_device(own)  # "cuda" is this rank's own GPU from here on
    try:
        torch.distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=world.rank,
            world_size=world.size,
            timeout=timedelta(seconds=STEP_SECONDS),
            device_id=own,  # NCCL connects now, so that what is wrong with it is said here
        )
    except RuntimeError as error:
        raise DistributedError(
            f"Rank {world.rank} on {socket.gethostname()} cannot connect to the other ranks "
            f"({str(error).splitlines()[0]}).",
            hint="Where the wrong network is used, name its device with GLOO_SOCKET_IFNAME and "
            "NCCL_SOCKET_IFNAME.",
        ) from error


def world_of(variables: Mapping[str, str]) -> World:
    """The world that environment variables describe, not connected; `DistributedError` where they
    contradict each other."""
    host = Host(environ=variables)
    check = check_launch(host)
    for finding in [] if check is None else check.findings:
        if finding.level == "wrong":
            raise DistributedError(f"{finding.what}.", hint=finding.hint)
    launch, local_rank = launch_of(host), host.number("LOCAL_RANK")
    if launch is None or local_rank is None:
        return ALONE
    return World(rank=launch.rank, size=launch.world_size, local_rank=local_rank)


def _check_devices(world: World, device: torch.device) -> None:
    """`DistributedError` where this rank has no GPU of its own."""
    if device.type != "cuda":
        return
    if device.index is not None:
        raise DistributedError(
            f"--device {device} is one GPU, but the run has {world.size} processes.",
            hint="Use --device cuda: each process takes the GPU of its LOCAL_RANK. "
            "CUDA_VISIBLE_DEVICES chooses among the GPUs.",
        )
    found = torch.cuda.device_count()
    if world.local_rank >= found:
        raise DistributedError(
            f"Rank {world.rank} is process {world.local_rank} of its machine, which has {found} "
            f"GPU{'s' * (found != 1)}.",
            hint="Start one process for each GPU, or use --device cpu.",
        )


def _meet(world: World) -> Any:
    """A store that all ranks have reached; `DistributedError` after 40 seconds without one."""
    launch = launch_of(Host())
    assert launch is not None  # or the world would be `ALONE`
    address, port = launch.address, launch.port
    opens = world.is_main and not launch.agent_serves
    deadline = time.monotonic() + RENDEZVOUS_SECONDS
    try:
        if not opens:
            _knock(address, port, deadline)
        store = _store(address, port, opens)
    except (RuntimeError, ValueError, OSError) as error:
        what = "wait for the others" if opens else "reach rank 0"
        raise DistributedError(
            f"Rank {world.rank} on {socket.gethostname()} cannot {what} at {address}:{port}.",
            hint="Check that rank 0 runs, that MASTER_ADDR and MASTER_PORT name its machine and a "
            "free port, and that no firewall is between them.",
        ) from error
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = PrefixStore(f"sfumato/{attempt}/{next(_MEETINGS)}", store)
    store.set(f"here/{world.rank}", socket.gethostname())
    absent = [rank for rank in range(world.size) if not _comes(store, rank, deadline)]
    if absent:
        raise DistributedError(
            f"Rank {', '.join(map(str, absent))} of {world.size} did not come within "
            f"{RENDEZVOUS_SECONDS} seconds.",
            hint=f"WORLD_SIZE is {world.size}: start so many processes, each with its own RANK.",
        )
    return store


def _knock(address: str, port: int, deadline: float) -> None:
    """Wait until somebody listens; `OSError` at `deadline`, which torch's own wait may exceed."""
    while True:
        try:
            socket.create_connection((address, port), timeout=2).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.1)


@cache
def _store(address: str, port: int, opens: bool) -> Any:
    """One for this process: a second one could not listen at the same port."""
    limit = timedelta(seconds=RENDEZVOUS_SECONDS)
    return TCPStore(address, port, is_master=opens, timeout=limit, wait_for_workers=False)


def _comes(store: Any, rank: int, deadline: float) -> bool:
    """Whether a rank comes before `deadline`, on the clock of `time.monotonic`."""
    left = max(0.1, deadline - time.monotonic())
    try:
        store.wait([f"here/{rank}"], timedelta(seconds=left))
    except RuntimeError:
        return False
    return True


def _is_loss(error: RuntimeError) -> bool:
    """Whether a collective failed because a process that takes part in it is gone."""
    lost = ("Connection closed", "Connection reset", "Broken pipe", "Timed out waiting", "Gloo")
    known = torch.distributed.DistError
    return isinstance(error, known) or any(text in str(error) for text in lost)
