"""What a codec loses: images that were encoded and decoded again, beside two simple codecs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.base.images import to_uint8
from sfumato.evaluation.extractors.extractor import FeatureExtractor, features_of
from sfumato.evaluation.metrics.fidelity import psnr, ssim
from sfumato.evaluation.metrics.frechet import frechet_distance
from sfumato.evaluation.metrics.intervals import bootstrap_mean
from sfumato.evaluation.metrics.moments import FeatureStatistics, feature_statistics
from sfumato.models.codec import LinearCodec

Recode = Callable[[Tensor], Tensor]
"""uint8 (B, C, H, W) there and back."""
_ROWS = 50


def through_bicubic(images: Tensor, *, factor: int, channels: int) -> Tensor:
    """uint8 images brought to the largest size of no more numbers than `channels` latents of
    `factor` x `factor` pixels hold, and back, both bicubic (antialiased downwards)."""
    size = bicubic_size(tuple(images.shape[1:]), factor=factor, channels=channels)
    small = F.interpolate(images.float(), size, mode="bicubic", antialias=True)
    return to_uint8(F.interpolate(small, images.shape[-2:], mode="bicubic"), (0.0, 255.0))


def bicubic_size(shape: tuple[int, ...], *, factor: int, channels: int) -> tuple[int, int]:
    """Height and width of images with as many numbers as the latents of images of `shape`, (C, H,
    W), or a few less."""
    colours, *sides = shape
    height, width = (max(1, isqrt(channels * side**2 // (colours * factor**2))) for side in sides)
    return height, width


@dataclass(frozen=True, kw_only=True)
class Reconstructed:
    """The real images, and what is known of them once: features by `extractor`."""

    images: Tensor
    extractor: FeatureExtractor
    statistics: FeatureStatistics

    @classmethod
    def of(cls, images: Tensor, extractor: FeatureExtractor) -> "Reconstructed":
        """Of uint8 images (N, C, H, W)."""
        statistics = feature_statistics(features_of(extractor, images.split(_ROWS)))
        return cls(images=images, extractor=extractor, statistics=statistics)

    def through(self, recode: Recode) -> Tensor:
        """What comes back of the images."""
        return torch.cat([recode(part).to(part.device) for part in self.images.split(_ROWS)])

    def measure(self, found: Tensor) -> dict[str, float]:
        """PSNR in dB, SSIM and the Frechet distance of what came back, to the originals."""
        near = {"psnr": psnr(found, self.images), "ssim": ssim(found, self.images)}
        features = feature_statistics(features_of(self.extractor, found.split(_ROWS)))
        return {**mean_figures(near), "frechet": frechet_distance(features, self.statistics)}


def mean_figures(values: Mapping[str, Tensor]) -> dict[str, float]:
    """Of values (N,) by name, the mean, and as NAME_half half of its 95 % interval."""
    record: dict[str, float] = {}
    for name, of_images in values.items():
        estimate = bootstrap_mean(of_images)
        record |= {name: estimate.value, f"{name}_half": estimate.half_width or 0.0}
    return record


def simple_codecs(linear: LinearCodec) -> Mapping[str, Recode]:
    """The two codecs that a learned one is measured beside: as many numbers an image."""
    size: dict[str, Any] = {"factor": linear.factor, "channels": len(linear.basis)}
    return {
        "pca": lambda images: linear.decode(linear.encode(images)),
        "bicubic": lambda images: through_bicubic(images, **size),
    }
