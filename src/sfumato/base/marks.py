"""Marks on definitions, for what reads our sources."""

from collections.abc import Callable
from typing import TypeVar

F = TypeVar("F", bound=Callable[..., object])


def not_exported(method: F) -> F:
    """A method that only sfumato has: exported folders come without it."""
    return method
