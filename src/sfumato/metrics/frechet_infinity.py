"""The Frechet distance extrapolated to endlessly many images (Chong and Forsyth 2020)."""

from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from statistics import NormalDist

import torch
from torch import Tensor

from sfumato.metrics.checks import check_same_width, checked_features
from sfumato.metrics.frechet import above_rounding, covariance_root, frechet_to
from sfumato.metrics.moments import FeatureMoments, FeatureStatistics, feature_statistics

FEWEST_PARTS = 3
"""A line through two points fits without error, so nothing could be said of its own."""


@dataclass(frozen=True, kw_only=True)
class FrechetInfinity:
    """`value`: the line's height at 1 / N = 0, with the interval that holds at `confidence`.

    `distances[i]` is the mean distance of sub-samples of `sizes[i]` rows, `slope` that of the line
    over 1 / N. The interval joins two independent errors: `sampling_error` of the images drawn
    and `fit_error` of the line. `value` may be a little below 0 for sets that are alike.
    """

    value: float
    low: float
    high: float
    confidence: float
    count: int
    sizes: tuple[int, ...]
    distances: tuple[float, ...]
    slope: float
    sampling_error: float
    fit_error: float


def frechet_infinity(
    features: Tensor,
    reference: FeatureStatistics,
    *,
    generator: torch.Generator,
    parts: int = 5,
    confidence: float = 0.95,
) -> FrechetInfinity:
    """Fit distance = value + slope / N over sub-samples of `features` (N, D), and take `value`.

    Shuffled by `generator` (of the CPU), the rows are cut into 1, 2, ... `parts` equal parts, and
    the distances of the parts of one cut are averaged: 15 distances for 5 parts, as in Chong and
    Forsyth (2020, section 4). Differs from the paper: its 15 sub-samples are drawn at random with
    sizes even in N; here each cut holds every row once and sizes are even in 1 / N, so the points
    share their sampling noise, and the line's bend is seen best. The smallest parts, of
    N / `parts` rows, should have at least D rows: below, the distance is no line in 1 / N.

    `reference` is taken as exact: its own bias, a constant / count, stays in `value`.
    `ValueError` for less than 2 x `parts` rows, less than 3 parts, unequal D, NaN.
    """
    if parts < FEWEST_PARTS:
        raise ValueError(f"a line and its error need at least {FEWEST_PARTS} parts, got {parts}")
    features = checked_features(features, rows=2 * parts)
    check_same_width(features, reference.mean)
    reference = reference.to(features.device)
    count = len(features)
    order = torch.randperm(count, generator=generator).to(features.device)
    cuts = sorted({_cut(count, part, of) for of in range(1, parts + 1) for part in range(of + 1)})
    segments = {(low, high): _moments(features[order[low:high]]) for low, high in pairwise(cuts)}
    root = covariance_root(reference)
    distances = []
    for of in range(1, parts + 1):
        bounds = pairwise(_cut(count, part, of) for part in range(of + 1))
        joined = [_join(segments, low, high) for low, high in bounds]
        distances.append(sum(frechet_to(s, reference, root=root) for s in joined) / of)
    height, slope, fit_error = _line([of / count for of in range(1, parts + 1)], distances)
    error = frechet_sampling_error(features, reference)
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * sqrt(error**2 + fit_error**2)
    return FrechetInfinity(
        value=height,
        low=height - half,
        high=height + half,
        confidence=confidence,
        count=count,
        sizes=tuple(count // of for of in range(1, parts + 1)),
        distances=tuple(distances),
        slope=slope,
        sampling_error=error,
        fit_error=fit_error,
    )


def frechet_sampling_error(features: Tensor, reference: FeatureStatistics) -> float:
    """Standard error of the distance of `features` (N, D) from `reference`, to first order.

    Rippl, Munk and Sturm (2016, Theorem 2.2), one-sample case. With B the covariance of the
    features, A = F F^T the reference's and T = F (F^T B F)^(-1/2) F^T the transport from B to A,
    one more row at x moves the distance by 2 (mu - mu_A).(x - mu) + (x - mu)^T (I - T) (x - mu)
    less its mean; the error is that move's standard deviation over sqrt(N). It is 0 to first
    order where both sets have the same distribution.
    """
    own = feature_statistics(features)
    root = covariance_root(reference)
    inner = root.T @ own.covariance @ root
    values, vectors = torch.linalg.eigh((inner + inner.T) / 2)
    kept = above_rounding(values)
    half_transport = root @ vectors[:, kept] * values[kept].pow(-0.25)
    moves = []
    for rows in features.split(4096):
        centred = rows.double() - own.mean
        moves.append(
            2 * centred @ (own.mean - reference.mean)
            + centred.square().sum(dim=1)
            - (centred @ half_transport).square().sum(dim=1)
        )
    return float(torch.cat(moves).std()) / sqrt(own.count)


def _cut(count: int, part: int, of: int) -> int:
    return count * part // of


def _moments(features: Tensor) -> FeatureMoments:
    moments = FeatureMoments(features.shape[1], device=features.device)
    moments.update(features)
    return moments


def _join(
    segments: dict[tuple[int, int], FeatureMoments], low: int, high: int
) -> FeatureStatistics:
    inside = [moments for (a, b), moments in segments.items() if low <= a and b <= high]
    whole = FeatureMoments(inside[0].dim, device=inside[0].device)
    for moments in inside:
        whole.merge(moments)
    return whole.statistics()


def _line(x: list[float], y: list[float]) -> tuple[float, float, float]:
    """Least squares: height at 0, slope, standard error of the height."""
    n = len(x)
    mean_x, mean_y = sum(x) / n, sum(y) / n
    spread = sum((a - mean_x) ** 2 for a in x)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
    height = mean_y - slope * mean_x
    rest = sum((b - height - slope * a) ** 2 for a, b in zip(x, y, strict=True)) / (n - 2)
    return height, slope, sqrt(rest * (1 / n + mean_x**2 / spread))
