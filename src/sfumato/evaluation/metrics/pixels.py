"""What can be said of images from their pixels alone."""

import torch
from torch import Tensor

HALF_NYQUIST = 0.25
"""Cycles a pixel: half of the highest frequency that a row of pixels can hold, 0.5."""


def saturated_shares(images: Tensor) -> Tensor:
    """Share of values at 0 or 255 in each of uint8 `images` (N, C, H, W): (N,) float64.

    Burnt or drowned pixels. `ValueError` for other images, or none.
    """
    _check_images(images, "saturated_shares")
    return ((images == 0) | (images == 255)).double().flatten(1).mean(dim=1)


def brightness(images: Tensor) -> Tensor:
    """Mean of all values of each of uint8 `images` (N, C, H, W): (N,) float64 in [0, 1].

    `ValueError` for other images, or none.
    """
    _check_images(images, "brightness")
    return (images.double() / 255).flatten(1).mean(dim=1)


def border_rms(images: Tensor, border_px: int = 4) -> Tensor:
    """Root mean square of the outer `border_px` pixels of uint8 `images` (N, C, H, W), as (N,)
    float64 in [0, 1]: 0 is black, 1 white.

    What a model leaves where the data are blank: grain, and grey, which `border_deviation` leaves
    out. `ValueError` for other images, none, or a border that leaves no middle.
    """
    return _border(images, border_px, "border_rms").square().mean(dim=1).sqrt()


def border_deviation(images: Tensor, border_px: int = 4) -> Tensor:
    """As `border_rms`, about the border's own mean: grain without an even grey."""
    return _border(images, border_px, "border_deviation").std(dim=1, correction=0)


def high_frequency_shares(images: Tensor, *, above: float = HALF_NYQUIST) -> Tensor:
    """Share of spectral power at radial frequencies over `above` cycles a pixel: (N,) float64 in
    [0, 1], of uint8 `images` (N, C, H, W), all channels together.

    The power |DFT|^2 without the constant term, so that neither brightness nor contrast counts:
    an image and its copy stretched to another range have the same share. The radius is
    sqrt(fx^2 + fy^2) up to sqrt(1/2); white noise has the share of such frequencies, about
    1 - pi/16 * (above / 0.25)^2. An even image has no power and the share 0.
    `ValueError` for other images, or none.
    """
    _check_images(images, "high_frequency_shares")
    height, width = images.shape[-2:]
    power = torch.fft.fft2(images.double() / 255).abs().square().sum(dim=1)
    power[:, 0, 0] = 0
    high = high_frequencies(height, width, above=above).to(images.device)
    # An even image's other terms are rounding errors of the constant one.
    total = power.sum(dim=(1, 2))
    share = (power * high).sum(dim=(1, 2)) / total
    return torch.where(total > 1e-12 * (height * width) ** 2, share, torch.zeros_like(share))


def high_frequencies(height: int, width: int, *, above: float = HALF_NYQUIST) -> Tensor:
    """(H, W) bool: which terms of a discrete Fourier transform lie over `above` cycles a pixel."""
    rows = torch.fft.fftfreq(height, dtype=torch.float64)
    columns = torch.fft.fftfreq(width, dtype=torch.float64)
    return (rows[:, None].square() + columns.square()).sqrt() > above


def _border(images: Tensor, border_px: int, name: str) -> Tensor:
    """(N, pixels of the border) float64 in [0, 1]."""
    _check_images(images, name)
    height, width = images.shape[-2:]
    if not 0 < 2 * border_px < min(height, width):
        raise ValueError(f"a border of {border_px} pixels leaves no middle of {width}x{height}")
    outside = torch.ones(height, width, dtype=torch.bool, device=images.device)
    outside[border_px:-border_px, border_px:-border_px] = False
    return images[..., outside].double().flatten(1) / 255


def _check_images(images: Tensor, name: str) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.numel() == 0:
        raise ValueError(
            f"{name} takes uint8 (N, C, H, W), got {images.dtype} {tuple(images.shape)}"
        )
