"""Batches straight from Parquet, for data sets that are too large to hold or prepare.

`StreamOrder` decides which image comes when. A `DataLoader` decodes its chunks ahead of need, and
batches are copied out of what is decoded: they are the same with any number of workers.
"""

import atexit
import ctypes
import signal
import sys
import weakref
from collections.abc import Iterator, Mapping
from heapq import merge

import numpy as np
import torch
from torch.utils.data import DataLoader

from sfumato.base.device import to_device
from sfumato.base.environment import processors
from sfumato.base.errors import ConfigError, SfumatoError
from sfumato.base.stages import stage
from sfumato.config.sections import DataConfig
from sfumato.data.annotations import annotate, needs_caption
from sfumato.data.decode import row_problem
from sfumato.data.loading import Batch, chosen_captions
from sfumato.data.memo import recall
from sfumato.data.opening import open_images, source_name
from sfumato.data.records import Split, check_damage, rows_of, split_name
from sfumato.data.shares import check_shares
from sfumato.data.streaming.decoder import CONTEXT, ChunkDecoder, DecodedChunk, StreamedRecords
from sfumato.data.streaming.order import BUFFER_IMAGES, STREAMS, Chunk, StreamOrder
from sfumato.data.table import Damage, GroupedPart, RawImages

_MOST_WORKERS = 8
_AHEAD_IMAGES = 256
"""Images that a worker decodes ahead, so that it is busy while the training computes."""
_FIRST_BATCHES = 2
_PR_SET_PDEATHSIG = 1


def open_stream(config: DataConfig, split: Split) -> StreamedRecords:
    """A split of a resolved `config` by the labels and captions of its rows alone.

    Rows without the label or caption that they need are left out, as in `load_records`; images that
    cannot be decoded are found later. Raises as `load_records`, and `ConfigError` for a source that
    is not Parquet.
    """
    raw = open_images(config)
    name = split_name(raw, split, config)
    return recall("streams", (config, name, raw), lambda: _read_annotations(raw, config, name))


def _read_annotations(raw: RawImages, config: DataConfig, name: Split) -> StreamedRecords:
    part, keep = rows_of(raw, config, name)
    if not isinstance(part, GroupedPart):
        raise ConfigError(
            f"data.loading=stream reads Parquet; {config.source} is {raw.layout}.",
            hint="Use data.loading=memory.",
        )
    places = np.arange(part.count) if keep is None else np.flatnonzero(keep)
    good = np.zeros(len(places), dtype=bool)
    labels: list[int] = []
    own: list[str | None] = []
    columns: list[tuple[str | None, ...]] = []
    damage: list[Damage] = []
    classes, needed = len(raw.class_names), needs_caption(config)
    for place, row in enumerate(part.read_notes(keep)):
        if problem := row.problem or row_problem(row, classes, needed):
            damage.append(Damage(row.file, row.number, problem))
            continue
        good[place] = True
        labels.append((row.label or 0) if classes else 0)
        own.append(row.caption)
        columns.append(row.columns)
    check_damage(damage, len(places), config)
    places = places[good]
    starts = np.cumsum([0, *(group.count for group in part.groups[:-1])])
    rows = np.split(places, np.searchsorted(places, starts[1:]))
    description = f"{source_name(config)} ({raw.layout}, streamed), {name} split"
    description += f" ({len(places):,} of {raw.count:,})"
    return StreamedRecords(
        **annotate(raw, config, labels=np.array(labels), own=own, columns=columns),
        description=description,
        damage=damage,
        groups=part.groups,
        rows=[mine - start for mine, start in zip(rows, starts, strict=True)],
        image_column=part.image_column,
        config=config,
    )


class StreamBatches:
    """Batches of a streamed split, decoded ahead into a window of at most `WINDOW_IMAGES` images
    over all ranks.

    A damaged image is replaced (`ChunkDecoder`); where more than `data.max_damaged` are found, `at`
    raises `DamagedDataError`.
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
        self._workers = workers
        self._rank, self._world_size = rank, world_size
        self._damaged: dict[int, Damage] = {}
        self._start = -1
        # The loader's iterator, alone in a list. What empties the list ends the workers: a new
        # start, the end of this object and that of Python. Left to the garbage collector, an
        # iterator may lose its queues before it can use them to end its workers.
        self._decoded: list[Iterator[DecodedChunk]] = []
        weakref.finalize(self, self._decoded.clear)

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
        self._start = start
        self._staged: Batch | None = None
        self._ready: dict[int, tuple[int, np.ndarray]] = {}
        chunks = self.order.chunks(start, rank=self._rank, world_size=self._world_size)
        first = start + _FIRST_BATCHES * self.batch_size
        self._decoded.clear()
        self._decoded.append(iter(self._loader(_early_first(chunks, first))))
        atexit.register(self._decoded.clear)  # before multiprocessing waits for the workers

    def _loader(self, chunks: Iterator[Chunk]) -> DataLoader[DecodedChunk]:
        ahead = None
        if self._workers:
            groups = max(1, int(np.count_nonzero(self.order.sizes)))
            usual = min(BUFFER_IMAGES, -(-self.order.count // max(groups, STREAMS)))
            ahead_images = max(_AHEAD_IMAGES, 2 * self.batch_size // self._workers)
            ahead = max(2, -(-ahead_images // usual))
        return DataLoader(
            ChunkDecoder(self._records),
            batch_size=None,
            sampler=chunks,
            num_workers=self._workers,
            prefetch_factor=ahead,
            collate_fn=_as_it_is,
            worker_init_fn=_start_worker,
            multiprocessing_context=CONTEXT if self._workers else None,
            generator=torch.Generator(),  # the global one stays as it is
        )

    def _gather(self) -> Batch:
        """The next batch, after its chunks are decoded."""
        places = self._places()
        for place in places:
            while place not in self._ready:
                self._receive()
        numbers, images = zip(*(self._ready.pop(place) for place in places), strict=True)
        pixels = torch.empty(
            (len(images), *images[0].shape),
            dtype=torch.uint8,
            pin_memory=self._device.type == "cuda",
        )
        np.stack(images, out=pixels.numpy())
        samples = torch.tensor(numbers)
        records = self._records
        chosen = chosen_captions(
            records.prompts.shape[1],
            None if records.caption_counts is None else records.caption_counts[samples],
            seed=self.seed,
            images_seen=self._start,
            batch_size=self.batch_size,
            share=slice(self._rank, None, self._world_size),
        )
        prompts = records.prompts[samples, chosen]
        with stage("transfer"):
            images = pixels.to(self._device, non_blocking=True)
        return Batch(
            images=images,
            labels=to_device(records.labels[samples], self._device),
            prompts=to_device(prompts, self._device),
        )

    def _receive(self) -> None:
        """Wait for the next chunk. Its images are copied, one by one, so that each is freed with
        its batch."""
        try:
            chunk = next(self._decoded[0])
        except (RuntimeError, ConnectionError) as error:  # the second while it hands images over
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            raise SfumatoError(
                f"A worker process that decodes images died ({error}).",
                hint="Its own output is above. A killed worker often means too little memory: "
                "lower data.workers. The same command resumes from the last checkpoint.",
            ) from error
        self._note_damage(chunk.damaged)
        for place, sample, image in zip(
            chunk.places.tolist(), chunk.samples.tolist(), chunk.images.numpy(), strict=True
        ):
            self._ready[place] = sample, image.copy()

    def _note_damage(self, damaged: Mapping[int, str]) -> None:
        records = self._records
        for sample in damaged.keys() - self._damaged.keys():
            number = int(np.searchsorted(self.order.starts, sample, "right")) - 1
            group, rows = records.groups[number], records.rows[number]
            row = group.start + int(rows[sample - self.order.starts[number]])
            self._damaged[sample] = Damage(group.name, row, damaged[sample])
        if damaged:
            damage = sorted([*records.damage, *self._damaged.values()])
            check_damage(damage, records.count_with_damage, records.config)


def _early_first(chunks: Iterator[Chunk], early: int) -> Iterator[Chunk]:
    """The same, with the places before `early` in chunks of their own, so that a resumed run waits
    for a few images of each chunk and not for a whole window."""
    later: list[Chunk] = []
    for chunk in chunks:
        first = int(np.searchsorted(chunk.places, early))
        if first:
            yield chunk.part(slice(first))
        if first < len(chunk.places):
            later.append(chunk.part(slice(first, None)))
        if not first:
            break
    later.sort(key=lambda chunk: chunk.first_place)
    yield from merge(later, chunks, key=lambda chunk: chunk.first_place)


def worker_count(config: DataConfig) -> int:
    """Worker processes that `config` asks for on this machine."""
    return min(processors(), _MOST_WORKERS) if config.workers == "auto" else config.workers


def _as_it_is(chunk: DecodedChunk) -> DecodedChunk:
    return chunk


def _start_worker(worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM and SIGUSR1 reach workers too, but the training decides when
    it ends. A second SIGTERM ends a worker: multiprocessing sends it where nothing else has. On
    Linux, the kernel ends a worker with the training, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
