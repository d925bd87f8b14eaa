"""Confidence intervals."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import hypot, sqrt
from statistics import NormalDist, median

import torch
from torch import Tensor

from sfumato.evaluation.metrics.checks import checked_values

MOST_INDICES = 2**22
"""Indices drawn at once for a bootstrap: 32 MB."""


@dataclass(frozen=True, kw_only=True)
class Proportion:
    """`successes` of `count`, with the interval [low, high] that holds at `confidence`."""

    successes: int
    count: int
    low: float
    high: float
    confidence: float

    @property
    def value(self) -> float:
        return self.successes / self.count


def wilson(successes: int, count: int, *, confidence: float = 0.95) -> Proportion:
    """Wilson's score interval of a proportion (Wilson 1927).

    `ValueError` unless 0 <= successes <= count and count >= 1.
    """
    if not 0 <= successes <= count or count < 1:
        raise ValueError(f"{successes} of {count} is no proportion: 0 <= k <= n, n >= 1")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * sqrt(share * (1 - share) / count + z * z / (4 * count**2)) / (1 + z * z / count)
    return Proportion(
        successes=successes,
        count=count,
        low=0.0 if successes == 0 else centre - half,
        high=1.0 if successes == count else centre + half,
        confidence=confidence,
    )


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """`value` from `count` observations, with the interval [low, high] at `confidence`."""

    value: float
    low: float
    high: float
    count: int
    confidence: float


def difference_of_shares(first: Proportion, second: Proportion) -> Estimate:
    """first - second of two independent shares: Newcombe's interval (1998, Statistics in Medicine
    17:873, method 10), from Wilson's limits of both. Of pairs: `share_difference`."""
    value = first.value - second.value
    return Estimate(
        value=value,
        low=value - hypot(first.value - first.low, second.high - second.value),
        high=value + hypot(first.high - first.value, second.value - second.low),
        count=first.count + second.count,
        confidence=first.confidence,
    )


class Median(Estimate):
    """The median of `count` values."""


def bootstrap_median(
    values: Sequence[float], *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Median:
    """Percentile bootstrap interval of a median (Efron 1979); the same for the same `seed`.

    `ValueError` for no values.
    """
    if not values:
        raise ValueError("no values have no median")
    observed = torch.tensor(values, dtype=torch.float64)
    medians = [
        observed[drawn].quantile(0.5, dim=1)
        for drawn in resampled(len(values), resamples=resamples, seed=seed)
    ]
    low, high = percentile_interval(torch.cat(medians), confidence=confidence)
    return Median(
        value=median(values), low=low, high=high, count=len(values), confidence=confidence
    )


def bootstrap_mean(
    values: Tensor, *, confidence: float = 0.95, resamples: int = 2_000, seed: int = 0
) -> Estimate:
    """Percentile bootstrap interval of the mean of `values` (N,); the same for the same `seed`.

    For a share of yes and no take `wilson`: a bootstrap of N times yes has no width.
    `ValueError` for no values or NaN.
    """
    values = checked_values(values)
    means = [
        values[drawn].mean(dim=1)
        for drawn in resampled(len(values), resamples=resamples, seed=seed)
    ]
    low, high = percentile_interval(torch.cat(means), confidence=confidence)
    return Estimate(
        value=float(values.mean()), low=low, high=high, count=len(values), confidence=confidence
    )


def resampled(count: int, *, resamples: int, seed: int) -> Iterator[Tensor]:
    """Indices (R, `count`) of draws with replacement, `resamples` in all, a few at a time."""
    generator = torch.Generator().manual_seed(seed)
    together = max(1, MOST_INDICES // count)
    for start in range(0, resamples, together):
        shape = (min(together, resamples - start), count)
        yield torch.randint(count, shape, generator=generator)


def percentile_interval(statistics: Tensor, *, confidence: float) -> tuple[float, float]:
    """The middle `confidence` of `statistics` (R,)."""
    tail = (1 - confidence) / 2
    return float(statistics.quantile(tail)), float(statistics.quantile(1 - tail))
