"""Batches straight from Parquet, for data sets that are too large to hold or prepare.

The order comes from `stream_order`; here its chunks are decoded ahead of need, by worker processes
into memory that they share with the training, and copied out in order. What is decoded ahead is a
matter of speed only: the batches are the same with any number of workers.
"""

import json
import os
import selectors
import subprocess
import sys
import tempfile
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from heapq import merge
from itertools import count
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch

import sfumato
from sfumato.base.errors import ConfigError, SfumatoError
from sfumato.config.sections import DataConfig
from sfumato.data.decode import Target, processors, row_problem
from sfumato.data.loading import Batch, check_shares, chosen_captions
from sfumato.data.records import (
    Annotations,
    Split,
    annotate,
    check_damage,
    needs_caption,
    open_images,
    rows_of,
    source_name,
    target_of,
)
from sfumato.data.streaming.order import STREAMS, WINDOW_IMAGES, Chunk, StreamOrder
from sfumato.data.streaming.worker import Answer, Task, decode_task, first_line, map_arena
from sfumato.data.table import Damage, GroupedPart, RowGroup

_MOST_WORKERS = 8
_AHEAD_ROWS = 256
"""Rows that a worker has before it, so that it goes on while the training computes."""
_FIRST_BATCHES = 2
_LARGE_GROUP_BYTES = 64 * 2**20
"""Arrow reads row groups above it in one worker at a time, for the memory that this takes."""


@dataclass(frozen=True, kw_only=True)
class StreamedRecords(Annotations):
    """What is known of a split whose images stay in their files.

    Sample i of the annotations is row `rows[g][i - start of g]` of `groups[g]`, counted from that
    group's first row. `config` is resolved.
    """

    groups: Sequence[RowGroup]
    rows: Sequence[np.ndarray]
    image_column: str
    config: DataConfig

    @property
    def sizes(self) -> list[int]:
        return [len(rows) for rows in self.rows]


def open_stream(config: DataConfig, split: Split) -> StreamedRecords:
    """A split of a resolved `config` by the labels and captions of its rows alone.

    Rows without the label or caption that they need are left out, as in `load_records`; images that
    cannot be decoded are met later. Raises as `load_records`, and `ConfigError` for a source that
    is not Parquet.
    """
    raw = open_images(config)
    part, keep, name = rows_of(raw, config, split)
    if not isinstance(part, GroupedPart):
        raise ConfigError(
            f"data.loading=stream reads Parquet; {config.source} is {raw.layout}.",
            hint="Use data.loading=memory.",
        )
    places = np.arange(part.count) if keep is None else np.flatnonzero(keep)
    good = np.zeros(len(places), dtype=bool)
    labels: list[int] = []
    own: list[str | None] = []
    damage: list[Damage] = []
    classes, needed = len(raw.class_names), needs_caption(config)
    for place, row in enumerate(part.read_notes(keep)):
        if problem := row.problem or row_problem(row, classes, needed):
            damage.append(Damage(row.file, row.number, problem))
            continue
        good[place] = True
        labels.append((row.label or 0) if classes else 0)
        own.append(row.caption)
    check_damage(damage, len(places), config)
    places = places[good]
    starts = np.cumsum([0, *(group.count for group in part.groups[:-1])])
    rows = np.split(places, np.searchsorted(places, starts[1:]))
    description = (
        f"{source_name(config)} ({raw.layout}, streamed), {name} split "
        f"({len(places):,} of {raw.count:,})"
    )
    about = annotate(
        raw, config, labels=np.array(labels), own=own, description=description, damage=damage
    )
    return StreamedRecords(
        **vars(about),
        groups=part.groups,
        rows=[mine - start for mine, start in zip(rows, starts, strict=True)],
        image_column=part.image_column,
        config=config,
    )


# Batches ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Underway:
    """A chunk that is being decoded; its samples rise, as the rows of its task do."""

    task: Task
    samples: list[int]
    places: list[int]


class StreamBatches:
    """Batches of a streamed split, decoded ahead into a window of at most `WINDOW_IMAGES` images
    over all ranks.

    A damaged image is replaced by the next one of the files that is not, which depends on the files
    alone; where more than `data.max_damaged` were met, `at` raises `DamagedDataError`.
    """

    def __init__(
        self,
        records: StreamedRecords,
        *,
        seed: int,
        batch_size: int,
        device: torch.device,
        workers: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        check_shares(batch_size, world_size)
        if STREAMS % world_size:
            raise ConfigError(
                f"A streamed data set cannot be shared by {world_size} processes.",
                hint=f"Use a number that divides {STREAMS}.",
            )
        self.seed = seed
        self.batch_size = batch_size
        self.order = StreamOrder(records.sizes, seed=seed)
        self._records = records
        self._device = device
        self._rank, self._world_size = rank, world_size
        target = target_of(records.config)
        shape = (WINDOW_IMAGES // world_size, target.channels, *[target.resolution] * 2)
        handle = _anonymous_file(int(np.prod(shape)))
        self._arena = map_arena(handle, shape)
        column = records.image_column
        self._decoders: _Here | _Workers = _Here(self._arena, target=target, column=column)
        if workers:
            line = first_line(handle, shape, target=target, column=column)
            self._decoders = _Workers(workers, handle, line, least_rows=2 * batch_size // workers)
        os.close(handle)
        self._damaged: dict[int, Damage] = {}
        self._underway: dict[int, _Underway] = {}
        self._tasks = count()
        self._seek(0)

    def at(self, images_seen: int) -> Batch:
        """This rank's part of the global batch that starts at sample `images_seen`; quick where
        that is the one after the last batch."""
        if images_seen != self._start:
            self._seek(images_seen)
        batch = self._staged or self._gather()
        self._start += self.batch_size
        ready = all(place in self._ready for place in self._places())
        self._staged = self._gather() if ready else None  # copied to the device meanwhile
        return batch

    def _places(self) -> range:
        """This rank's places of the batch that comes next."""
        return range(self._start + self._rank, self._start + self.batch_size, self._world_size)

    def _seek(self, start: int) -> None:
        """Begin at `start`: what is being decoded is waited for and forgotten."""
        while self._underway:
            for answer in self._decoders.answers(wait=True):
                del self._underway[answer.number]
        self._start = start
        self._staged: Batch | None = None
        self._ready: dict[int, tuple[int, int]] = {}
        self._free = list(range(len(self._arena)))
        chunks = self.order.chunks(start, rank=self._rank, world_size=self._world_size)
        self._chunks = _soon_first(chunks, start + _FIRST_BATCHES * self.batch_size)
        self._next_chunk = next(self._chunks)

    def _gather(self) -> Batch:
        """The next batch, waiting for what is not yet decoded; its slots are free again."""
        places = self._places()
        pixels = torch.empty(
            (len(places), *self._arena.shape[1:]),
            dtype=torch.uint8,
            pin_memory=self._device.type == "cuda",
        )
        samples = torch.empty(len(places), dtype=torch.int64)
        for row, place in enumerate(places):
            while place not in self._ready:
                self._decode(wait=True)
            slot, sample = self._ready.pop(place)
            pixels.numpy()[row] = self._arena[slot]
            samples[row] = sample
            self._free.append(slot)
        self._decode(wait=False)
        records = self._records
        chosen = chosen_captions(
            records.prompts.shape[1],
            seed=self.seed,
            images_seen=self._start,
            batch_size=self.batch_size,
        )[self._rank :: self._world_size]
        return Batch(
            images=pixels.to(self._device, non_blocking=True),
            labels=records.labels[samples].to(self._device),
            prompts=records.prompts[samples, chosen].to(self._device),
        )

    # Decoding -------------------------------------------------------------------------------------

    def _decode(self, *, wait: bool) -> None:
        """Hand out tasks while there is room, and take in answers: at least one if told to wait."""
        self._hand_out()
        for answer in self._decoders.answers(wait=wait):
            self._take_in(self._underway.pop(answer.number), answer)
        self._hand_out()

    def _hand_out(self) -> None:
        while self._decoders.has_room() and len(self._next_chunk.samples) <= len(self._free):
            chunk = self._next_chunk
            rising = np.argsort(chunk.samples)
            self._submit(
                chunk.samples[rising].tolist(),
                chunk.places[rising].tolist(),
                [self._free.pop() for _ in chunk.samples],
            )
            self._next_chunk = next(self._chunks)

    def _submit(self, samples: list[int], places: list[int], slots: list[int]) -> None:
        """Have `samples` of one row group, rising, decoded into `slots` for their `places`."""
        number = int(np.searchsorted(self.order.starts, samples[0], "right")) - 1
        group, rows = self._records.groups[number], self._records.rows[number]
        task = Task(
            number=next(self._tasks),
            file=str(group.file),
            group=group.index,
            alone=group.size_bytes > _LARGE_GROUP_BYTES,
            rows=rows[np.array(samples) - self.order.starts[number]].tolist(),
            slots=slots,
        )
        self._underway[task.number] = _Underway(task=task, samples=samples, places=places)
        self._decoders.submit(task)

    def _take_in(self, done: _Underway, answer: Answer) -> None:
        """Note what is decoded, and have the next sample decoded in place of a damaged one."""
        for index, reason in answer.damaged.items():
            self._note_damage(done.samples[index], reason)
        for index, (place, slot) in enumerate(zip(done.places, done.task.slots, strict=True)):
            sample = done.samples[index]
            if index not in answer.damaged:
                self._ready[place] = slot, sample
                continue
            while sample in self._damaged:
                sample = (sample + 1) % self.order.count
            self._submit([sample], [place], [slot])

    def _note_damage(self, sample: int, reason: str) -> None:
        if sample in self._damaged:
            return
        number = int(np.searchsorted(self.order.starts, sample, "right")) - 1
        group, rows = self._records.groups[number], self._records.rows[number]
        row = group.start + int(rows[sample - self.order.starts[number]])
        self._damaged[sample] = Damage(group.name, row, reason)
        damage = [*self._records.damage, *self._damaged.values()]
        rows_in_all = len(self._records) + len(self._records.damage)
        check_damage(sorted(damage), rows_in_all, self._records.config)


def _soon_first(chunks: Iterator[Chunk], soon: int) -> Iterator[Chunk]:
    """The same, with what has places before `soon` in parts of their own, so that a run that goes
    on waits for a few images of each chunk, not for a whole window."""
    later: list[Chunk] = []
    for chunk in chunks:
        early = int(np.searchsorted(chunk.places, soon))
        if early:
            yield chunk.part(slice(early))
        if early < len(chunk.places):
            later.append(chunk.part(slice(early, None)))
        if not early:
            break
    later.sort(key=lambda chunk: chunk.first_place)
    yield from merge(later, chunks, key=lambda chunk: chunk.first_place)


def worker_count(config: DataConfig) -> int:
    """Decoding processes that `config` asks for on this machine."""
    return min(processors(), _MOST_WORKERS) if config.workers == "auto" else config.workers


def _anonymous_file(size_bytes: int) -> int:
    """A handle on memory that is gone with the last process that maps it, however that ends."""
    if hasattr(os, "memfd_create"):
        handle = os.memfd_create("sfumato-window")
    else:
        with tempfile.TemporaryFile(prefix="sfumato-window-") as file:
            handle = os.dup(file.fileno())
    os.ftruncate(handle, size_bytes)
    return handle


# Who decodes --------------------------------------------------------------------------------------


class _Here:
    """Decodes in this process, when it is waited for."""

    def __init__(self, arena: np.ndarray, *, target: Target, column: str) -> None:
        self._arena, self._target, self._column = arena, target, column
        self._tasks: deque[Task] = deque()

    def has_room(self) -> bool:
        return not self._tasks

    def submit(self, task: Task) -> None:
        self._tasks.append(task)

    def answers(self, *, wait: bool) -> list[Answer]:
        if not wait:
            return []
        task = self._tasks.popleft()
        return [decode_task(task, self._arena, target=self._target, column=self._column)]


class _Workers:
    """Decodes in processes of their own, which end with this object or with this process."""

    def __init__(self, number: int, handle: int, line: str, *, least_rows: int) -> None:
        root = str(Path(sfumato.__file__).parents[1])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-P", "-m", "sfumato.data.streaming.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[handle],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
            )
            for _ in range(number)
        ]
        self._rows = [0] * number
        self._enough_rows = max(least_rows, _AHEAD_ROWS)
        self._sizes: dict[int, int] = {}
        self._partial = [b""] * number
        self._selector = selectors.DefaultSelector()
        for index, process in enumerate(self._processes):
            assert process.stdout is not None
            self._selector.register(process.stdout, selectors.EVENT_READ, index)
            self._tell(index, line)
        weakref.finalize(self, _end, self._processes, self._selector)

    def has_room(self) -> bool:
        return min(self._rows) < self._enough_rows

    def submit(self, task: Task) -> None:
        index = self._rows.index(min(self._rows))
        self._sizes[task.number] = len(task.rows)
        self._rows[index] += len(task.rows)
        self._tell(index, json.dumps(asdict(task)))

    def answers(self, *, wait: bool) -> list[Answer]:
        found = []
        for key, _ in self._selector.select(None if wait else 0):
            content = os.read(key.fd, 65536)
            if not content:
                self._died(key.data)
            *lines, self._partial[key.data] = (self._partial[key.data] + content).split(b"\n")
            for line in lines:
                told = json.loads(line)
                damaged = {int(index): reason for index, reason in told["damaged"].items()}
                found.append(Answer(number=told["number"], damaged=damaged))
                self._rows[key.data] -= self._sizes.pop(told["number"])
        return found

    def _tell(self, index: int, line: str) -> None:
        to = self._processes[index].stdin
        assert to is not None
        try:
            to.write(line.encode() + b"\n")
            to.flush()
        except BrokenPipeError:
            self._died(index)

    def _died(self, index: int) -> NoReturn:
        code = self._processes[index].wait()
        raise SfumatoError(
            f"A process that decodes images ended by itself (exit code {code}).",
            hint="What it said is above; -9 is often a lack of memory: lower data.workers. The "
            "same command goes on from the last checkpoint.",
        )


def _end(processes: Sequence["subprocess.Popen[bytes]"], selector: selectors.BaseSelector) -> None:
    selector.close()
    for process in processes:
        process.kill()
        process.communicate()
