"""Confidence intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist, median

import torch


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
class Median:
    """The median of `count` values, with the interval [low, high] that holds at `confidence`."""

    value: float
    count: int
    low: float
    high: float
    confidence: float


def bootstrap_median(
    values: Sequence[float], *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Median:
    """Percentile bootstrap interval of a median (Efron 1979); the same for the same `seed`.

    `ValueError` for no values.
    """
    if not values:
        raise ValueError("no values have no median")
    count = len(values)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(count, (resamples, count), generator=generator)
    medians = torch.tensor(values, dtype=torch.float64)[drawn].quantile(0.5, dim=1)
    tail = (1 - confidence) / 2
    return Median(
        value=median(values),
        count=count,
        low=float(medians.quantile(tail)),
        high=float(medians.quantile(1 - tail)),
        confidence=confidence,
    )
