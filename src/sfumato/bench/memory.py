"""The largest batch and the best one: the paper's Table 4, measured.

Each size trains in a process of its own, so that one that runs out of memory, or that the system
kills for it, is an answer and not the end.
"""

import multiprocessing
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from sfumato import __version__
from sfumato.base.environment import command, hardware, now
from sfumato.base.errors import InputError, SfumatoError
from sfumato.base.files import write_json
from sfumato.base.memory import keep_freed_memory, peak_bytes
from sfumato.bench.stand_in import on_stand_in
from sfumato.bench.steps import prepared_training
from sfumato.config.schema import DiffusionExperiment
from sfumato.training.run import fast_convolutions

MARGIN_BYTES = 2 * 10**9
"""Memory that is left free, the paper's safety margin."""
CLOSE_TO_BEST = 0.97
"""Share of the best throughput that is enough."""
STAND_IN_IMAGES = 64
_WARM_UP_STEPS = 2
_SMALLER = 0.9
_MOST_TRIES = 5
_LEAST_SIZES = 3


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What steps of one size took: the most memory of the process (on a GPU: of its allocator) and
    seconds of each timed step; `failed` says why there is neither."""

    batch_size: int
    peak_bytes: int = 0
    step_seconds: list[float] = field(default_factory=list)
    failed: str = ""

    @property
    def images_per_second(self) -> float:
        return self.batch_size / median(self.step_seconds)


@dataclass(frozen=True, kw_only=True)
class MemoryModel:
    """Peak memory = `fixed_bytes` + batch size * `image_bytes`."""

    fixed_bytes: float
    image_bytes: float

    @classmethod
    def fit(cls, trials: Sequence[Trial]) -> "MemoryModel":
        """Least squares over trials that fitted. `ValueError` for fewer than two sizes."""
        if len({trial.batch_size for trial in trials}) < 2:
            raise ValueError("a line needs two sizes")
        sizes = np.array([trial.batch_size for trial in trials], np.float64)
        slope, fixed = np.polyfit(sizes, [float(trial.peak_bytes) for trial in trials], 1)
        return cls(fixed_bytes=float(fixed), image_bytes=float(slope))

    def peak_bytes(self, batch_size: int) -> float:
        return self.fixed_bytes + batch_size * self.image_bytes

    def largest(self, limit_bytes: float) -> int:
        """The largest batch whose peak is at most `limit_bytes`; 0 where none is."""
        images = (limit_bytes - self.fixed_bytes) / max(self.image_bytes, 1.0)
        return max(0, int(images * (1 + 1e-9)))  # what fits exactly fits, to rounding

    def error(self, trial: Trial) -> float:
        """Prediction over measurement less 1."""
        return self.peak_bytes(trial.batch_size) / trial.peak_bytes - 1


@dataclass(frozen=True, kw_only=True)
class BatchSizes:
    """Table 4: `trials` by size; `model` of all that fitted; `held_out_error`: the relative error
    of a model without the largest of the sizes that were fitted, at that size; `checked`: the
    trial of the largest batch, None where it was not tried."""

    name: str
    trials: list[Trial]
    model: MemoryModel
    held_out_error: float
    limit_bytes: int
    margin_bytes: int
    largest: int
    checked: Trial | None

    def recommended(self) -> Trial:
        """The smallest batch within 3 % of the best throughput."""
        return smallest_close_to_best(self.trials)


def smallest_close_to_best(trials: Sequence[Trial]) -> Trial:
    """The trial with the smallest batch whose throughput is within 3 % of the best."""
    ran = [trial for trial in trials if not trial.failed]
    best = max(trial.images_per_second for trial in ran)
    enough = [trial for trial in ran if trial.images_per_second >= CLOSE_TO_BEST * best]
    return min(enough, key=lambda trial: trial.batch_size)


def find_batch_sizes(
    experiment: DiffusionExperiment,
    sizes: Sequence[int],
    *,
    device: torch.device,
    limit_bytes: int | None = None,
    margin_bytes: int = MARGIN_BYTES,
    most: int = 4096,
    steps: int = 5,
    try_out: Callable[..., Trial] | None = None,
    log: Callable[[str], None] = print,
) -> BatchSizes:
    """Fit memory at `sizes`, check the largest batch by a real step, time each power of two.

    `limit_bytes`: another memory than the device's, where nothing above it is tried. `most`: the
    largest batch that is tried. `try_out(experiment, size, device=..., steps=...)` is `try_size`.
    """
    attempt = try_out or try_size
    there = device_bytes(device)
    limit = limit_bytes or there
    done: dict[int, Trial] = {}

    def tried(size: int) -> Trial:
        if size not in done:
            done[size] = attempt(experiment, size, device=device, steps=steps)
            log(_line(done[size]))
        return done[size]

    fitted = _fitted([tried(size) for size in sorted(set(sizes))])
    held_out_error = MemoryModel.fit(fitted[:-1]).error(fitted[-1])
    largest, checked = _largest(fitted, limit - margin_bytes, most, there, tried)
    size = 1
    while size <= min(largest, most):
        tried(size)
        size *= 2
    ran = [done[size] for size in sorted(done)]
    return BatchSizes(
        name=experiment.name,
        trials=ran,
        model=MemoryModel.fit([trial for trial in ran if not trial.failed]),
        held_out_error=held_out_error,
        limit_bytes=limit,
        margin_bytes=margin_bytes,
        largest=largest,
        checked=checked,
    )


def _fitted(trials: Sequence[Trial]) -> list[Trial]:
    """Those that were measured; `SfumatoError` for too few."""
    fitted = [trial for trial in trials if not trial.failed]
    if len(fitted) < _LEAST_SIZES:
        why = next((trial.failed for trial in trials if trial.failed), "too few sizes")
        raise SfumatoError(
            f"{len(fitted)} of {len(trials)} batch sizes could be measured ({why}); a line and its "
            f"error need {_LEAST_SIZES}.",
            hint="Give smaller --sizes, such as 1,2,4.",
        )
    return fitted


def _largest(
    fitted: Sequence[Trial],
    room_bytes: float,
    most: int,
    there_bytes: int,
    tried: Callable[[int], Trial],
) -> tuple[int, Trial | None]:
    """The largest batch in `room_bytes`, and its trial: it is made smaller until it fits."""
    largest = MemoryModel.fit(fitted).largest(room_bytes)
    if room_bytes > there_bytes or not 0 < largest <= most:
        return largest, None  # a card that is not here, or more than anyone wants to wait for
    for _ in range(_MOST_TRIES):
        trial = tried(largest)
        if not trial.failed and trial.peak_bytes <= room_bytes:
            return largest, trial
        largest = max(1, int(_SMALLER * largest))
    return largest, None


def _line(trial: Trial) -> str:
    if trial.failed:
        return f"  {trial.batch_size:>5,} images: {trial.failed}"
    return (
        f"  {trial.batch_size:>5,} images: {trial.peak_bytes / 1e9:.3f} GB, "
        f"{trial.images_per_second:,.3g} images/s"
    )


def save_batch_sizes(found: BatchSizes, path: Path, **conditions: Any) -> None:
    """Every trial as JSON, with the machine and the `conditions` it was measured under."""
    record: Mapping[str, Any] = {
        "date": now(),
        "sfumato": __version__,
        "command": command(),
        "hardware": hardware(),
        **conditions,
        "recommended": found.recommended().batch_size,
        **asdict(found),
    }
    write_json(path, record)


# One size -----------------------------------------------------------------------------------------


def try_size(
    experiment: DiffusionExperiment,
    batch_size: int,
    *,
    device: torch.device,
    steps: int,
    warm_up: int = _WARM_UP_STEPS,
) -> Trial:
    """Train a few steps of `batch_size` on noise in a process of its own."""
    changed = experiment.training.model_copy(update={"batch_size": batch_size})
    experiment = experiment.model_copy(update={"training": changed})
    if batch_size < changed.micro_batches:
        raise InputError(
            f"A batch of {batch_size} has no {changed.micro_batches} micro-batches.",
            hint="Leave training.micro_batches out here: each size is one micro-batch.",
        )
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_train, args=(there, experiment, str(device), steps, warm_up))
    process.start()
    there.close()
    try:
        found: Trial | Exception = here.recv()
    except EOFError:
        process.join()
        why = f"its process was ended by signal {-(process.exitcode or 0)}, likely out of memory"
        found = Trial(batch_size=batch_size, failed=why)
    process.join()
    if isinstance(found, Exception):
        raise found
    return found


def _train(
    parent: Connection, experiment: DiffusionExperiment, device: str, steps: int, warm_up: int
) -> None:
    """What the process does."""
    batch_size = experiment.training.batch_size
    keep_freed_memory()
    warnings.simplefilter("ignore")  # of the captions that stand in
    try:
        with TemporaryDirectory(prefix="sfumato-bench-") as folder:
            images = on_stand_in(experiment, Path(folder), images=STAND_IN_IMAGES)
            with prepared_training(images, device) as run, fast_convolutions(run.device):
                seconds = []
                for _ in range(warm_up + steps):
                    started = time.perf_counter()
                    run.take_step()
                    run.check()
                    seconds.append(time.perf_counter() - started)
                peak = peak_bytes(run.device)
        parent.send(Trial(batch_size=batch_size, peak_bytes=peak, step_seconds=seconds[warm_up:]))
    except (torch.OutOfMemoryError, MemoryError):
        parent.send(Trial(batch_size=batch_size, failed="out of memory"))
    except SfumatoError as error:
        parent.send(error)
    except RuntimeError as error:  # torch's allocator of the CPU has no class of its own
        lacks = Trial(batch_size=batch_size, failed="out of memory")
        parent.send(lacks if "allocate memory" in str(error) else SfumatoError(str(error)))


def device_bytes(device: torch.device) -> int:
    """Memory of a GPU, or what is available of the machine's. `SfumatoError` if unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    from sfumato.base.doctor.findings import Host
    from sfumato.base.doctor.machine import memory

    available = memory(Host())[1]
    if available is None:
        raise SfumatoError(
            "This system does not tell how much memory it has.", hint="Give it with --memory."
        )
    return available
