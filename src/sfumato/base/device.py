"""Moving tensors without making the host wait."""

from typing import TYPE_CHECKING

from sfumato.base.stages import stage

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def to_device(values: "Tensor", device: "torch.device") -> "Tensor":
    """`values` on `device`; a copy from the CPU to a GPU is queued, not waited for."""
    if values.device == device:
        return values
    with stage("transfer"):
        if device.type == "cuda" and values.device.type == "cpu":
            # The allocator of pinned memory reuses a block only after the copy from it is done.
            return values.contiguous().pin_memory().to(device, non_blocking=True)
        return values.to(device)
