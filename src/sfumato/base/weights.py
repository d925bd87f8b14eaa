"""What a network's weights are, and where and in what it computes with them."""

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def weights_digest(module: "torch.nn.Module") -> "hashlib._Hash":
    """sha256, open for more, over the names and values of a module's state."""
    import torch

    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest


def device_of(module: "torch.nn.Module") -> "torch.device":
    """Where `module` computes. Offloaded weights lie elsewhere, or nowhere, until they are used:
    a hook of accelerate, on the module or within it, or one of diffusers says where to."""
    import torch
    from diffusers.models.modeling_utils import get_parameter_device

    for part in module.modules():
        device = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    return get_parameter_device(module)


def compute_dtype(module: "torch.nn.Module") -> "torch.dtype":
    """What `module` computes in; diffusers' layerwise casting keeps its weights in fewer bits."""
    from diffusers.models.modeling_utils import get_parameter_dtype

    return get_parameter_dtype(module)
