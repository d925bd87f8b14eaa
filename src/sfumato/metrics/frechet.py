"""The Frechet distance between two Gaussians fitted to features (Heusel et al. 2017, Eq. 6)."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class FeatureStatistics:
    """`mean`: (D,), `covariance`: (D, D), both float64, of `count` rows."""

    mean: Tensor
    covariance: Tensor
    count: int


def feature_statistics(features: Tensor) -> FeatureStatistics:
    """Mean and unbiased covariance of `features` (N, D), N >= 2; `ValueError` if not finite."""
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features must be (N, D) with N >= 2, got {tuple(features.shape)}")
    values = features.double()
    if not bool(values.isfinite().all()):
        raise ValueError("features hold NaN or infinity")
    mean = values.mean(dim=0)
    centred = values - mean
    covariance = centred.T @ centred / (len(values) - 1)
    return FeatureStatistics(mean=mean, covariance=covariance, count=len(values))


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """|mu_a - mu_b|^2 + tr(A + B - 2 (A B)^(1/2)), in float64.

    The trace of the square root is the sum of the square roots of the eigenvalues of
    A^(1/2) B A^(1/2), which is symmetric, so singular covariances (N < D) are no problem.
    """
    values, vectors = torch.linalg.eigh(a.covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    inner = root @ b.covariance @ root
    root_trace = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp(min=0).sqrt().sum()
    distance = (
        (a.mean - b.mean).square().sum()
        + a.covariance.trace()
        + b.covariance.trace()
        - 2 * root_trace
    )
    return max(0.0, float(distance))
