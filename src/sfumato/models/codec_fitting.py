"""A linear codec from images: principal components of their patches."""

from collections.abc import Iterable

import torch
from torch import Tensor

from sfumato.base.errors import ConfigError
from sfumato.models.codec import LinearCodec, patches_of

_LEAST_SHARE = 1e-9
"""A component of less than this share of the variance is rounding."""


def fit_linear_codec(images: Iterable[Tensor], *, factor: int, channels: int) -> LinearCodec:
    """The `channels` first principal components of all patches of batches of uint8 (B, C, H, W).

    Sums of whole numbers are exact in float64, so the order of the images changes no bit. A
    component's largest weight is positive. `InputError` for sides that `factor` does not divide,
    `ConfigError` for more components than the patches have.
    """
    count, total, products, image_channels = 0, torch.zeros(()), torch.zeros(()), 1
    for batch in images:
        image_channels = batch.shape[1]
        patches = patches_of(batch.cpu(), factor).flatten(0, 2).double()
        count += len(patches)
        total = total + patches.sum(0)
        products = products + patches.T @ patches
    mean = total / count
    covariance = (products / count - mean.outer(mean)) / 255**2
    values, vectors = torch.linalg.eigh(covariance)  # rising
    values, basis = values.flip(0), vectors.T.flip(0)
    vary = int((values > values.sum() * _LEAST_SHARE).sum())
    if channels > vary:
        raise ConfigError(
            f"codec.channels: patches of {factor} x {factor} x {image_channels} of these images "
            f"have {vary} components that vary, not {channels}.",
            hint=f"Choose at most {vary}.",
        )
    basis = basis[:channels]
    largest = basis.gather(1, basis.abs().argmax(1, keepdim=True))
    basis = basis * largest.sign()
    return LinearCodec(
        factor=factor,
        image_channels=image_channels,
        basis=tuple(tuple(row) for row in basis.tolist()),
        mean=tuple((mean / 255).tolist()),
        deviation=tuple(values[:channels].sqrt().tolist()),
    )
