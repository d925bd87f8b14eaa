"""Decoding for a stream: rows of a row group in, pixels into an arena out.

Also the program of a worker process (`python -m sfumato.data.stream_worker`): it takes tasks as
JSON lines on its standard input, answers each with a line, and ends with its input, so that it
outlives no training, however that was ended. It imports no torch.
"""

import json
import mmap
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sfumato.data.decode import BadImage, Target, decode
from sfumato.data.parquet import read_group, unreadable


@dataclass(frozen=True, kw_only=True)
class Task:
    """Decode `rows` of row group `group` of `file`, rising, into the `slots` of the arena."""

    number: int
    file: str
    group: int
    rows: Sequence[int]
    slots: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """`damaged`: why a row could not be decoded, by its place in the task's rows."""

    number: int
    damaged: Mapping[int, str]


def decode_task(task: Task, arena: np.ndarray, *, target: Target, column: str) -> Answer:
    """Decode a task into `arena` (slots, C, R, R) uint8."""
    import pyarrow as pa

    damaged: dict[int, str] = {}
    done = 0
    try:
        for image in read_group(Path(task.file), task.group, task.rows, column):
            try:
                arena[task.slots[done]] = decode(image, target)[0]
            except BadImage as error:
                damaged[done] = str(error)
            done += 1
    except (pa.ArrowException, OSError) as error:
        damaged.update(dict.fromkeys(range(done, len(task.rows)), unreadable(error)))
    return Answer(number=task.number, damaged=damaged)


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
    os.close(told["handle"])
    target = Target(**told["target"])
    for line in sys.stdin:
        answer = decode_task(Task(**json.loads(line)), arena, target=target, column=told["column"])
        try:
            os.write(sys.stdout.fileno(), json.dumps(asdict(answer)).encode() + b"\n")
        except BrokenPipeError:
            return  # the training was killed


if __name__ == "__main__":
    main()
