"""The machine, the versions, the command and the date that a result was made with."""

import platform
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

_command = ""


def set_command(arguments: Sequence[str]) -> None:
    """Record the command line of this process, for the provenance of what it writes."""
    global _command
    _command = shlex.join(arguments)


def command() -> str:
    """The command line that was set; empty in a notebook or another program."""
    return _command


def now() -> str:
    """The date and time in UTC, ISO 8601; the first ten characters are the date."""
    return datetime.now(UTC).isoformat("T", "seconds")


def environment() -> dict[str, Any]:
    """What the bits of a run depend on beside its configuration."""
    import torch

    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def hardware() -> dict[str, Any]:
    """The machine and the versions that figures were made with."""
    return {**environment(), "processor": platform.processor() or "unknown"}
