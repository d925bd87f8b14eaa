"""Decodes the chunks of a stream: the data set of the stream's `DataLoader`."""

import multiprocessing
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sfumato.config.sections import DataConfig
from sfumato.data.decode import BadImage, decode
from sfumato.data.records import Annotations, target_of, too_much_damage
from sfumato.data.sources.parquet import read_group, unreadable
from sfumato.data.sources.parquet_pages import index_images
from sfumato.data.streaming.order import Chunk
from sfumato.data.table import RowGroup

CONTEXT = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
"""How worker processes start. A fork takes milliseconds; spawning imports torch first."""
_LARGE_GROUP_BYTES = 64 * 2**20
"""Arrow reads row groups above it in one worker at a time, because of the memory it needs."""


@dataclass(frozen=True, kw_only=True)
class StreamedRecords(Annotations):
    """The annotations of a split whose images stay in their files.

    Sample i is row `rows[g][i - start of g]` of `groups[g]`, counted from the group's first row.
    `config` is resolved.
    """

    groups: Sequence[RowGroup]
    rows: Sequence[np.ndarray]
    image_column: str
    config: DataConfig

    @property
    def sizes(self) -> list[int]:
        return [len(rows) for rows in self.rows]

    @property
    def count_with_damage(self) -> int:
        """Rows of the split, including those that `damage` lists."""
        return len(self) + len(self.damage)


@dataclass(frozen=True, kw_only=True)
class DecodedChunk:
    """`images`: (n, C, R, R) uint8 for `places` (n,); `samples`: (n,) the samples they show, which
    differ from the chunk's where those are damaged; `damaged`: the reasons, by sample."""

    places: np.ndarray
    samples: np.ndarray
    images: Tensor
    damaged: Mapping[int, str]


class ChunkDecoder(Dataset[DecodedChunk]):
    """Decodes a chunk at a time. Each worker process has its own copy.

    A damaged sample is replaced by the next one of the files that is not, which depends on the
    files alone.
    """

    def __init__(self, records: StreamedRecords) -> None:
        self._records = records
        self._target = target_of(records.config)
        self._starts = np.cumsum([0, *records.sizes])
        self._damaged: dict[int, str] = {}
        self._turn = CONTEXT.Lock()

    def __getitem__(self, chunk: Chunk) -> DecodedChunk:
        rising = np.argsort(chunk.samples)
        samples = chunk.samples[rising]
        side = self._target.resolution
        images = torch.empty((len(samples), self._target.channels, side, side), dtype=torch.uint8)
        known = set(self._damaged)
        for index in self._decode(samples, images.numpy()):
            samples[index] = self._next_good(int(samples[index]), images[index].numpy())
        return DecodedChunk(
            places=chunk.places[rising],
            samples=samples,
            images=images,
            damaged={s: reason for s, reason in self._damaged.items() if s not in known},
        )

    def _next_good(self, sample: int, image: np.ndarray) -> int:
        """The next sample that can be decoded, into `image`; gives up where the damage is too much
        for the run to go on."""
        records = self._records
        while not too_much_damage(
            len(records.damage) + len(self._damaged), records.count_with_damage, records.config
        ):
            sample = (sample + 1) % len(records)
            if sample not in self._damaged and not self._decode(np.array([sample]), image[None]):
                break
        return sample

    def _decode(self, samples: np.ndarray, images: np.ndarray) -> list[int]:
        """Decode rising `samples` of one row group into `images`; the indices of the damaged."""
        import pyarrow as pa

        number = int(np.searchsorted(self._starts, samples[0], "right")) - 1
        rows = self._records.rows[number][samples - self._starts[number]].tolist()
        damaged: dict[int, str] = {}
        done = 0
        try:
            for encoded in self._read(self._records.groups[number], rows):
                try:
                    images[done] = decode(encoded, self._target)[0]
                except BadImage as error:
                    damaged[done] = str(error)
                done += 1
        except (pa.ArrowException, OSError) as error:
            damaged |= dict.fromkeys(range(done, len(rows)), unreadable(error))
        self._damaged |= {int(samples[index]): reason for index, reason in damaged.items()}
        return list(damaged)

    def _read(self, group: RowGroup, rows: Sequence[int]) -> Iterator[bytes | None]:
        """The encoded images of `rows`, which rise. Raises Arrow's errors and `OSError`."""
        column = self._records.image_column
        index = index_images(group.file, group.index, column)
        return index.read(rows) if index else self._read_by_arrow(group, rows, column)

    def _read_by_arrow(
        self, group: RowGroup, rows: Sequence[int], column: str
    ) -> Iterator[bytes | None]:
        """Arrow holds up to three times a row group while it reads it, and frees it before the
        first image is returned. An error comes after the images before it."""
        import pyarrow as pa

        encoded: list[bytes | None] = []
        problem = None
        with self._turn if group.size_bytes > _LARGE_GROUP_BYTES else nullcontext():
            try:
                encoded.extend(read_group(group.file, group.index, rows, column))
            except (pa.ArrowException, OSError) as error:
                problem = error
            pa.default_memory_pool().release_unused()
        yield from encoded
        if problem is not None:
            raise problem
