"""The order of a streamed data set: which image is the k-th. Indices only, no file is read.

An epoch shuffles the row groups, lays them end to end and cuts that line into `STREAMS` equal
stretches, the canonical streams. Image k of the endless global order comes from stream k mod
`STREAMS`, so a rank that owns the streams v with v mod R = r has the images k with k mod R = r, for
every R that divides `STREAMS`. Inside a stream the images pass through a shuffle buffer.

Neighbouring stretches belong to streams with the same v mod R, so the line is cut between ranks in
R - 1 places only: a row group is read by one rank, except for those R - 1, which two ranks read for
different images of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import count, pairwise

import numpy as np
import torch
from torch import Tensor

from sfumato.base.randomness import derived_seed
from sfumato.data.loading import Position

STREAMS = 32
"""Canonical streams: a power of two, and the most ranks that can share the order."""
BUFFER_IMAGES = 128
"""Most images in the shuffle buffer of one stream."""
WINDOW_IMAGES = STREAMS * BUFFER_IMAGES
"""Most images in all buffers together: 4,096, or 200 MB decoded at 128 x 128."""


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Neighbouring samples of one row group that one stream decodes together.

    `samples`: (n,) sample numbers and `places`: (n,) their places in the global order, rising.
    """

    group: int
    samples: np.ndarray
    places: np.ndarray

    @property
    def first_place(self) -> int:
        return int(self.places[0])

    def part(self, which: slice) -> "Chunk":
        return replace(self, samples=self.samples[which], places=self.places[which])


@dataclass(frozen=True, kw_only=True)
class _Epoch:
    """One epoch's order: `samples` (N,) by place, and the chunks that they are decoded in."""

    samples: np.ndarray
    chunks: list[Chunk]


class StreamOrder:
    """The endless global order of `sum(sizes)` samples in row groups of `sizes` samples.

    Samples are numbered group after group. The order is a function of (sizes, seed, epoch): it
    knows nothing of ranks, workers or batches.
    """

    def __init__(self, sizes: Sequence[int], *, seed: int) -> None:
        self.sizes = np.asarray(sizes, dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)])
        self.count = int(self.starts[-1])
        self.seed = seed
        self._plan = lru_cache(maxsize=2)(self._plan_epoch)

    def position(self, images_seen: int) -> Position:
        """Where the next sample comes from."""
        epoch, samples = divmod(images_seen, self.count)
        return Position(epoch=epoch, seed=self.seed, samples=samples)

    def indices(self, start: int, length: int) -> Tensor:
        """Sample numbers (length,) int64 at places start, start + 1, ... of the global order."""
        first, last = start // self.count, (start + length - 1) // self.count
        samples = np.concatenate([self._plan(epoch).samples for epoch in range(first, last + 1)])
        offset = start - first * self.count
        return torch.from_numpy(samples[offset : offset + length])

    def chunks(self, start: int, *, rank: int = 0, world_size: int = 1) -> Iterator[Chunk]:
        """What a rank decodes from place `start` on, for ever: in the order of first need.

        Samples before `start` are left out.
        """
        for epoch in count(start // self.count):
            left = []
            for chunk in self._plan(epoch).chunks:
                passed = int(np.searchsorted(chunk.places, start))
                if chunk.first_place % world_size == rank and passed < len(chunk.places):
                    left.append(chunk.part(slice(passed, None)))
            yield from sorted(left, key=lambda chunk: chunk.first_place)

    def _plan_epoch(self, epoch: int) -> "_Epoch":
        draw = np.random.default_rng(derived_seed(self.seed, "stream", epoch))
        line = draw.permutation(len(self.sizes))
        begin = epoch * self.count
        owned = [
            np.arange(begin + (stream - begin) % STREAMS, begin + self.count, STREAMS)
            for stream in _neighbours()
        ]
        edges = np.cumsum([0, *map(len, owned)]).tolist()
        samples = np.empty(self.count, dtype=np.int64)
        chunks: list[Chunk] = []
        for places, (first, last) in zip(owned, pairwise(edges), strict=True):
            parts = self._cut(line, first, last)
            draw.shuffle(parts)
            leaving = _through_buffer([stop - start for _, start, stop in parts], draw)
            for (group, start, stop), steps in zip(parts, leaving, strict=True):
                when, part = places[steps], np.arange(start, stop)
                samples[when - begin] = part
                rising = np.argsort(when)
                chunks.append(Chunk(group=group, samples=part[rising], places=when[rising]))
        return _Epoch(samples=samples, chunks=chunks)

    def _cut(self, line: np.ndarray, first: int, last: int) -> list[tuple[int, int, int]]:
        """(group, start, stop) in sample numbers: the stretch first..last of the line of groups, in
        equal parts that fit into a stream's buffer."""
        ends = np.cumsum(self.sizes[line])
        parts = []
        for at in range(int(np.searchsorted(ends, first, "right")), len(line)):
            group, end = int(line[at]), int(ends[at])
            begin = end - int(self.sizes[group])
            if begin >= last:
                break
            start, stop = max(first, begin), min(last, end)
            edges = np.linspace(start, stop, -(-(stop - start) // BUFFER_IMAGES) + 1).astype(int)
            edges += int(self.starts[group]) - begin
            parts += [(group, low, high) for low, high in pairwise(edges.tolist())]
        return parts


def _through_buffer(lengths: Sequence[int], draw: np.random.Generator) -> list[np.ndarray]:
    """The step (n,) at which each row of each part leaves a stream's shuffle buffer.

    Parts enter one after another, each whole, as soon as there is room for it; at each step one row
    leaves, drawn at random.
    """
    leaving = [np.empty(length, dtype=np.int64) for length in lengths]
    waiting: list[tuple[int, int]] = []
    entered = 0
    for step, chance in enumerate(draw.random(sum(lengths)).tolist()):
        while entered < len(lengths) and len(waiting) + lengths[entered] <= BUFFER_IMAGES:
            waiting += [(entered, row) for row in range(lengths[entered])]
            entered += 1
        chosen = int(chance * len(waiting))
        waiting[chosen], waiting[-1] = waiting[-1], waiting[chosen]
        part, row = waiting.pop()
        leaving[part][row] = step
    return leaving


def _neighbours() -> list[int]:
    """The streams in the order of their stretches: bits reversed, so that streams with the same
    v mod R are neighbours for every R."""
    bits = STREAMS.bit_length() - 1
    return sorted(range(STREAMS), key=lambda v: int(f"{v:0{bits}b}"[::-1], 2))
