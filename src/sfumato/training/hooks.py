"""What happens beside the training: log, sample grids, checkpoints; each on its own cadence."""

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from sfumato.base.files import write_bytes
from sfumato.training.loop import STOP, Run
from sfumato.training.records import (
    ACCURACY,
    HELD_OUT,
    RECONSTRUCTION,
    append_record,
    cut_back,
)

SAME_SIGNAL_SECONDS = 0.5


class BaseHook:
    """A hook that does nothing and remembers nothing."""

    needs_weights = False

    def after_step(self, run: Run, metrics: Mapping[str, float]) -> None:
        return

    def at_end(self, run: Run) -> None:
        return

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        return


class LogHook(BaseHook):
    """Mean of each metric since the last record, appended to metrics.jsonl."""

    def __init__(self, path: Path, *, every_images: int) -> None:
        self.path = path
        self.every_images = every_images
        self._sums: dict[str, float] = {}
        self._steps = 0
        self._unread: list[Mapping[str, float]] = []
        self._watched_at = 0

    def after_step(self, run: Run, metrics: Mapping[str, float]) -> None:
        self._unread.append(metrics)
        if run.due(self.every_images) or run.finished:
            run.check()  # a line holds finite numbers
            self._read()
            means = {name: total / self._steps for name, total in self._sums.items()}
            clock = {"images": run.images_seen, "step": run.step}
            append_record(self.path, {**clock, **means, **self._watched(run)})
            self._sums, self._steps = {}, 0

    def _watched(self, run: Run) -> Mapping[str, float]:
        """What the run watches, where that is due since it was last looked at."""
        every = run.watch_every_images
        due = run.images_seen // every > self._watched_at // every or run.finished
        if run.watch is None or not due:
            return {}
        self._watched_at = run.images_seen
        return run.watch()

    def _read(self) -> None:
        """Add up what has not been read, which waits for the newest step."""
        for metrics in self._unread:
            for name, value in metrics.items():
                if name != STOP:
                    self._sums[name] = self._sums.get(name, 0.0) + value
            self._steps += 1
        self._unread = []

    def state(self) -> dict[str, Any]:
        self._read()
        return {"sums": self._sums, "steps": self._steps, "watched_at": self._watched_at}

    def load_state(self, state: dict[str, Any]) -> None:
        self._sums, self._steps = dict(state.get("sums", {})), state.get("steps", 0)
        self._watched_at = state.get("watched_at", 0)


class SampleHook(BaseHook):
    """A picture of the averaged network's samples, always from the same seeds."""

    needs_weights = True

    def __init__(self, folder: Path, *, every_images: int, sample: Callable[[], bytes]) -> None:
        self.folder = folder
        self.every_images = every_images
        self.sample = sample

    def after_step(self, run: Run, metrics: Mapping[str, float]) -> None:
        if run.due(self.every_images) or run.finished:
            run.check()
            picture = self.sample()
            if run.world.is_main:
                write_bytes(self.folder / f"images-{run.images_seen:09d}.png", picture)


class MeasureHook(BaseHook):
    """What is measured of the averaged network while it trains: records in a file."""

    needs_weights = True

    def __init__(
        self, path: Path, *, every_images: int, measure: Callable[[], Mapping[str, Any]]
    ) -> None:
        self.path = path
        self.every_images = every_images
        self.measure = measure

    def after_step(self, run: Run, metrics: Mapping[str, float]) -> None:
        if run.due(self.every_images) or run.finished:
            run.check()
            measured = self.measure()
            if run.world.is_main:
                append_record(self.path, {"images": run.images_seen, **measured})


class HeldOutHook(BaseHook):
    """The loss on what is not trained on: records of held_out.jsonl. After `patience` measurements
    in a row that were no better than the best before, the run is at its end."""

    def __init__(
        self, path: Path, *, every_images: int, patience: int, measure: Callable[[], float]
    ) -> None:
        self.path = path
        self.every_images = every_images
        self.patience = patience
        self.measure = measure
        self._best, self._worse = float("inf"), 0

    def after_step(self, run: Run, metrics: Mapping[str, float]) -> None:
        if not (run.due(self.every_images) or run.finished):
            return
        run.check()
        loss = self.measure()
        append_record(self.path, {"images": run.images_seen, "loss": loss})
        self._worse = 0 if loss < self._best else self._worse + 1
        self._best = min(self._best, loss)
        if self._worse >= self.patience:
            run.ended_early = True

    def state(self) -> dict[str, Any]:
        return {"best": self._best, "worse": self._worse}

    def load_state(self, state: dict[str, Any]) -> None:
        self._best, self._worse = state.get("best", float("inf")), state.get("worse", 0)


class TimeLimitHook(BaseHook):
    """Asks for a stop, with a checkpoint, once so much time has passed since the first step."""

    def __init__(self, *, seconds: float) -> None:
        self.seconds = seconds
        self._started: float | None = None

    def after_step(self, run: Run, metrics: Mapping[str, float]) -> None:
        if self._started is None:
            self._started = time.monotonic()
        if time.monotonic() - self._started >= self.seconds:
            run.stop_requested = True


class CheckpointHook(BaseHook):
    """Checkpoints on a cadence, at milestones and at the end.

    Last among the hooks, so that it saves theirs.
    """

    needs_weights = True

    def __init__(self, *, every_images: int) -> None:
        self.every_images = every_images
        self._saved_at = -1

    def after_step(self, run: Run, metrics: Mapping[str, float]) -> None:
        if run.due(self.every_images) or run.images_seen in run.milestones:
            self._save(run)

    def at_end(self, run: Run) -> None:
        if self._saved_at != run.images_seen and run.step:
            self._save(run)

    def state(self) -> dict[str, Any]:
        return {"saved_at": self._saved_at}

    def load_state(self, state: dict[str, Any]) -> None:
        """A run that is resumed and stops at once leaves its checkpoint as it is."""
        self._saved_at = state.get("saved_at", -1)

    def _save(self, run: Run) -> None:
        self._saved_at = run.images_seen
        run.save()


def cut_back_records(run: Run) -> None:
    """After a resume: forget log lines that the run is about to write again."""
    for name in ("metrics.jsonl", ACCURACY, HELD_OUT, RECONSTRUCTION, "timing.jsonl"):
        cut_back(run.folder / name, images_seen=run.images_seen)


@contextmanager
def stopping_on_signals(run: Run) -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGUSR1 end the run after the step in progress, several ranks after
    a step that all know, with a checkpoint.

    A second Ctrl-C interrupts at once. One within half a second is the same one: a terminal sends
    it to every process, and a launcher passes it on.
    """
    interrupted_at: float | None = None

    def request(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted_at
        run.stop_requested = True
        if number != signal.SIGINT:
            return
        now = time.monotonic()
        if interrupted_at is not None and now - interrupted_at > SAME_SIGNAL_SECONDS:
            raise KeyboardInterrupt
        interrupted_at = interrupted_at or now

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    try:
        before = {number: signal.signal(number, request) for number in numbers}
    except ValueError:  # signals can be handled in the main thread alone
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
