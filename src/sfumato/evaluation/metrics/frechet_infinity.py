"""The Frechet distance extrapolated to endlessly many images (Chong and Forsyth 2020)."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import hypot
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from sfumato.base.randomness import generator_for
from sfumato.evaluation.metrics.checks import check_same_width, checked_features, checked_pair
from sfumato.evaluation.metrics.features import ImageFeatures
from sfumato.evaluation.metrics.frechet import frechet_sampling_error, frechet_to
from sfumato.evaluation.metrics.intervals import Estimate
from sfumato.evaluation.metrics.moments import (
    FeatureMoments,
    FeatureStatistics,
    covariance_root,
    feature_statistics,
)
from sfumato.evaluation.metrics.registry import Metric, Score

DEFAULT_PARTS = 5
FEWEST_PARTS = 3
"""A line through two points fits without error, so nothing could be said of its own."""


@dataclass(frozen=True, kw_only=True)
class FrechetInfinity(Estimate):
    """`value`: the line's height at 1 / N = 0.

    `distances[i]` is the mean distance of sub-samples of `sizes[i]` rows, `slope` that of the line
    over 1 / N. The interval joins two independent errors: `sampling_error` of the images drawn
    and `fit_error` of the line. `value` may be a little below 0 for sets that are alike.
    """

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

    `reference` is taken as exact: its own bias, a constant / count, stays in `value`. For the few
    real images of a small test set take `frechet_infinity_of_both`.
    `ValueError` for less than 2 x `parts` rows, less than 3 parts, unequal D, NaN.
    """
    features = checked_features(features, rows=2 * parts)
    check_same_width(features, reference.mean)
    reference = reference.to(features.device)
    cuts = _Cuts(features, parts=parts, generator=generator)
    root = covariance_root(reference)
    return _extrapolated(
        [
            sum(frechet_to(part, reference, root=root) for part in cuts.parts(of)) / of
            for of in range(1, parts + 1)
        ],
        count=len(features),
        sampling_error=frechet_sampling_error(features, reference),
        confidence=confidence,
    )


def frechet_infinity_of_both(
    generated: Tensor,
    reference: Tensor,
    *,
    generator: torch.Generator,
    parts: int = 5,
    confidence: float = 0.95,
) -> FrechetInfinity:
    """`frechet_infinity` with the bias of a small reference taken out as well.

    Differs from the paper: `reference` (M, D) is cut along with `generated` (N, D), part beside
    part, so the line runs to endless rows of both; its error holds both draws. `sizes` are those
    of `generated`. An equal set is no fair partner: both must be drawn apart. One eigenvalue
    decomposition more for each distance. Errors as `frechet_infinity`, for either set.
    """
    generated, reference = checked_pair(generated, reference, rows=2 * parts)
    ours = _Cuts(generated, parts=parts, generator=generator)
    theirs = _Cuts(reference, parts=parts, generator=generator)
    return _extrapolated(
        [
            sum(
                frechet_to(a, b, root=covariance_root(b))
                for a, b in zip(ours.parts(of), theirs.parts(of), strict=True)
            )
            / of
            for of in range(1, parts + 1)
        ],
        count=len(generated),
        sampling_error=hypot(
            frechet_sampling_error(generated, feature_statistics(reference)),
            frechet_sampling_error(reference, feature_statistics(generated)),
        ),
        confidence=confidence,
    )


class _Cuts:
    """Shuffled rows, measured once between all places where 1 to `parts` equal parts are cut."""

    def __init__(self, features: Tensor, *, parts: int, generator: torch.Generator) -> None:
        if parts < FEWEST_PARTS:
            raise ValueError(
                f"a line and its error need at least {FEWEST_PARTS} parts, got {parts}"
            )
        self._count = len(features)
        order = torch.randperm(len(features), generator=generator).to(features.device)
        places = sorted({place for of in range(1, parts + 1) for place in self._places(of)})
        self._segments: dict[tuple[int, int], FeatureMoments] = {}
        for low, high in pairwise(places):
            moments = FeatureMoments(features.shape[1], device=features.device)
            moments.update(features[order[low:high]])
            self._segments[low, high] = moments

    def parts(self, of: int) -> Iterator[FeatureStatistics]:
        """The statistics of each of `of` equal parts."""
        for low, high in pairwise(self._places(of)):
            inside = [m for (a, b), m in self._segments.items() if low <= a and b <= high]
            whole = FeatureMoments(inside[0].dim, block_rows=1, device=inside[0].device)
            for moments in inside:
                whole.merge(moments)
            yield whole.statistics()

    def _places(self, of: int) -> list[int]:
        return [self._count * part // of for part in range(of + 1)]


def _extrapolated(
    distances: list[float], *, count: int, sampling_error: float, confidence: float
) -> FrechetInfinity:
    """`distances[i]` is the mean over i + 1 parts of `count` rows."""
    from scipy.stats import linregress

    cuts = range(1, len(distances) + 1)
    line: Any = linregress([of / count for of in cuts], distances)
    height, fit_error = float(line.intercept), float(line.intercept_stderr)
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * hypot(sampling_error, fit_error)
    return FrechetInfinity(
        value=height,
        low=height - half,
        high=height + half,
        count=count,
        sizes=tuple(count // of for of in cuts),
        distances=tuple(distances),
        slope=float(line.slope),
        sampling_error=sampling_error,
        fit_error=fit_error,
    )


def frechet_infinity_score(generated: ImageFeatures, reference: ImageFeatures) -> Score | None:
    """None where the smallest part would have less rows than features: no line in 1 / N."""
    rows, others = generated.rows, reference.rows
    if min(len(rows), len(others)) < DEFAULT_PARTS * rows.shape[1]:
        return None
    seeded = generator_for("frechet infinity")
    found = frechet_infinity_of_both(rows, others, generator=seeded, parts=DEFAULT_PARTS)
    return Score(
        estimate=Estimate(value=found.value, low=found.low, high=found.high, count=found.count)
    )


FRECHET_INFINITY = Metric(
    name="frechet_infinity",
    title="N to inf",
    needs="features",
    compute=frechet_infinity_score,
    better="lower",
    interval=False,
    order=290,
)
