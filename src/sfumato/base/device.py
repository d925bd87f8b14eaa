"""Where tensors are computed."""

from typing import TYPE_CHECKING

from sfumato.base.errors import InputError

if TYPE_CHECKING:
    import torch


def resolve_device(name: str) -> "torch.device":
    """`auto` is the accelerator if there is one, else the CPU; `InputError` for one that is not
    available."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"No device named '{name}'.", hint="Use auto, cpu or cuda.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("No CUDA device is available here.", hint="Use --device cpu.")
    return device
