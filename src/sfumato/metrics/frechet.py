"""The Frechet distance between two Gaussians fitted to features (Heusel et al. 2017, Eq. 6)."""

import torch
from torch import Tensor

from sfumato.metrics.checks import check_same_width
from sfumato.metrics.moments import FeatureMoments, FeatureStatistics, feature_statistics

__all__ = [
    "FeatureMoments",
    "FeatureStatistics",
    "above_rounding",
    "covariance_root",
    "feature_statistics",
    "frechet_distance",
    "frechet_to",
]


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """|mu_a - mu_b|^2 + tr(A + B - 2 (A B)^(1/2)) in float64: never negative, never NaN.

    Its expectation over N rows lies above that of all rows by about a constant / N, so it is
    compared at equal N only, or extrapolated (`frechet_infinity`). `ValueError` for unequal D.
    """
    check_same_width(a.mean, b.mean)
    if a.count > b.count:
        a, b = b, a
    return max(0.0, frechet_to(b.to(a.mean.device), a, root=covariance_root(a)))


def covariance_root(statistics: FeatureStatistics) -> Tensor:
    """F (D, R) with F F^T = covariance, R its rank: at most count - 1, so small for few rows."""
    values, vectors = torch.linalg.eigh(statistics.covariance)
    kept = above_rounding(values)
    return vectors[:, kept] * values[kept].sqrt()


def above_rounding(eigenvalues: Tensor) -> Tensor:
    """Which of `eigenvalues` (D,), ascending and D >= 0, are more than rounding of the largest."""
    rounding = eigenvalues[-1:] * len(eigenvalues) * torch.finfo(torch.float64).eps
    return eigenvalues > rounding.clamp(min=0)


def frechet_to(
    generated: FeatureStatistics, reference: FeatureStatistics, *, root: Tensor
) -> float:
    """The distance with `root` = `covariance_root(reference)` already known; may round below 0.

    With A = F F^T, the trace of (A B)^(1/2) is the sum of the square roots of the eigenvalues of
    the symmetric F^T B F. Of these, count - 1 can differ from 0; the others, whose square roots
    would turn rounding of 1e-16 into 1e-8, are left out.
    """
    inner = root.T @ generated.covariance @ root
    eigenvalues = torch.linalg.eigvalsh((inner + inner.T) / 2).flip(0)[: generated.count - 1]
    distance = (
        (generated.mean - reference.mean).square().sum()
        + generated.covariance.trace()
        + reference.covariance.trace()
        - 2 * eigenvalues.clamp(min=0).sqrt().sum()
    )
    return float(distance)
