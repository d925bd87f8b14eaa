"""Stages of a training step: marks in the code that a profiler listens to.

Without one, a mark does nothing. `bench/profile.py` listens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol


class Listener(Protocol):
    def switch(self, name: str) -> str:
        """The stage `name` begins; returns the one that it interrupts."""
        ...


_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)
"""Of this thread: what another does beside the training is hidden behind a step."""


@contextmanager
def stage(name: str) -> Iterator[None]:
    """The block belongs to the stage `name`; a stage inside it interrupts it."""
    listener = _listener.get()
    if listener is None:
        yield
        return
    outer = listener.switch(name)
    try:
        yield
    finally:
        listener.switch(outer)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Inside, `listener` gets the stages of this thread."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
