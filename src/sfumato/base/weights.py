"""A hash of a network's weights, whatever file they came from."""

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
