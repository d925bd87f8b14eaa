"""Measures of single images, and perturbations of real ones as baselines for a distance."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.evaluation.metrics.registry import Metric

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


def _border_of(images: Tensor, border_px: int) -> int:
    """`border_px` of MNIST's 28 pixels; of smaller images as much as leaves a middle."""
    return min(border_px, (min(images.shape[-2:]) - 1) // 2)


BORDER_PX, EDGE_PX = 4, 2
SATURATED = Metric(
    name="saturated",
    title="saturated",
    needs="pixels",
    per_image=saturated_shares,
    percent=True,
    digits=1,
    interval=False,
    real=True,
    order=30,
    about="saturated: share of pixel values at 0 or 255",
)
BRIGHTNESS = Metric(
    name="brightness",
    title="brightness (white is 1)",
    needs="pixels",
    per_image=brightness,
    default=False,
    real=True,
    order=105,
)
BORDER_RMS = Metric(
    name="border_rms",
    title=f"RMS of the outer {BORDER_PX} pixels (white is 1)",
    needs="pixels",
    per_image=lambda images: border_rms(images, _border_of(images, BORDER_PX)),
    default=False,
    real=True,
    order=101,
)
BORDER_DEVIATION = Metric(
    name="border_deviation",
    title=f"RMS of the outer {BORDER_PX} pixels about their mean",
    needs="pixels",
    per_image=lambda images: border_deviation(images, _border_of(images, BORDER_PX)),
    default=False,
    real=True,
    order=102,
)
EDGE_RMS = Metric(
    name="edge_rms",
    title=f"RMS of the outer {EDGE_PX} pixels (white is 1)",
    needs="pixels",
    per_image=lambda images: border_rms(images, _border_of(images, EDGE_PX)),
    default=False,
    real=True,
    order=103,
)
HIGH_FREQUENCY = Metric(
    name="high_frequency",
    title="power above half Nyquist, %",
    needs="pixels",
    per_image=high_frequency_shares,
    percent=True,
    digits=1,
    default=False,
    real=True,
    order=104,
)


# Perturbations -----------------------------------------------------------------------------------


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
class Perturbation:
    """What is done to real images, and what that is called."""

    title: str
    apply: Callable[[Tensor], Tensor]


PERTURBATIONS: dict[str, Perturbation] = {
    "none": Perturbation(title="real test", apply=lambda images: images),
    "shifted": Perturbation(title="shift 0.5 px", apply=shifted),
    "noise": Perturbation(title="noise 0.05", apply=with_noise),
    "blurred": Perturbation(title="blur 1.5 px", apply=blurred),
}
"""The perturbation baselines of an evaluation; a new one is a function and an entry."""
