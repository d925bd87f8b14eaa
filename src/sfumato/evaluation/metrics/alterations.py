"""Real images altered a little: yardsticks for a distance whose size says nothing by itself."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def shifted(images: Tensor, *, pixels: float = 0.5) -> Tensor:
    """uint8 `images` (N, C, H, W) moved to the right by 0 to 1 `pixels`, between pixels linearly,
    the left edge repeated."""
    values = images.double()
    left = F.pad(values, (1, 0, 0, 0), mode="replicate")[..., :-1]
    return _as_uint8((1 - pixels) * values + pixels * left)


def with_noise(images: Tensor, *, deviation: float = 0.05, seed: int = 0) -> Tensor:
    """uint8 `images` (N, C, H, W) with normal noise; `deviation`: as a share of the range 0 to
    255."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(images.shape, generator=generator, dtype=torch.float64)
    return _as_uint8(images.double() + 255 * deviation * noise)


def blurred(images: Tensor, *, sigma_px: float = 1.5) -> Tensor:
    """uint8 `images` (N, C, H, W) under a Gaussian of `sigma_px`, cut at three sigma, the edges
    repeated."""
    reach = int(3 * sigma_px + 0.5)
    places = torch.arange(-reach, reach + 1, dtype=torch.float64)
    kernel = torch.exp(-places.square() / (2 * sigma_px**2))
    kernel /= kernel.sum()
    values = images.double().flatten(0, 1)[:, None]
    padded = F.pad(values, (reach, reach, reach, reach), mode="replicate")
    rows = F.conv2d(padded, kernel[None, None, None, :])
    return _as_uint8(
        F.conv2d(rows, kernel[None, None, :, None])[:, 0].unflatten(0, images.shape[:2])
    )


def _as_uint8(values: Tensor) -> Tensor:
    return values.round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True, kw_only=True)
class Alteration:
    """What is done to real images, and what that is called."""

    title: str
    alter: Callable[[Tensor], Tensor]


ALTERATIONS: dict[str, Alteration] = {
    "none": Alteration(title="real test", alter=lambda images: images),
    "shifted": Alteration(title="shift 0.5 px", alter=shifted),
    "noise": Alteration(title="noise 0.05", alter=with_noise),
    "blurred": Alteration(title="blur 1.5 px", alter=blurred),
}
"""The yardsticks of an evaluation; a new one is a function and an entry."""
