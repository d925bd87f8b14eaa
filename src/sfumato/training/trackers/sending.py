"""A thread that sends what a run folder has and a tracker has not.

It reads the files of the run, and training does not know of it: a server that is slow, or away,
costs training nothing, and is caught up with from the files, by a later process too.
"""

import threading
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sfumato.base.errors import SfumatoWarning
from sfumato.base.files import read_json, write_json
from sfumato.config.overrides import flattened
from sfumato.training.loop import Run
from sfumato.training.records import Tail
from sfumato.training.trackers.points import SOURCES, artifacts, pictures
from sfumato.training.trackers.protocol import (
    End,
    Point,
    Sent,
    TrackedRun,
    Tracker,
    without_secrets,
)
from sfumato.training.trackers.registry import address_of, tracker_of

FOLDER = "trackers"
"""In a run folder: the key of the run, and what each tracker has."""
EVERY_SECONDS = 2.0
LONGEST_WAIT_SECONDS = 30.0
"""Between two attempts, each twice as long after the one before as that was."""
LAST_SECONDS = {"finished": 60.0, "stopped": 10.0, "failed": 10.0}
"""How long what is left may take at the end; a queue kills a job soon after it tells it to stop."""
MOST_VALUES = 500
"""Of one call: MLflow takes 1,000."""


class TrackerWarning(SfumatoWarning):
    """A tracker does not get what it should."""


class Sender:
    """Sends a run to one tracker until it is closed."""

    def __init__(self, name: str, run: TrackedRun) -> None:
        self.name, self.run = name, run
        self._file = run.folder / FOLDER / f"{name}.json"
        self._sent = Sent(**read_json(self._file)) if self._file.exists() else Sent()
        self._tracker: Tracker | None = None
        self._tails: dict[str, Tail] = {}
        self._pending: dict[str, list[Point]] = {}
        self._said = False
        self._complete = False
        self._end: End = "failed"
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def finish(self, end: End) -> None:
        """Ask for a last round."""
        self._end = end
        self._closing.set()

    def join(self, deadline: float) -> None:
        """Wait for it, in `time.monotonic()`, and say what was left."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if not self._complete:
            warnings.warn(
                f"The tracker '{self.name}' did not get all of the run. The same command sends "
                "what is missing.",
                TrackerWarning,
                stacklevel=2,
            )

    def _work(self) -> None:
        wait = 0.0
        while not self._closing.wait(wait):
            wait = EVERY_SECONDS if self._attempt() else min(2 * wait + 1, LONGEST_WAIT_SECONDS)
        self._complete = self._attempt(last=True)

    def _attempt(self, *, last: bool = False) -> bool:
        """Send all that is there, and at the end close the tracked run; whether that went well."""
        try:
            self._tracker = self._tracker or self._opened()
            self._send(self._tracker)
            if last:
                self._tracker.close(self._end)
        except Exception as error:  # a client library may raise anything, and training goes on
            self._tracker = None
            self._say(error)
            return False
        return True

    def _say(self, error: Exception) -> None:
        """Once for each process."""
        if self._said:
            return
        self._said = True
        reason = (str(error).splitlines() or [""])[0][:200]
        warnings.warn(
            without_secrets(
                f"The tracker '{self.name}' at {address_of(self.name)} does not take the run "
                f"({type(error).__name__}: {reason}). Training goes on, and what is missing is "
                "sent later."
            ),
            TrackerWarning,
            stacklevel=2,
        )

    def _opened(self) -> Tracker:
        tracker = tracker_of(self.name)
        has = tracker.open(self.run, self._sent)
        if has != self._sent or not self._tails:
            self._save(has)
            self._pending = {}
            self._tails = {
                name: Tail(self.run.folder / name, after=has.records.get(name, -1))
                for name in SOURCES
            }
        return tracker

    def _send(self, tracker: Tracker) -> None:
        for name in SOURCES:
            while points := self._next(name):
                records = {**self._sent.records, name: points[-1].images_seen}
                sent = replace(self._sent, records=records)
                tracker.metrics(points, sent)
                self._save(sent)
                self._pending[name] = self._pending[name][len(points) :]
        for images_seen, file in pictures(self.run.folder, after=self._sent.pictures):
            sent = replace(self._sent, pictures=images_seen)
            tracker.picture(images_seen, file, sent)
            self._save(sent)
        finished = self._closing.is_set() and self._end == "finished"
        for name, file, sha in artifacts(self.run.folder, self._sent.artifacts, finished=finished):
            tracker.artifact(name, file)
            known = {**self._sent.artifacts, name: sha}
            self._save(replace(self._sent, artifacts=known))

    def _next(self, name: str) -> list[Point]:
        """The next points of a file, as many as one call takes."""
        pending = self._pending.setdefault(name, [])
        if not pending:
            now = time.time()
            pending += [
                Point(record["images"], values, now)
                for record in self._tails[name].read()
                if (values := SOURCES[name](record))
            ]
        found: list[Point] = []
        for point in pending:
            if found and sum(len(one.values) for one in [*found, point]) > MOST_VALUES:
                break
            found.append(point)
        return found

    def _save(self, sent: Sent) -> None:
        self._sent = sent
        write_json(self._file, asdict(sent))


@contextmanager
def tracked(run: Run, experiment: Any) -> Iterator[None]:
    """Send the run to the trackers of its experiment while the block runs."""
    names = getattr(experiment.training, "trackers", ())
    if not names:
        yield
        return
    folder = run.folder.resolve()
    parameters = flattened(experiment.model_dump(mode="json"))
    known = TrackedRun(key=_key(folder), name=folder.name, folder=folder, parameters=parameters)
    senders = [Sender(name, known) for name in names]
    for sender in senders:
        sender.start()
    end: End = "failed"
    try:
        yield
        end = "finished" if run.finished else "stopped"
    finally:
        for sender in senders:
            sender.finish(end)
        deadline = time.monotonic() + LAST_SECONDS[end]
        for sender in senders:
            sender.join(deadline)


def _key(folder: Path) -> str:
    """What trackers know the run by, drawn when it is first tracked."""
    file = folder / FOLDER / "run.json"
    if not file.exists():
        write_json(file, {"key": uuid.uuid4().hex[:16]})
    return read_json(file)["key"]
