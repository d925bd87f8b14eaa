"""Progress lines: one that is rewritten on a terminal, plain lines in a file or a notebook."""

import re
import sys
import time
from collections.abc import Callable
from functools import partial


def clock(seconds: float) -> str:
    """1:05 or 2:03:04."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Line:
    """One line that is rewritten in a terminal or a notebook; in a file, one every few seconds."""

    def __init__(self, *, every_seconds: float = 10.0) -> None:
        terminal = sys.stdout.isatty()
        self._rewritten = terminal or in_notebook()
        self._start = "\r\033[K" if terminal else "\r" if self._rewritten else ""
        self._every = 0.2 if self._rewritten else every_seconds
        self._last = 0.0
        self._width = 0

    def show(self, text: str, *, final: bool = False) -> None:
        now = time.monotonic()
        if not final and now - self._last < self._every:
            return
        self._last = now
        end = "\n" if final or not self._rewritten else ""
        # A notebook knows no "clear to the end of the line".
        padded = text.ljust(self._width) if self._start == "\r" else text
        self._width = len(text)
        print(f"{self._start}{padded}", end=end, flush=True)


def in_notebook() -> bool:
    """Whether what is printed goes into a notebook."""
    return type(sys.stdout).__module__.startswith("ipykernel")


class Progress:
    """How much of some work is done, its speed and the time left.

    Called with (what, done, total); work that takes less than `after_seconds` is not shown.
    """

    def __init__(self, *, after_seconds: float = 0.0) -> None:
        self._line = Line()
        self._after = after_seconds
        self._started: dict[str, tuple[float, int]] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        started, before = self._started.setdefault(what, (now, done))
        seconds = now - started
        if seconds < self._after:
            return
        one = re.sub(r"^(\w+)s\b", r"\1", what)
        text = f"  {done:,} of {total:,} {one if total == 1 else what}"
        if done > before:
            speed = (done - before) / seconds
            shown = f"{speed:,.0f}" if speed >= 10 else f"{speed:.1f}"
            text += f"  {shown}/s  {clock((total - done) / speed)} left"
        self._line.show(text, final=done == total)

    def of(self, what: str) -> Callable[[int, int], None]:
        """A function of (done, total) for one kind of work."""
        return partial(self, what)
