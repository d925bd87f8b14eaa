"""Moving tensors without making the host wait, and the precision of networks by name."""

from typing import TYPE_CHECKING, Any

from sfumato.base.errors import InputError
from sfumato.base.stages import stage

if TYPE_CHECKING:
    import torch
    from torch import Tensor


DTYPES = ("float32", "float16", "bfloat16")
"""What a network may compute in."""


def dtype_name(dtype: Any) -> str:
    """One of `DTYPES` for its name or torch's type; `InputError` for another."""
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise InputError(f"No dtype named '{name}'.", hint=f"Use one of {', '.join(DTYPES)}.")
    return name


def to_device(values: "Tensor", device: "torch.device") -> "Tensor":
    """`values` on `device`; a copy from the CPU to a GPU is queued, not waited for."""
    if values.device == device:
        return values
    with stage("transfer"):
        if device.type == "cuda" and values.device.type == "cpu":
            # The allocator of pinned memory reuses a block only after the copy from it is done.
            return values.contiguous().pin_memory().to(device, non_blocking=True)
        return values.to(device)
