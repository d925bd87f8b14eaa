"""Features in stages, with gradients to the images, of networks of transformers."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def transformer_stages(
    model: Any, size_px: int, mean: Sequence[float], std: Sequence[float]
) -> Callable[[Tensor], list[Tensor]]:
    """The states (B, D, tokens) after every layer of a vision transformer; images are squashed to
    `size_px` and normalised by `mean` and `std` of pixels in [0, 1]."""
    shape = (1, 3, 1, 1)

    def stages(images: Tensor) -> list[Tensor]:
        x = F.interpolate(images, (size_px, size_px), mode="bicubic", antialias=True)
        centre, spread = (torch.tensor(one, device=x.device).view(shape) for one in (mean, std))
        pixels = ((x + 1) / 2 - centre) / spread
        states = model(pixel_values=pixels, output_hidden_states=True).hidden_states
        return [one.transpose(1, 2) for one in states[1:]]

    return stages
