"""What a person could want of a picture of a digit, as pure functions of its pixels."""

from collections.abc import Callable

import torch
from torch import Tensor

Attribute = Callable[[Tensor], Tensor]
"""uint8 (N, C, H, W) to float64 (N,)."""


def ink(images: Tensor) -> Tensor:
    """float64 (N, H, W) in [0, 1]: how far each pixel is from the mean of the image's border."""
    grey = images.double().mean(1) / 255
    inner = torch.zeros(grey.shape[1:], dtype=torch.bool)
    inner[1:-1, 1:-1] = True
    return (grey - grey[:, ~inner].mean(1)[:, None, None]).abs()


def slant(images: Tensor) -> Tensor:
    """Degrees by which strokes lean to the right, by second moments; 0 of an empty image."""
    weights = ink(images)
    _, height, width = weights.shape
    y = torch.arange(height, dtype=torch.float64)[:, None]
    x = torch.arange(width, dtype=torch.float64)[None, :]
    total = weights.sum((1, 2)).clamp_min(1e-12)
    dx = x - ((weights * x).sum((1, 2)) / total)[:, None, None]
    dy = y - ((weights * y).sum((1, 2)) / total)[:, None, None]
    shear = (weights * dx * dy).sum((1, 2)) / (weights * dy * dy).sum((1, 2)).clamp_min(1e-12)
    return torch.rad2deg(torch.arctan(-shear))  # y counts downwards


def stroke_width(images: Tensor) -> Tensor:
    """Pixels: twice the ink over the length of its outline, whatever the brightness. Of a bar of
    w x l pixels it is w l / (w + l), nearly w of a long one; 0 of an empty image."""
    weights = ink(images)
    padded = torch.nn.functional.pad(weights, (1, 1, 1, 1))
    outline = sum(padded.diff(dim=dim).abs().sum((1, 2)) for dim in (1, 2))
    return 2 * weights.sum((1, 2)) / torch.as_tensor(outline).clamp_min(1e-12)


def brightness(images: Tensor) -> Tensor:
    """Mean ink of the ink, 0 to 1: of one value it is that value; 0 of an empty image."""
    weights = ink(images)
    return weights.square().sum((1, 2)) / weights.sum((1, 2)).clamp_min(1e-12)


CLASS = "class"
"""Names the log odds that a classifier gives the class (or style) that was asked for."""
ATTRIBUTES: dict[str, Attribute] = {
    "slant": slant,
    "stroke": stroke_width,
    "brightness": brightness,
}


def attributes_of(
    images: Tensor, names: tuple[str, ...], likelihood: Attribute | None = None
) -> Tensor:
    """float64 (N, A) of uint8 (N, C, H, W); `likelihood` is what `CLASS` names."""
    known = ATTRIBUTES if likelihood is None else {**ATTRIBUTES, CLASS: likelihood}
    return torch.stack([known[name](images) for name in names], dim=1)
