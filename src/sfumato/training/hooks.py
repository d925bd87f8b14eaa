"""What happens beside the training: log, sample grids, checkpoints; each on its own cadence."""

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from torch import Tensor

from sfumato.base.files import write_bytes
from sfumato.training.loop import Run
from sfumato.training.records import ACCURACY, append_record, cut_back


class BaseHook:
    """A hook that does nothing and remembers nothing."""

    def after_step(self, run: Run, metrics: Mapping[str, Tensor]) -> None:
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

    def after_step(self, run: Run, metrics: Mapping[str, Tensor]) -> None:
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value)
        self._steps += 1
        if run.due(self.every_images) or run.finished:
            means = {name: total / self._steps for name, total in self._sums.items()}
            append_record(self.path, {"images": run.images_seen, "step": run.step, **means})
            self._sums, self._steps = {}, 0

    def state(self) -> dict[str, Any]:
        return {"sums": self._sums, "steps": self._steps}

    def load_state(self, state: dict[str, Any]) -> None:
        self._sums, self._steps = dict(state.get("sums", {})), state.get("steps", 0)


class SampleHook(BaseHook):
    """A picture of the averaged network's samples, always from the same seeds."""

    def __init__(self, folder: Path, *, every_images: int, sample: Callable[[], bytes]) -> None:
        self.folder = folder
        self.every_images = every_images
        self.sample = sample

    def after_step(self, run: Run, metrics: Mapping[str, Tensor]) -> None:
        if run.due(self.every_images) or run.finished:
            write_bytes(self.folder / f"images-{run.images_seen:09d}.png", self.sample())


class AccuracyHook(BaseHook):
    """Class accuracy of the averaged network's samples: records of accuracy.jsonl."""

    def __init__(
        self, path: Path, *, every_images: int, measure: Callable[[], Mapping[str, Any]]
    ) -> None:
        self.path = path
        self.every_images = every_images
        self.measure = measure

    def after_step(self, run: Run, metrics: Mapping[str, Tensor]) -> None:
        if run.due(self.every_images) or run.finished:
            append_record(self.path, {"images": run.images_seen, **self.measure()})


class CheckpointHook(BaseHook):
    """Checkpoints on a cadence, at milestones and at the end.

    Last among the hooks, so that it saves theirs.
    """

    def __init__(self, *, every_images: int) -> None:
        self.every_images = every_images
        self._saved_at = -1

    def after_step(self, run: Run, metrics: Mapping[str, Tensor]) -> None:
        if run.due(self.every_images) or run.images_seen in run.milestones:
            self._save(run)

    def at_end(self, run: Run) -> None:
        if self._saved_at != run.images_seen and run.step:
            self._save(run)

    def state(self) -> dict[str, Any]:
        return {"saved_at": self._saved_at}

    def load_state(self, state: dict[str, Any]) -> None:
        """A run that goes on and stops at once leaves the checkpoint it came from as it is."""
        self._saved_at = state.get("saved_at", -1)

    def _save(self, run: Run) -> None:
        self._saved_at = run.images_seen
        run.save()


def cut_back_records(run: Run) -> None:
    """After a resume: forget log lines that the run is about to write again."""
    for name in ("metrics.jsonl", ACCURACY, "timing.jsonl"):
        cut_back(run.folder / name, images_seen=run.images_seen)


@contextmanager
def stopping_on_signals(run: Run) -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGUSR1 end the run after the step in progress, with a checkpoint.

    A second Ctrl-C interrupts at once.
    """

    def request(number: int, frame: FrameType | None) -> None:
        if run.stop_requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        run.stop_requested = True

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    try:
        before = {number: signal.signal(number, request) for number in numbers}
    except ValueError:  # not the main thread: signals are somebody else's
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
