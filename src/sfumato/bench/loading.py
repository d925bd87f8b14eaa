"""The paper's Table 2 on any Parquet folder: ways to load batches, side by side.

Each timing runs in a fresh process (this module as a program), which times one loader from its
first batch to its last, while the parent sums up the memory of it and its workers.
"""

import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset

import sfumato
from sfumato import __version__
from sfumato.base.environment import environment, now
from sfumato.base.errors import InputError, SfumatoError
from sfumato.base.files import write_json
from sfumato.config.sections import DataConfig
from sfumato.data.decode import Target, decode
from sfumato.data.loading import DeviceBatches
from sfumato.data.prepare import prepare
from sfumato.data.records import load_records, open_images, target_of
from sfumato.data.streaming.stream import StreamBatches, open_stream
from sfumato.data.table import GroupedPart

LEAST_PAIRS = 3
"""Rounds below which a median says little."""
_BARE_IMAGES = 512
_SAMPLED_EVERY_SECONDS = 0.05
_SAMPLING_SHARE = 0.05
"""Most of a processor core that looking at memory may take from what is timed: looking at one that
holds gigabytes takes tens of milliseconds."""
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


# The paper's loaders ------------------------------------------------------------------------------


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


def _whole(image: bytes, target: Target) -> np.ndarray:
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
        return _whole(_bytes_of(column[row]), self._target), label, number


class _FileByFile(IterableDataset[tuple[np.ndarray, int, int]]):
    """Section 3.4.3: files in shuffled order, each loaded whole and shuffled inside."""

    def __init__(self, setup: Setup, *, decoder: Decoder) -> None:
        self._files, self._target, self._decode = _Files.of(setup.config), setup.target, decoder

    def __iter__(self) -> Iterator[tuple[np.ndarray, int, int]]:
        draw = np.random.default_rng(_SEED)
        worker = torch.utils.data.get_worker_info()
        order = draw.permutation(len(self._files.files)).tolist()
        for file in order if worker is None else order[worker.id :: worker.num_workers]:
            column = self._files.read(file)
            rows = self._files.rows[file]
            for place in draw.permutation(len(rows)).tolist():
                row, number, label = rows[place]
                yield self._decode(_bytes_of(column[row]), self._target), label, number


def _loader(setup: Setup, data: Any, *, shuffle: bool) -> Iterator[Loaded]:
    generator = torch.Generator().manual_seed(_SEED)
    batches: Iterable[list[torch.Tensor]] = DataLoader(
        data,
        setup.batch_size,
        shuffle=shuffle,
        num_workers=setup.workers,
        generator=generator,
    )
    for images, labels, samples in batches:
        yield Loaded(images, labels, samples)


def _random_access(setup: Setup, *, cached_files: int) -> Iterator[Loaded]:
    return _loader(setup, _RandomAccess(setup, cached_files=cached_files), shuffle=True)


def _file_by_file(setup: Setup, *, decoder: Decoder) -> Iterator[Loaded]:
    return _loader(setup, _FileByFile(setup, decoder=decoder), shuffle=False)


# Others -------------------------------------------------------------------------------------------


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
        images = [_whole(row[files.column]["bytes"], setup.target) for row in rows]
        labels = torch.tensor([row.get(setup.label_column) or 0 for row in rows])
        return torch.from_numpy(np.stack(images)), labels, torch.full_like(labels, -1)

    loader = DataLoader(stream, setup.batch_size, num_workers=setup.workers, collate_fn=collated)
    for images, labels, samples in loader:
        yield Loaded(images, labels, samples)


def _streamed(setup: Setup) -> Iterator[Loaded]:
    records = open_stream(setup.config, "train")
    batches = StreamBatches(
        records,
        seed=_SEED,
        batch_size=setup.batch_size,
        device=_CPU,
        workers=setup.workers,
    )
    return _drawn(batches)


def _held(setup: Setup, *, source: str) -> Iterator[Loaded]:
    config = setup.config
    if source:
        config = config.model_copy(update={"source": source, "label_column": "auto", "fit": "crop"})
    records = load_records(config, "train")
    batches = DeviceBatches(records, seed=_SEED, batch_size=setup.batch_size, device=_CPU)
    return _drawn(batches)


def _drawn(batches: StreamBatches | DeviceBatches) -> Iterator[Loaded]:
    seen = 0
    while True:
        batch = batches.at(seen)
        samples = batches.order.indices(seen, batches.batch_size)
        yield Loaded(batch.images, batch.labels, samples)
        seen += batches.batch_size


_encoded: Sequence[bytes] = ()
"""What the processes of `_bare` decode; they are forked, so that it is not sent."""


def _bare(setup: Setup, *, decoder: Decoder) -> Iterator[Loaded]:
    """Decoding and resizing alone, of images that are in memory."""
    global _encoded
    files = _Files.of(setup.config)
    column = files.read(0)
    _encoded = [_bytes_of(column[row]) for row, _, _ in files.rows[0][:_BARE_IMAGES]]
    size = setup.batch_size
    parts = [range(start, start + size) for start in range(0, len(_encoded) - size + 1, size)]
    none = torch.empty(0, dtype=torch.int64)
    with multiprocessing.get_context("fork").Pool(max(1, setup.workers)) as pool:
        work = partial(_decode_part, decoder=decoder, target=setup.target)
        while True:
            for _ in pool.imap_unordered(work, parts):
                yield Loaded(none, none, none)


def _decode_part(part: range, *, decoder: Decoder, target: Target) -> None:
    for number in part:
        decoder(_encoded[number], target)


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
        label="file by file (the paper)", start=partial(_file_by_file, decoder=_whole), bar=3.5
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
    "bare-full": Way(label="decoding alone, full", start=partial(_bare, decoder=_whole)),
}
"""Ways to load, by name: one entry each."""

OURS = "stream"


# One timing, in a process of its own --------------------------------------------------------------


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


def main() -> None:
    """Time one way; what is told and said is JSON lines."""
    torch.set_num_threads(1)
    told = json.loads(sys.stdin.readline())
    config = DataConfig(**told["setup"].pop("config"))
    print("imported", flush=True)
    sys.stdin.readline()
    batches = WAYS[told["way"]].start(Setup(config=config, **told["setup"]))
    print("ready", flush=True)
    sys.stdin.readline()
    seconds: list[float] = []
    labels: list[int] = []
    samples: list[int] = []
    last = time.perf_counter()
    for batch in islice(batches, told["batches"]):
        now = time.perf_counter()
        seconds.append(now - last)
        last = now
        labels += batch.labels.tolist()
        samples += batch.samples.tolist()
    print(json.dumps({"batch_seconds": seconds, "labels": labels, "samples": samples}), flush=True)
    os._exit(0)  # workers with batches ahead are not waited for


def time_once(name: str, setup: Setup, *, batches: int) -> Timing:
    """Time `batches` batches of a way in a fresh process; `SfumatoError` where it fails."""
    root = str(Path(sfumato.__file__).parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    told = {
        "way": name,
        "batches": batches,
        "setup": {**vars(setup), "config": setup.config.model_dump(mode="json")},
    }
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "sfumato.bench.loading"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def exchange(line: str) -> str:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(line + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        if not answer:
            _, errors = process.communicate()
            raise SfumatoError(f"{name}: {(errors.strip().splitlines() or ['ended'])[-1]}")
        return answer

    try:
        exchange(json.dumps(told))
        before = _memory_bytes(process.pid)
        with _Peak(process.pid) as peak:
            exchange("start")
            found = json.loads(exchange("go"))
    finally:
        _kill_group(process)
    return Timing(**found, peak_bytes=peak.bytes - before)


def _kill_group(process: "subprocess.Popen[str]") -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


class _Peak:
    """The largest memory of a process and all below it, sampled while the block runs."""

    def __init__(self, process: int) -> None:
        self._process = process
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.bytes = 0

    def __enter__(self) -> "_Peak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        pause = _SAMPLED_EVERY_SECONDS
        while not self._over.wait(pause):
            before = time.thread_time()
            self.bytes = max(self.bytes, sum(map(_memory_bytes, _family(self._process))))
            taken = time.thread_time() - before
            pause = max(_SAMPLED_EVERY_SECONDS, taken / _SAMPLING_SHARE)


def _family(process: int) -> list[int]:
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return []
    return [process, *(each for child in children for each in _family(int(child)))]


def _memory_bytes(process: int) -> int:
    """Proportional set size: pages that several processes share count once in all; 0 where the
    system does not tell."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


# All of them --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Row:
    """A way's timings. `entropy`: of the labels of a batch, as a share of that of random batches;
    `displacement`: how far samples move from the files' order, as a share of the data set (1/3 in
    a random order); None where it is not known. `problem`: why it could not run."""

    name: str
    label: str
    timings: list[Timing]
    entropy: float | None
    displacement: float | None
    problem: str = ""

    @property
    def seconds_a_batch(self) -> float:
        return median(timing.seconds_a_batch for timing in self.timings)

    @property
    def peak_bytes(self) -> int:
        return max(timing.peak_bytes for timing in self.timings)


@dataclass(frozen=True, kw_only=True)
class Loading:
    """Table 2: `rows` in the order of `WAYS`, and the `images` of the training split."""

    rows: list[Row]
    images: int
    batch_size: int
    workers: int

    def row(self, name: str) -> Row | None:
        return next((row for row in self.rows if row.name == name and row.timings), None)

    def ratio(self, name: str, over: str = OURS) -> float | None:
        """Median seconds of a batch of way `name` over those of `over`."""
        slow, fast = self.row(name), self.row(over)
        return slow.seconds_a_batch / fast.seconds_a_batch if slow and fast else None

    def gains(self) -> dict[str, float]:
        """The gain over the paper's loader, as the product of its parts."""
        parts = {
            "decoding at reduced scale": self.ratio("files", "files-reduced"),
            "processes and order": self.ratio("files-reduced"),
        }
        return {name: ratio for name, ratio in parts.items() if ratio is not None}


def compare_loading(
    config: DataConfig,
    *,
    pairs: int,
    batch_size: int,
    workers: int,
    most_batches: int | None,
    ways: Sequence[str],
    say: Callable[[str], None],
) -> Loading:
    """Time `ways` in turn, `pairs` rounds, after one round of one batch that fills the system's
    cache. An epoch each, or `most_batches`; slow ways two batches. `config` is resolved."""
    if pairs < LEAST_PAIRS:
        raise InputError(f"{pairs} rounds are too few.", hint=f"Give {LEAST_PAIRS} or more.")
    if batch_size < 1 or workers < 0 or (most_batches is not None and most_batches < 1):
        raise InputError(
            f"Batches of {batch_size}, {workers} workers, --batches {most_batches}: out of range.",
            hint="Batches hold 1 image or more, workers are 0 or more, --batches is 1 or more.",
        )
    if unknown := set(ways) - set(WAYS):
        raise InputError(
            f"No way of loading is named '{min(unknown)}'.", hint=f"Known: {', '.join(WAYS)}."
        )
    records = open_stream(config, "train")
    part = next(iter(open_images(config).parts.values()))
    assert isinstance(part, GroupedPart)
    epoch = len(records) // batch_size
    with TemporaryDirectory(prefix="sfumato-bench-") as folder:
        if "prepared" in ways:
            say("Preparing ...")
            prepare(config, Path(folder) / "prepared")
        setup = Setup(
            config=config,
            batch_size=batch_size,
            workers=workers,
            label_column=part.label_column,
            prepared=str(Path(folder) / "prepared"),
        )
        timings: dict[str, list[Timing]] = {name: [] for name in ways}
        problems: dict[str, str] = {}
        for round_number in range(-1, pairs):
            order = list(ways) if round_number % 2 else list(reversed(ways))
            for name in order:
                if name in problems:
                    continue
                few = max(2, workers) if WAYS[name].few else min(epoch, most_batches or epoch)
                try:
                    timing = time_once(name, setup, batches=few if round_number >= 0 else 1)
                except SfumatoError as error:
                    problems[name] = error.what
                    continue
                if round_number >= 0:
                    timings[name].append(timing)
                    rate = batch_size / timing.seconds_a_batch
                    say(f"Round {round_number + 1}: {WAYS[name].label} {rate:,.1f} images/s")
    labels = records.labels.numpy()
    rows = [
        Row(
            name=name,
            label=WAYS[name].label,
            timings=timings[name],
            entropy=_entropy_share(timings[name], labels, batch_size),
            displacement=_displacement(timings[name], len(labels)),
            problem=problems.get(name, ""),
        )
        for name in ways
    ]
    return Loading(rows=rows, images=len(labels), batch_size=batch_size, workers=workers)


_LEAST_BATCHES = 20
"""Batches below which nothing is said of how well they are mixed."""


def _entropy_share(timings: Sequence[Timing], labels: np.ndarray, batch: int) -> float | None:
    if not timings or len(timings[0].labels) < _LEAST_BATCHES * batch or len(set(labels)) < 2:
        return None
    draw = np.random.default_rng(_SEED)
    ideal = np.mean([batch_entropy(draw.permutation(labels), batch) for _ in range(4)])
    return batch_entropy(np.array(timings[0].labels), batch) / float(ideal)


def batch_entropy(labels: np.ndarray, batch: int) -> float:
    """Mean entropy in nats of the labels of each `batch` in a row."""
    entropies = []
    for part in labels[: len(labels) // batch * batch].reshape(-1, batch):
        share = np.unique(part, return_counts=True)[1] / batch
        entropies.append(-(share * np.log(share)).sum())
    return float(np.mean(entropies))


def _displacement(timings: Sequence[Timing], count: int) -> float | None:
    if not timings or len(timings[0].samples) < _LEAST_BATCHES:
        return None
    samples = np.array(timings[0].samples[:count])
    if samples.min() < 0:
        return None
    return float(np.abs(samples - np.arange(len(samples))).mean() / count)


def save_loading(loading: Loading, path: Path, **conditions: Any) -> None:
    """Every timing as JSON, with the machine and the `conditions` they were taken under."""
    rows = [
        {
            **asdict(row),
            "timings": [
                {"batch_seconds": timing.batch_seconds, "peak_bytes": timing.peak_bytes}
                for timing in row.timings
            ],
        }
        for row in loading.rows
    ]
    record: Mapping[str, Any] = {
        "date": now(),
        "sfumato": __version__,
        "environment": environment(),
        **conditions,
        "images": loading.images,
        "batch_size": loading.batch_size,
        "workers": loading.workers,
        "gains": loading.gains(),
        "rows": rows,
    }
    write_json(path, dict(record))


def in_figures(value: float) -> str:
    """Three figures, or all of those before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def chart(loading: Loading) -> bytes:
    """A PNG of bars: images a second of every way, on a scale of powers of ten."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    rows = [row for row in loading.rows if row.timings][::-1]
    rates = [loading.batch_size / row.seconds_a_batch for row in rows]
    figure, axes = plt.subplots(figsize=(8, 0.45 * len(rows) + 1.2), layout="constrained")
    colours = ["#2a6f97" if row.label.startswith("sfumato") else "#b8b8b8" for row in rows]
    bars = axes.barh([row.label for row in rows], rates, color=colours)
    axes.bar_label(bars, [in_figures(rate) for rate in rates], padding=3)
    axes.set(xscale="log", xlim=(min(rates) / 2, max(rates) * 4))
    axes.set_xlabel(f"images a second, batches of {loading.batch_size}, {loading.workers} workers")
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    plt.close(figure)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
