"""Progress of a training run, on the screen and in timing.jsonl."""

import time
from collections.abc import Mapping

from sfumato.base.memory import peak_bytes
from sfumato.base.progress import Line, clock
from sfumato.base.words import counted
from sfumato.training.hooks import BaseHook
from sfumato.training.loop import Run
from sfumato.training.records import append_record

RECORD_SECONDS = 10


class TrainingProgress(BaseHook):
    """Images seen, images/s, loss and time left; speed, memory and processors as records of
    timing.jsonl.

    `show=False`: only the records.
    """

    def __init__(self, *, show: bool = True) -> None:
        self._line = Line() if show else None
        self._started: float | None = None
        self._from_images = 0
        self._loss: float | None = None
        self._recorded = 0.0

    def after_step(self, run: Run, metrics: Mapping[str, float]) -> None:
        now = time.monotonic()
        if self._started is None:  # the first step warms up; the clock starts after it
            self._started, self._from_images = now, run.images_seen
            return
        seconds = now - self._started
        speed = (run.images_seen - self._from_images) / max(seconds, 1e-9)
        if run.checked is not None:  # of the newest step that need not be waited for
            loss = run.checked["loss"]
            self._loss = loss if self._loss is None else 0.95 * self._loss + 0.05 * loss
        if self._loss is not None:
            self.show(run, speed=speed, loss=self._loss)
        if now - self._recorded > RECORD_SECONDS or run.finished:
            self._recorded = now
            record = {
                "images": run.images_seen,
                "seconds": round(seconds, 3),
                "images_per_second": round(speed, 2),
                "memory_bytes": peak_bytes(run.device),
                "processors": _processors(run),
            }
            append_record(run.folder / "timing.jsonl", record)

    def show(self, run: Run, *, speed: float, loss: float) -> None:
        """The state after a step, where it is shown."""
        if self._line is not None:
            self._line.show(state_line(run, speed=speed, loss=loss), final=run.finished)


def _processors(run: Run) -> int:
    """The cores or accelerators that the run is on: threads of a CPU, in all processes."""
    import torch

    return run.world.size * (torch.get_num_threads() if run.device.type == "cpu" else 1)


def state_line(run: Run, *, speed: float, loss: float) -> str:
    """Images seen, images/s, loss and time left."""
    total = whole_steps(run)
    left = max(0, total - run.images_seen) / speed
    return (
        f"  {run.images_seen:>9,} of {counted(total, 'image')}  {speed:6.1f} images/s  "
        f"loss {loss:.4f}  {clock(left)} left"
    )


def whole_steps(run: Run) -> int:
    """Where the run ends: its length in images, up to the end of the step that reaches it."""
    steps = -(-run.total_images // run.batches.batch_size)
    return steps * run.batches.batch_size


def print_start(run: Run) -> None:
    """Print whether a run is new, resumed or finished."""
    if run.finished:
        text = f"Already trained: {counted(run.images_seen, 'image')}."
    elif run.images_seen:
        seen = counted(run.images_seen, "image")
        text = f"Resuming from the checkpoint at {seen}, on {run.device}."
    else:
        text = f"Training on {run.device}."
    if run.world.size > 1:
        text = f"{text[:-1]}, in {run.world.size} processes."
    print(text, flush=True)
