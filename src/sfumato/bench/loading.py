"""The paper's Table 2 on any Parquet folder: ways to load batches, side by side."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from sfumato import __version__
from sfumato.base.environment import environment, now
from sfumato.base.errors import InputError, SfumatoError
from sfumato.base.files import write_json
from sfumato.bench.loaders import WAYS, Setup
from sfumato.bench.timing import Timing, time_once
from sfumato.config.sections import DataConfig
from sfumato.data.opening import open_images
from sfumato.data.prepare import prepare
from sfumato.data.streaming.stream import open_stream
from sfumato.data.table import GroupedPart

LEAST_PAIRS = 3
"""Rounds below which a median says little."""
OURS = "stream"
_SEED = 0


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
    log: Callable[[str], None],
) -> Loading:
    """Time `ways` in turn, `pairs` rounds of an epoch or `most_batches` (slow ways: two batches).
    `config` is resolved."""
    _check(ways, pairs=pairs, batch_size=batch_size, workers=workers, most_batches=most_batches)
    labels = open_stream(config, "train").labels.numpy()
    part = next(iter(open_images(config).parts.values()))
    assert isinstance(part, GroupedPart)
    epoch = len(labels) // batch_size
    with TemporaryDirectory(prefix="sfumato-bench-") as folder:
        prepared = Path(folder) / "prepared"
        if "prepared" in ways:
            log("Preparing ...")
            prepare(config, prepared)
        setup = Setup(
            config=config,
            batch_size=batch_size,
            workers=workers,
            label_column=part.label_column,
            prepared=str(prepared),
        )
        batches = {
            name: max(2, workers) if WAYS[name].few else min(epoch, most_batches or epoch)
            for name in ways
        }
        timings, problems = _time_in_turn(setup, batches, pairs, log)
    rows = [_row(name, timings[name], problems.get(name, ""), labels, batch_size) for name in ways]
    return Loading(rows=rows, images=len(labels), batch_size=batch_size, workers=workers)


def _row(
    name: str, timings: list[Timing], problem: str, labels: np.ndarray, batch_size: int
) -> Row:
    return Row(
        name=name,
        label=WAYS[name].label,
        timings=timings,
        entropy=_entropy_share(timings, labels, batch_size),
        displacement=_displacement(timings, len(labels)),
        problem=problem,
    )


def _check(
    ways: Sequence[str], *, pairs: int, batch_size: int, workers: int, most_batches: int | None
) -> None:
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


def _time_in_turn(
    setup: Setup, batches: dict[str, int], pairs: int, log: Callable[[str], None]
) -> tuple[dict[str, list[Timing]], dict[str, str]]:
    """The timings of each way, after a round of one batch that fills the system's cache; and why
    some could not run."""
    timings: dict[str, list[Timing]] = {name: [] for name in batches}
    problems: dict[str, str] = {}
    for round_number in range(-1, pairs):
        for name in list(batches)[:: 1 if round_number % 2 else -1]:
            if name in problems:
                continue
            try:
                timing = time_once(name, setup, batches=batches[name] if round_number >= 0 else 1)
            except SfumatoError as error:
                problems[name] = error.what
                continue
            if round_number >= 0:
                timings[name].append(timing)
                rate = setup.batch_size / timing.seconds_a_batch
                log(f"Round {round_number + 1}: {WAYS[name].label} {rate:,.1f} images/s")
    return timings, problems


_LEAST_BATCHES = 20
"""Batches below which nothing is said of how well they are mixed."""


def _entropy_share(timings: Sequence[Timing], labels: np.ndarray, batch: int) -> float | None:
    if not timings or len(timings[0].labels) < _LEAST_BATCHES * batch or len(set(labels)) < 2:
        return None
    rng = np.random.default_rng(_SEED)
    ideal = np.mean([batch_entropy(rng.permutation(labels), batch) for _ in range(4)])
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
    rows = [asdict(row) for row in loading.rows]
    for timing in (timing for row in rows for timing in row["timings"]):
        del timing["labels"], timing["samples"]
    record = {
        "date": now(),
        "sfumato": __version__,
        "environment": environment(),
        **conditions,
        **asdict(loading),
        "gains": loading.gains(),
        "rows": rows,
    }
    write_json(path, record)
