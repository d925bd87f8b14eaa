"""Values with their confidence intervals."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import hypot
from statistics import median

import torch
from torch import Tensor

from sfumato.evaluation.metrics.checks import checked_values
from sfumato.evaluation.metrics.shares import wilson_limits

MOST_INDICES = 2**22
"""Indices drawn at once for a bootstrap: 32 MB."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """`value` from `count` observations, with its 95 % interval [`low`, `high`] where it has one.

    `percent`: a share, printed in per cent. `details`: further numbers of the same computation.
    """

    value: float
    low: float | None = None
    high: float | None = None
    count: int | None = None
    percent: bool = False
    details: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        def number(value: float) -> str:
            return f"{100 * value:.1f}" if self.percent else f"{value:.4g}"

        text = number(self.value) + (" %" if self.percent else "")
        if self.low is None or self.high is None:
            return text
        return f"{text} ({number(self.low)} - {number(self.high)})"

    @property
    def interval(self) -> tuple[float, float]:
        """(`low`, `high`) of an estimate that has them."""
        assert self.low is not None
        assert self.high is not None
        return self.low, self.high

    @property
    def successes(self) -> int:
        """Of a share: how many of `count`."""
        return round(self.value * (self.count or 0))

    @property
    def half_width(self) -> float | None:
        """Half of the interval."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


def wilson(successes: int, count: int, *, confidence: float = 0.95) -> Estimate:
    """A proportion with Wilson's score interval (Wilson 1927).

    `ValueError` unless 0 <= successes <= count and count >= 1.
    """
    low, high = wilson_limits(successes, count, confidence=confidence)
    return Estimate(
        value=successes / count,
        low=low,
        high=high,
        count=count,
        percent=True,
    )


def difference_of_shares(first: Estimate, second: Estimate) -> Estimate:
    """first - second of two independent shares: Newcombe's interval (1998, Statistics in Medicine
    17:873, method 10), from Wilson's limits of both. Of pairs: `share_difference`."""
    (low, high), (other_low, other_high) = first.interval, second.interval
    value = first.value - second.value
    return Estimate(
        value=value,
        low=value - hypot(first.value - low, other_high - second.value),
        high=value + hypot(high - first.value, second.value - other_low),
        count=(first.count or 0) + (second.count or 0),
        percent=True,
    )


def bootstrap_median(
    values: Sequence[float], *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Estimate:
    """Percentile bootstrap interval of a median (Efron 1979); the same for the same `seed`.

    `ValueError` for no values.
    """
    if not values:
        raise ValueError("a median needs at least one value")
    observed = torch.tensor(values, dtype=torch.float64)
    medians = [
        observed[rows].quantile(0.5, dim=1)
        for rows in resampled(len(values), resamples=resamples, seed=seed)
    ]
    low, high = percentile_interval(torch.cat(medians), confidence=confidence)
    return Estimate(value=median(values), low=low, high=high, count=len(values))


def bootstrap_mean(
    values: Tensor, *, confidence: float = 0.95, resamples: int = 2_000, seed: int = 0
) -> Estimate:
    """Percentile bootstrap interval of the mean of `values` (N,); the same for the same `seed`.

    For a share of yes and no take `wilson`: a bootstrap of N times yes has no width.
    `ValueError` for no values or NaN.
    """
    values = checked_values(values)
    means = [
        values[rows].mean(dim=1) for rows in resampled(len(values), resamples=resamples, seed=seed)
    ]
    low, high = percentile_interval(torch.cat(means), confidence=confidence)
    return Estimate(value=float(values.mean()), low=low, high=high, count=len(values))


def resampled(count: int, *, resamples: int, seed: int) -> Iterator[Tensor]:
    """Indices (R, `count`) of draws with replacement, `resamples` in all, a few at a time.

    scipy.stats.bootstrap draws other numbers and holds all resamples at once.
    """
    generator = torch.Generator().manual_seed(seed)
    together = max(1, MOST_INDICES // count)
    for start in range(0, resamples, together):
        shape = (min(together, resamples - start), count)
        yield torch.randint(count, shape, generator=generator)


def percentile_interval(statistics: Tensor, *, confidence: float) -> tuple[float, float]:
    """The middle `confidence` of `statistics` (R,)."""
    tail = (1 - confidence) / 2
    return float(statistics.quantile(tail)), float(statistics.quantile(1 - tail))


def macro_mean(
    values: Tensor, labels: Tensor, *, resamples: int = 2_000, seed: int = 0
) -> Estimate:
    """Mean over classes of the mean of each class's `values` (N,), `labels` (N,) int64: of right
    and wrong answers the macro-averaged accuracy. Percentile bootstrap within each class.

    `ValueError` for no values or NaN.
    """
    values = checked_values(values)
    classes = labels.unique().tolist()
    means, observed = torch.zeros(resamples, dtype=torch.float64), 0.0
    for number, label in enumerate(classes):
        own = values[labels == label]
        draws = [
            own[rows].mean(dim=1)
            for rows in resampled(len(own), resamples=resamples, seed=seed + number)
        ]
        means += torch.cat(draws) / len(classes)
        observed += float(own.mean()) / len(classes)
    low, high = percentile_interval(means, confidence=0.95)
    return Estimate(value=observed, low=low, high=high, count=len(values), percent=True)
