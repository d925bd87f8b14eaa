"""Ways to load batches that Table 2 compares: the paper's, `datasets`, ours, and decoding alone."""

import io
import multiprocessing
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.pool import Pool
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset

from sfumato.config.sections import DataConfig
from sfumato.data.decode import Target, decode
from sfumato.data.loading import DeviceBatches
from sfumato.data.records import load_records, target_of
from sfumato.data.streaming.stream import StreamBatches, open_stream

_BARE_IMAGES = 512
_SEED = 0
_CACHED_FILES = 5
_SHUFFLE_BUFFER = 1000
_CPU = torch.device("cpu")


class Loaded(NamedTuple):
    """A batch: `images` (B, C, R, R) uint8, `labels` (B,), and which samples they are, in the order
    of the files; -1 where the loader cannot say."""

    images: torch.Tensor
    labels: torch.Tensor
    samples: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What every loader is given. `label_column`: where the labels are, empty for none; `prepared`:
    the folder that `sfumato prepare` left."""

    config: DataConfig
    batch_size: int
    workers: int
    label_column: str
    prepared: str

    @property
    def target(self) -> Target:
        return target_of(self.config)


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to load: `start` gives an iterator over batches without end, or over one epoch.

    `few`: so slow that only a few batches are timed. `bar`: what ours must be faster by.
    """

    label: str
    start: Callable[[Setup], Iterator[Loaded]]
    few: bool = False
    bar: float | None = None


@dataclass(frozen=True, kw_only=True)
class _Files:
    """The rows of the training split by file: (file, row in it, sample number, label)."""

    files: list[str]
    rows: list[list[tuple[int, int, int]]]
    column: str

    @classmethod
    def of(cls, config: DataConfig) -> "_Files":
        records = open_stream(config, "train")
        labels = records.labels.tolist()
        rows: dict[str, list[tuple[int, int, int]]] = {}
        number = 0
        for group, kept in zip(records.groups, records.rows, strict=True):
            mine = rows.setdefault(str(group.file), [])
            for row in kept.tolist():
                mine.append((group.start + row, number, labels[number]))
                number += 1
        return cls(files=list(rows), rows=list(rows.values()), column=records.image_column)

    def read(self, file: int) -> Any:
        """The column of a whole file."""
        import pyarrow.parquet as pq

        return pq.read_table(self.files[file], columns=[self.column]).column(0)


def decode_whole(image: bytes, target: Target) -> np.ndarray:
    """Every pixel decoded, then squashed, as the paper does."""
    side = target.resolution
    picture = Image.open(io.BytesIO(image)).convert("RGB" if target.channels == 3 else "L")
    array = np.array(picture.resize((side, side), Image.Resampling.BILINEAR))
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _ours(image: bytes, target: Target) -> np.ndarray:
    return decode(image, target)[0]


Decoder = Callable[[bytes, Target], np.ndarray]


def _bytes_of(cell: Any) -> bytes:
    value = cell.as_py()
    return value["bytes"] if isinstance(value, dict) else value


class _RandomAccess(Dataset[tuple[np.ndarray, int, int]]):
    """A sample at a time, from its file: read for each, or the last few files kept."""

    def __init__(self, setup: Setup, *, cached_files: int) -> None:
        self._files, self._target = _Files.of(setup.config), setup.target
        self._index = [(file, *row) for file, rows in enumerate(self._files.rows) for row in rows]
        self._most = cached_files
        self._cache: OrderedDict[int, Any] = OrderedDict()

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int, int]:
        file, row, number, label = self._index[index]
        column = self._cache.pop(file, None) or self._files.read(file)
        self._cache[file] = column
        while len(self._cache) > self._most:
            self._cache.popitem(last=False)
        return decode_whole(_bytes_of(column[row]), self._target), label, number


class _FileByFile(IterableDataset[tuple[np.ndarray, int, int]]):
    """Section 3.4.3: files in shuffled order, each loaded whole and shuffled inside."""

    def __init__(self, setup: Setup, *, decoder: Decoder) -> None:
        self._files, self._target, self._decode = _Files.of(setup.config), setup.target, decoder

    def __iter__(self) -> Iterator[tuple[np.ndarray, int, int]]:
        rng = np.random.default_rng(_SEED)
        worker = torch.utils.data.get_worker_info()
        order = rng.permutation(len(self._files.files)).tolist()
        for file in order if worker is None else order[worker.id :: worker.num_workers]:
            column = self._files.read(file)
            rows = self._files.rows[file]
            for place in rng.permutation(len(rows)).tolist():
                row, number, label = rows[place]
                yield self._decode(_bytes_of(column[row]), self._target), label, number


def _loader(setup: Setup, data: Any, *, shuffle: bool) -> Iterator[Loaded]:
    generator = torch.Generator().manual_seed(_SEED)
    loader = DataLoader(
        data,
        setup.batch_size,
        shuffle=shuffle,
        num_workers=setup.workers,
        generator=generator,
    )
    for images, labels, samples in loader:
        yield Loaded(images, labels, samples)


def _random_access(setup: Setup, *, cached_files: int) -> Iterator[Loaded]:
    return _loader(setup, _RandomAccess(setup, cached_files=cached_files), shuffle=True)


def _file_by_file(setup: Setup, *, decoder: Decoder) -> Iterator[Loaded]:
    return _loader(setup, _FileByFile(setup, decoder=decoder), shuffle=False)


def _hugging_face(setup: Setup) -> Iterator[Loaded]:
    """`datasets`, streaming with a shuffle buffer, its own decoding."""
    import datasets  # a development dependency: the row says so where it is missing

    files = _Files.of(setup.config)
    stream: Any = datasets.load_dataset(
        "parquet", data_files=files.files, split="train", streaming=True
    )
    stream = stream.cast_column(files.column, datasets.Image(decode=False))
    stream = stream.shuffle(seed=_SEED, buffer_size=_SHUFFLE_BUFFER)

    def collated(rows: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        images = [decode_whole(row[files.column]["bytes"], setup.target) for row in rows]
        labels = torch.tensor([row.get(setup.label_column) or 0 for row in rows])
        return torch.from_numpy(np.stack(images)), labels, torch.full_like(labels, -1)

    loader = DataLoader(stream, setup.batch_size, num_workers=setup.workers, collate_fn=collated)
    for images, labels, samples in loader:
        yield Loaded(images, labels, samples)


def _streamed(setup: Setup) -> Iterator[Loaded]:
    records = open_stream(setup.config, "train")
    settings = {"seed": _SEED, "batch_size": setup.batch_size, "device": _CPU}
    return _batches(StreamBatches(records, workers=setup.workers, **settings))


def _held(setup: Setup, *, source: str) -> Iterator[Loaded]:
    config = setup.config
    if source:
        config = config.model_copy(update={"source": source, "label_column": "auto", "fit": "crop"})
    records = load_records(config, "train")
    batches = DeviceBatches(records, seed=_SEED, batch_size=setup.batch_size, device=_CPU)
    return _batches(batches)


def _batches(batches: StreamBatches | DeviceBatches) -> Iterator[Loaded]:
    seen = 0
    while True:
        batch = batches.at(seen)
        samples = batches.order.indices(seen, batches.batch_size)
        yield Loaded(batch.images, batch.labels, samples)
        seen += batches.batch_size


_encoded: Sequence[bytes] = ()
"""What the processes of `decoding_pool` decode; they are forked, so that it is not sent."""


def decoding_pool(images: Sequence[bytes], processes: int) -> Pool:
    """Processes for `decode_part` on `images`."""
    global _encoded
    _encoded = images
    return multiprocessing.get_context("fork").Pool(processes)


def decode_part(part: range, *, decoder: Decoder, target: Target) -> None:
    for number in part:
        decoder(_encoded[number], target)


def _bare(setup: Setup, *, decoder: Decoder) -> Iterator[Loaded]:
    """Decoding and resizing alone, of images that are in memory."""
    files = _Files.of(setup.config)
    column = files.read(0)
    images = [_bytes_of(column[row]) for row, _, _ in files.rows[0][:_BARE_IMAGES]]
    size = setup.batch_size
    parts = [range(start, start + size) for start in range(0, len(images) - size + 1, size)]
    none = torch.empty(0, dtype=torch.int64)
    with decoding_pool(images, max(1, setup.workers)) as pool:
        work = partial(decode_part, decoder=decoder, target=setup.target)
        while True:
            for _ in pool.imap_unordered(work, parts):
                yield Loaded(none, none, none)


WAYS: dict[str, Way] = {
    "random": Way(
        label="random access (the paper)",
        start=partial(_random_access, cached_files=0),
        few=True,
        bar=50,
    ),
    "cache": Way(
        label="5 files cached (the paper)",
        start=partial(_random_access, cached_files=_CACHED_FILES),
        few=True,
    ),
    "files": Way(
        label="file by file (the paper)",
        start=partial(_file_by_file, decoder=decode_whole),
        bar=3.5,
    ),
    "files-reduced": Way(
        label="file by file, our decoder", start=partial(_file_by_file, decoder=_ours)
    ),
    "datasets": Way(label="datasets, streaming", start=_hugging_face, bar=4),
    "stream": Way(label="sfumato, stream", start=_streamed),
    "prepared": Way(
        label="sfumato, prepared", start=lambda setup: _held(setup, source=setup.prepared)
    ),
    "memory": Way(label="sfumato, in memory", start=lambda setup: _held(setup, source="")),
    "bare": Way(label="decoding alone, reduced", start=partial(_bare, decoder=_ours), bar=0.9),
    "bare-full": Way(label="decoding alone, full", start=partial(_bare, decoder=decode_whole)),
}
"""Ways to load, by name: one entry each."""
