"""Words of messages."""

import shlex
from collections.abc import Mapping


def counted(count: int, noun: str) -> str:
    """`1 image` or `2,000 images`."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def set_options(settings: Mapping[str, object]) -> str:
    """`--set` for each of the settings, as a shell takes it."""
    return shlex.join(
        part for name, value in settings.items() for part in ("--set", f"{name}={value}")
    )
