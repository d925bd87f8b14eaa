"""The Frechet distance between two Gaussians fitted to features (Heusel et al. 2017, Eq. 6)."""

from math import sqrt

import torch
from torch import Tensor

from sfumato.evaluation.metrics.checks import check_same_width
from sfumato.evaluation.metrics.features import ImageFeatures
from sfumato.evaluation.metrics.intervals import Estimate
from sfumato.evaluation.metrics.moments import (
    FeatureStatistics,
    _above_rounding,
    covariance_root,
    feature_statistics,
)
from sfumato.evaluation.metrics.registry import Metric, Score

NORMAL_95 = 1.959964


# The distance ------------------------------------------------------------------------------------


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """|mu_a - mu_b|^2 + tr(A + B - 2 (A B)^(1/2)) in float64: never negative, never NaN.

    Its expectation over N rows lies above that of all rows by about a constant / N, so it is
    compared at equal N only, or extrapolated (`frechet_infinity`). `ValueError` for unequal D.
    """
    check_same_width(a.mean, b.mean)
    if a.count > b.count:
        a, b = b, a
    return max(0.0, frechet_to(b.to(a.mean.device), a, root=covariance_root(a)))


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


def frechet_score(generated: ImageFeatures, reference: ImageFeatures) -> Score:
    """The distance with its interval, which holds the error of the images sampled and not the bias
    of few of them."""
    root = reference.covariance_root
    distance = max(0.0, frechet_to(generated.statistics, reference.statistics, root=root))
    moves = frechet_influence(generated.rows, reference.statistics, root=root)
    half = NORMAL_95 * float(moves.std()) / len(generated) ** 0.5
    estimate = Estimate(
        value=distance, low=max(0.0, distance - half), high=distance + half, count=len(generated)
    )
    return Score(estimate=estimate, values=distance + moves)


FRECHET = Metric(
    name="frechet",
    title="Frechet",
    needs="features",
    compute=frechet_score,
    better="lower",
    baseline=True,
    order=200,
)
