"""What the files of a run folder tell while it trains or after: cheaply, again and again, no torch.

Nothing is written. A log of any length costs the same: of a long one, lines at even distances are
read, and later only what is new.
"""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sfumato.base.errors import InputError
from sfumato.base.lock import is_locked
from sfumato.studies.listing import UNREADABLE, experiment_of, saved_images, total_of
from sfumato.training.records import Tail, offset_after, sample_grids

Point = tuple[int, float]
"""Images seen, and the loss."""
READ_WHOLE_BYTES = 2**20
SAMPLED_LINES = 1_000
MOST_POINTS = 4_000
STILL_SECONDS = 60
"""A log that changed this lately is of a run in training, where its lock is not seen from here."""


@dataclass(frozen=True, kw_only=True)
class View:
    """A run at one moment. What is not known is None, or empty."""

    folder: str
    preset: str
    state: str
    images_seen: int
    total_images: int | None
    newest: dict[str, Any]
    """The last record of metrics.jsonl."""
    losses: Sequence[Point]
    images_per_second: float | None
    memory_bytes: int | None
    seconds_left: float | None
    samples: Path | None
    problems: tuple[str, ...] = ()


class Watched:
    """A run folder that is looked at again and again.

    Raises `InputError` for what is no run folder, or may not be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        check_watchable(folder)
        self._log = GrowingLog(folder / "metrics.jsonl")
        self._timing = GrowingLog(folder / "timing.jsonl", value="images_per_second")

    def look(self) -> View:
        problems: list[str] = []
        for log in (self._log, self._timing):
            try:
                log.read()
            except UNREADABLE as error:
                problems.append(f"{log.path.name} cannot be read: {error}")
        experiment = experiment_of(self.folder, problems)
        total = None if experiment is None else total_of(self.folder, experiment)
        logged = [log.newest.get("images", 0) for log in (self._log, self._timing)]
        seen = int(max(*logged, saved_images(self.folder, problems) or 0))
        state = self._state(seen, total)
        timing = self._timing.newest
        speed = timing.get("images_per_second")
        left = None
        if state == "training" and total is not None and speed:
            left = max(0, total - seen) / speed
        return View(
            folder=str(self.folder),
            preset="" if experiment is None else experiment.name,
            state=state,
            images_seen=seen,
            total_images=total,
            newest=self._log.newest,
            losses=self._log.points,
            images_per_second=speed,
            memory_bytes=timing.get("memory_bytes"),
            seconds_left=left,
            samples=grids[-1][1] if (grids := sample_grids(self.folder)) else None,
            problems=tuple(problems),
        )

    def _state(self, seen: int, total: int | None) -> str:
        if is_locked(self.folder):
            return "training"
        if total is not None and seen >= total:
            return "finished"
        return "training" if self._log.age_seconds() < STILL_SECONDS else "stopped"


class GrowingLog:
    """A file of records: its newest, and points of one value over all of it."""

    def __init__(self, path: Path, *, value: str = "loss") -> None:
        self.path, self.value = path, value
        self.newest: dict[str, Any] = {}
        self.points: list[Point] = []
        self._tail = Tail(path)
        self._file: tuple[int, int] | None = None

    def read(self) -> None:
        """Read what is new; a file that was cut back is begun again."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return
        number, length = self._file or (None, 0)
        if found.st_ino != number or found.st_size < length:
            self._begin()
        self._file = found.st_ino, found.st_size
        while records := self._tail.read():
            self.newest = records[-1]
            self.points += self._points(records)
        if len(self.points) > MOST_POINTS:
            self.points = self.points[:-1:2] + self.points[-1:]

    def _begin(self) -> None:
        self.newest, self.points, after = {}, [], -1
        with self.path.open("rb") as file:
            long = file.seek(0, 2) > READ_WHOLE_BYTES
            if long and (records := lines_of(file, SAMPLED_LINES)):
                self.newest, self.points = records[-1], self._points(records)
                after = self.newest["images"]
        self._tail = Tail(self.path, after=after)

    def _points(self, records: Sequence[dict[str, Any]]) -> list[Point]:
        found = ((one["images"], one.get(self.value, math.nan)) for one in records)
        return [(images, value) for images, value in found if math.isfinite(value)]

    def age_seconds(self) -> float:
        try:
            return time.time() - self.path.stat().st_mtime
        except FileNotFoundError:
            return float("inf")


def lines_of(file: IO[bytes], count: int) -> list[dict[str, Any]]:
    """Records at even distances of a long file of them, the last whole one among them; none of a
    file that is one line."""
    length = file.seek(0, 2)
    found = []
    for index in range(count):
        file.seek(length * index // count)
        file.readline()
        line = file.readline()
        if line.endswith(b"\n"):
            found.append(json.loads(line))
    if not found:  # one line
        return []
    file.seek(offset_after(file, found[-1]["images"]))
    return found + [json.loads(line) for line in file if line.endswith(b"\n")][-1:]


def check_watchable(folder: Path) -> None:
    """`InputError` for what is no run folder, or may not be read."""
    hint = "`sfumato runs FOLDER` lists the runs below a folder."
    try:
        if not folder.is_dir():
            what = "is a file" if folder.exists() else "does not exist"
            raise InputError(f"{folder} {what}.", hint=hint)
        names = {path.name for path in folder.iterdir()}
    except PermissionError as error:
        raise InputError(
            f"No permission to read {folder}.", hint="Ask its owner for it."
        ) from error
    if "experiment.yaml" not in names:
        raise InputError(f"{folder} is not a run of sfumato.", hint=hint)
