"""The Frechet distance between two Gaussians fitted to features (Heusel et al. 2017, Eq. 6)."""

from math import sqrt

import torch
from torch import Tensor

from sfumato.evaluation.metrics.checks import check_same_width
from sfumato.evaluation.metrics.moments import FeatureMoments, FeatureStatistics, feature_statistics

__all__ = [
    "FeatureMoments",
    "FeatureStatistics",
    "covariance_root",
    "feature_statistics",
    "frechet_distance",
    "frechet_influence",
    "frechet_sampling_error",
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
    kept = _above_rounding(values)
    return vectors[:, kept] * values[kept].sqrt()


def _above_rounding(eigenvalues: Tensor) -> Tensor:
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


def frechet_influence(
    features: Tensor, reference: FeatureStatistics, *, root: Tensor | None = None
) -> Tensor:
    """How each row of `features` (N, D) moves its distance from `reference`: (N,), mean 0.

    Rippl, Munk and Sturm (2016, Theorem 2.2), one-sample case. With B the covariance of the
    features, A = F F^T the reference's and T = F (F^T B F)^(-1/2) F^T the transport from B to A,
    one more row at x moves the distance by 2 (mu - mu_A).(x - mu) + (x - mu)^T (I - T) (x - mu)
    less its mean, times 1 / N. Their deviation over sqrt(N) is the distance's standard error to
    first order, 0 where both sets have the same distribution.

    `root`: `covariance_root(reference)` where it is known.
    """
    own = feature_statistics(features)
    root = covariance_root(reference) if root is None else root
    inner = root.T @ own.covariance @ root
    values, vectors = torch.linalg.eigh((inner + inner.T) / 2)
    kept = _above_rounding(values)
    half_transport = root @ vectors[:, kept] * values[kept].pow(-0.25)
    moves = []
    for rows in features.split(4096):
        centred = rows.double() - own.mean
        moves.append(
            2 * centred @ (own.mean - reference.mean)
            + centred.square().sum(dim=1)
            - (centred @ half_transport).square().sum(dim=1)
        )
    joined = torch.cat(moves)
    return joined - joined.mean()


def frechet_sampling_error(features: Tensor, reference: FeatureStatistics) -> float:
    """Standard error of the distance of `features` (N, D), to first order (`frechet_influence`)."""
    return float(frechet_influence(features, reference).std()) / sqrt(len(features))
