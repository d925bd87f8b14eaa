"""One timing of a way to load, in a fresh process whose memory, with its workers', is measured."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from sfumato.base.errors import SfumatoError
from sfumato.bench.loaders import WAYS, Setup

_SAMPLED_EVERY_SECONDS = 0.05
_SAMPLING_SHARE = 0.05
"""Most of a processor core that measuring memory may take from what is timed: for a process that
holds gigabytes, one measurement takes tens of milliseconds."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """`batch_seconds`: from each batch to the next, the first from the start; `peak_bytes`: memory
    of the process and its workers above one that imported torch."""

    batch_seconds: list[float]
    labels: list[int]
    samples: list[int]
    peak_bytes: int

    @property
    def seconds_a_batch(self) -> float:
        return sum(self.batch_seconds) / len(self.batch_seconds)


def time_once(name: str, setup: Setup, *, batches: int) -> Timing:
    """Time `batches` batches of a way in a fresh process; `SfumatoError` where it fails."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    # Killed workers leave semaphores, which the resource tracker removes: no reason to warn.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")
    process = context.Process(target=_time, args=(there, name, setup, batches))
    process.start()
    there.close()
    assert process.pid is not None

    def answer() -> Any:
        try:
            found = here.recv()
        except EOFError:
            raise SfumatoError(f"{name}: its process ended.") from None
        if isinstance(found, Exception):
            raise SfumatoError(f"{name}: {str(found) or type(found).__name__}") from found
        return found

    try:
        answer()  # imports are done
        before = memory_bytes(process.pid)
        here.send("start")
        with _peak(process.pid) as peak:
            found = answer()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
    return Timing(**found, peak_bytes=peak[0] - before)


def _time(parent: Connection, name: str, setup: Setup, batches: int) -> None:
    """What the process does."""
    os.setsid()  # a group of its own, ended with its workers
    torch.set_num_threads(1)
    parent.send("imported")
    parent.recv()
    seconds: list[float] = []
    labels: list[int] = []
    samples: list[int] = []
    try:
        loaded = WAYS[name].start(setup)
        last = time.perf_counter()
        for batch in islice(loaded, batches):
            now = time.perf_counter()
            seconds.append(now - last)
            last = now
            labels += batch.labels.tolist()
            samples += batch.samples.tolist()
        parent.send({"batch_seconds": seconds, "labels": labels, "samples": samples})
    except Exception as error:
        parent.send(SfumatoError(str(error)))
    parent.recv()  # workers with batches ahead are not waited for: the group is killed


@contextmanager
def _peak(process: int) -> Iterator[list[int]]:
    """A list of one number: the most memory of a process and its descendants during the block."""
    peak, over = [0], threading.Event()

    def watch() -> None:
        pause = _SAMPLED_EVERY_SECONDS
        while not over.wait(pause):
            before = time.thread_time()
            peak[0] = max(peak[0], family_bytes(process))
            taken = time.thread_time() - before
            pause = max(_SAMPLED_EVERY_SECONDS, taken / _SAMPLING_SHARE)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()
        peak[0] = max(peak[0], family_bytes(process))  # a short block may see no other sample


def family_bytes(process: int) -> int:
    """Memory of a process and its descendants."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return 0
    return memory_bytes(process) + sum(family_bytes(int(child)) for child in children)


def memory_bytes(process: int) -> int:
    """Proportional set size: pages that several processes share count once in all; 0 where the
    system does not tell."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
