"""What is printed, on any terminal or into any file."""

import io
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def print_anything() -> None:
    """From now on stdout and stderr escape what their encoding does not have (`\\xe9`), instead of
    failing: names of files and captions may be in any script, or not text at all."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def plain_console(**options: Any) -> "Console":
    """A console that prints names as they are: `[red]` is no colour and `:cat:` no picture."""
    from rich.console import Console

    return Console(markup=False, emoji=False, highlight=False, **options)
