"""What can be said of images from their pixels alone."""

import torch
from torch import Tensor


def saturated_shares(images: Tensor) -> Tensor:
    """Share of values at 0 or 255 in each of uint8 `images` (N, C, H, W): (N,) float64.

    Burnt or drowned pixels. `ValueError` for other images, or none.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.numel() == 0:
        raise ValueError(
            f"saturated_shares takes uint8 (N, C, H, W), got {images.dtype} {tuple(images.shape)}"
        )
    return ((images == 0) | (images == 255)).double().flatten(1).mean(dim=1)
