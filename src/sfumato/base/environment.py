"""The machine, the versions, the command and the date that a result was made with."""

import hashlib
import os
import platform
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
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


def processors() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def code_digest(folder: Path | None = None) -> str:
    """The first 12 digits of a SHA-256 of sfumato's modules and presets: which code this is."""
    folder = Path(__file__).parents[1] if folder is None else folder
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".py", ".yaml"):
            digest.update(f"{path.relative_to(folder).as_posix()}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


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
