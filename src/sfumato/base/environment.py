"""The machine, the versions and the command that a result was made with."""

import platform
from typing import Any

import torch


def environment() -> dict[str, Any]:
    """What the bits of a run depend on beside its configuration."""
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
