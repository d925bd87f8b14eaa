"""Decoding for a stream: rows of a row group in, pixels into an arena out.

Also the program of a worker process (`python -m sfumato.data.streaming.worker`): it takes tasks as
JSON lines on its standard input, answers each with a line, and ends with its input, so that it
outlives no training, however that was ended. It imports no torch.
"""

import json
import mmap
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sfumato.data.decode import BadImage, Target, decode
from sfumato.data.sources.parquet import read_group, unreadable
from sfumato.data.sources.parquet_pages import index_images


@dataclass(frozen=True, kw_only=True)
class Task:
    """Decode `rows` of row group `group` of `file`, rising, into the `slots` of the arena.

    `alone`: the group is so large that Arrow may read it in one process at a time only."""

    number: int
    file: str
    group: int
    alone: bool
    rows: Sequence[int]
    slots: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """`damaged`: why a row could not be decoded, by its place in the task's rows."""

    number: int
    damaged: Mapping[int, str]


def decode_task(
    task: Task, arena: np.ndarray, *, target: Target, column: str, handle: int | None = None
) -> Answer:
    """Decode a task into `arena` (slots, C, R, R) uint8; `handle` is the file by which
    workers take turns."""
    import pyarrow as pa

    index = index_images(Path(task.file), task.group, column)
    images = index.read(task.rows) if index else _by_arrow(task, column, handle)
    damaged: dict[int, str] = {}
    place = 0
    try:
        for image in images:
            try:
                arena[task.slots[place]] = decode(image, target)[0]
            except BadImage as error:
                damaged[place] = str(error)
            place += 1
    except (pa.ArrowException, OSError) as error:
        damaged |= dict.fromkeys(range(place, len(task.rows)), unreadable(error))
    return Answer(number=task.number, damaged=damaged)


def _by_arrow(task: Task, column: str, handle: int | None) -> Iterator[bytes | None]:
    """The task's encoded images up to the first that cannot be read, and then Arrow's error.

    Arrow holds up to three times a row group while it reads it, and gives it back before the first
    image comes out."""
    import pyarrow as pa

    encoded: list[bytes | None] = []
    problem = None
    with _turn(handle) if task.alone and handle is not None else nullcontext():
        try:
            encoded.extend(read_group(Path(task.file), task.group, task.rows, column))
        except (pa.ArrowException, OSError) as error:
            problem = error
        pa.default_memory_pool().release_unused()
    yield from encoded
    if problem is not None:
        raise problem


@contextmanager
def _turn(handle: int) -> Iterator[None]:
    """Inside, no other worker is: a lock that the system takes back from a process that ends."""
    import fcntl

    fcntl.lockf(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.lockf(handle, fcntl.LOCK_UN)


def map_arena(handle: int, shape: Sequence[int]) -> np.ndarray:
    """The file behind `handle` as uint8 of `shape`, shared with whoever maps it too."""
    return np.frombuffer(mmap.mmap(handle, int(np.prod(shape))), np.uint8).reshape(shape)


def first_line(handle: int, shape: Sequence[int], *, target: Target, column: str) -> str:
    """What a worker is told before its first task."""
    told = {"handle": handle, "shape": list(shape), "target": asdict(target), "column": column}
    return json.dumps(told)


def main() -> None:
    """Answer tasks until there are no more."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the training decides when it ends
        signal.signal(number, signal.SIG_IGN)
    told: dict[str, Any] = json.loads(sys.stdin.readline())
    arena = map_arena(told["handle"], told["shape"])
    settings = {"target": Target(**told["target"]), "column": told["column"]}
    for line in sys.stdin:
        answer = decode_task(Task(**json.loads(line)), arena, handle=told["handle"], **settings)
        try:
            os.write(sys.stdout.fileno(), json.dumps(asdict(answer)).encode() + b"\n")
        except BrokenPipeError:
            return  # the training was killed


if __name__ == "__main__":
    main()
