"""How near an image is to the one it was made from, pixel by pixel: for codecs."""

import torch
import torch.nn.functional as F
from torch import Tensor

_WINDOW_PX, _SIGMA_PX = 11, 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
MOST_DB = 100.0
"""What equal images are given: their error is below that of one pixel of 12 million."""


def psnr(images: Tensor, originals: Tensor) -> Tensor:
    """(N,) in dB of uint8 (N, C, H, W): 10 log10 of 255^2 over the mean squared error, at most
    `MOST_DB`. `ValueError` for two shapes or other types."""
    _check_pairs(images, originals)
    squares = (images.double() - originals.double()).square().flatten(1).mean(1)
    return (10 * (255**2 / squares).log10()).clamp(max=MOST_DB)


def ssim(images: Tensor, originals: Tensor) -> Tensor:
    """(N,) structural similarity of uint8 (N, C, H, W), 1 for equal images (Wang et al. 2004): the
    mean over channels and all whole windows, Gaussian of 1.5 pixels in 11 x 11, with 255 as range
    and moments divided by the weights' sum. Images with a side below 11 have a window as large as
    fits. `ValueError` as `psnr`.
    """
    _check_pairs(images, originals)
    x, y = (one.double().flatten(0, 1)[:, None] for one in (images, originals))
    kernel = _window(min(_WINDOW_PX, *images.shape[-2:])).to(x.device)

    def mean(values: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(values, kernel[None, None, :, None]), kernel[None, None, None, :])

    mean_x, mean_y = mean(x), mean(y)
    variance_x, variance_y = mean(x * x) - mean_x.square(), mean(y * y) - mean_y.square()
    covariance = mean(x * y) - mean_x * mean_y
    likeness = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
    likeness /= (mean_x.square() + mean_y.square() + _C1) * (variance_x + variance_y + _C2)
    return likeness.view(*images.shape[:2], -1).mean((1, 2))


def _window(size: int) -> Tensor:
    """(size,) float64: a Gaussian of sum 1."""
    places = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    kernel = torch.exp(-places.square() / (2 * _SIGMA_PX**2))
    return kernel / kernel.sum()


def _check_pairs(images: Tensor, originals: Tensor) -> None:
    for one in (images, originals):
        if one.dtype != torch.uint8 or one.ndim != 4 or one.numel() == 0:
            raise ValueError(f"takes uint8 (N, C, H, W), got {one.dtype} {tuple(one.shape)}")
    if images.shape != originals.shape:
        raise ValueError(f"no pairs: {tuple(images.shape)} and {tuple(originals.shape)}")
