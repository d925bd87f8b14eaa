"""One thread that does what is asked, in turn, and a bounded queue in front of it."""

import secrets
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sfumato.base.errors import SfumatoError
from sfumato.interactive.serving import Refusal

MOST_WAITING = 64
_REMEMBERED = 256
"""Jobs whose events can still be read after they ended."""
_ENDS = ("done", "failed", "cancelled")
Event = tuple[int, str, dict[str, Any]]
"""Number, name and values."""


class Cancelled(Exception):
    """The work was not wanted any more."""


@dataclass(eq=False)
class Job:
    """A piece of work and what is told of it. Of `step` events only the newest is kept, so that
    what a job remembers is about as large as what it made."""

    run: Callable[["Job"], None]
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    cancelled: bool = False
    ended: bool = False
    _events: list[Event] = field(default_factory=list)
    _count: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def tell(self, name: str, /, **values: Any) -> None:
        """Add an event for those who listen."""
        with self._lock:
            self._count += 1
            if name == "step":
                self._events = [one for one in self._events if one[1] != "step"]
            self._events.append((self._count, name, values))
            self.ended = self.ended or name in _ENDS

    def after(self, number: int) -> list[Event]:
        """The events after one of that number; 0 for all."""
        with self._lock:
            return [one for one in self._events if one[0] > number]

    def check(self) -> None:
        """Raise `Cancelled` where the work is not wanted any more."""
        if self.cancelled:
            raise Cancelled

    def refuse(self, error: SfumatoError) -> None:
        self.tell("failed", error=error.what, hint=error.hint)


class Worker:
    """Does one job at a time, in the order they came."""

    def __init__(self, *, most_waiting: int = MOST_WAITING) -> None:
        self.most_waiting = most_waiting
        self._jobs: dict[str, Job] = {}
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._seconds: deque[float] = deque([1.0], maxlen=20)
        self._changed = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="studio", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Cancel everything and wait for the thread."""
        with self._changed:
            self._stopped = True
            for job in (*self._waiting, self._running):
                if job is not None:
                    job.cancelled = True
            self._changed.notify_all()
        self._thread.join(timeout=10)

    def add(self, run: Callable[[Job], None]) -> Job:
        """Queue work; `Refusal` (503) where too much is waiting."""
        with self._changed:
            if len(self._waiting) >= self.most_waiting:
                raise Refusal(
                    f"{len(self._waiting)} jobs are waiting already.",
                    status=503,
                    hint=f"Try again in {self.wait_seconds(len(self._waiting)):.0f} s.",
                )
            job = Job(run)
            self._jobs[job.id] = job
            self._waiting.append(job)
            self._forget()
            self._changed.notify_all()
            return job

    def job(self, id: str) -> Job:
        """`Refusal` (404) for one that is not known any more."""
        found = self._jobs.get(id)
        if found is None:
            raise Refusal("There is no such job.", status=404, hint="Jobs end with the studio.")
        return found

    def cancel(self, job: Job) -> None:
        """End it at its next step, or before it begins."""
        job.cancelled = True
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
                job.tell("cancelled")

    def ahead(self, job: Job) -> int | None:
        """Jobs that are done before this one begins; None where it does not wait."""
        with self._changed:
            if job not in self._waiting:
                return None
            return self._waiting.index(job) + (self._running is not None)

    def wait_seconds(self, ahead: int) -> float:
        """What so many jobs take, by the time of the newest ones."""
        return ahead * sum(self._seconds) / len(self._seconds)

    def state(self) -> dict[str, Any]:
        with self._changed:
            waiting = len(self._waiting)
            return {
                "waiting": waiting,
                "most_waiting": self.most_waiting,
                "running": self._running is not None,
                "wait_seconds": round(self.wait_seconds(waiting + (self._running is not None)), 1),
            }

    def _forget(self) -> None:
        """Drop the oldest jobs that ended."""
        ended = [id for id, job in self._jobs.items() if job.ended]
        for id in ended[: max(len(ended) - _REMEMBERED, 0)]:
            del self._jobs[id]

    def _work(self) -> None:
        while (job := self._next()) is not None:
            started = time.monotonic()
            _do(job)
            with self._changed:
                self._running = None
                self._seconds.append(time.monotonic() - started)

    def _next(self) -> Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stopped)
            if self._stopped:
                return None
            self._running = self._waiting.popleft()
            return self._running


def _do(job: Job) -> None:
    """Run a job; whatever happens is its last event."""
    try:
        job.check()
        job.tell("started")
        job.run(job)
        job.tell("done")
    except Cancelled:
        job.tell("cancelled")
    except SfumatoError as error:
        job.refuse(error)
    except Exception:
        traceback.print_exc()
        job.tell("failed", error="The studio failed.", hint="Its terminal says why.")
