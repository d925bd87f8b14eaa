"""What can be said of images from their pixels alone."""

import torch
from torch import Tensor


def saturated_share(images: Tensor) -> float:
    """Share of values at 0 or 255 in uint8 `images` of any shape: burnt or drowned pixels."""
    if images.dtype != torch.uint8 or images.numel() == 0:
        raise ValueError(f"saturated_share takes uint8 images, got {images.dtype} {images.shape}")
    return float(((images == 0) | (images == 255)).double().mean())
