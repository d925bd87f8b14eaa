"""Is one model better than another on the same seeds and captions? Tests for paired results."""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from sfumato.evaluation.metrics.checks import checked_values
from sfumato.evaluation.metrics.intervals import Estimate, percentile_interval, resampled, wilson


@dataclass(frozen=True, kw_only=True)
class McNemar:
    """`only_first` and `only_second`: pairs that just one of the two got right, of `count`."""

    only_first: int
    only_second: int
    count: int
    p_value: float


def mcnemar(first: Tensor, second: Tensor) -> McNemar:
    """McNemar's test (1947) of paired right and wrong, two-sided, by the exact binomial.

    `first` (N,) and `second` (N,) bool: pair i is the same seed and caption. `ValueError` for
    unequal lengths, no pairs, no bools.
    """
    from scipy.stats import binomtest

    if first.dtype != torch.bool or second.dtype != torch.bool:
        raise ValueError(f"mcnemar takes bool, got {first.dtype} and {second.dtype}")
    if first.ndim != 1 or first.shape != second.shape or len(first) == 0:
        raise ValueError(
            f"{tuple(first.shape)} and {tuple(second.shape)} are not pairs: (N,) twice, N >= 1"
        )
    only_first = int((first & ~second).sum())
    only_second = int((second & ~first).sum())
    differ = only_first + only_second
    return McNemar(
        only_first=only_first,
        only_second=only_second,
        count=len(first),
        p_value=float(binomtest(only_first, differ).pvalue) if differ else 1.0,
    )


def share_difference(first: Tensor, second: Tensor, *, confidence: float = 0.95) -> Estimate:
    """share(first) - share(second) of paired right and wrong, (N,) bool each.

    Newcombe's interval (1998, Statistics in Medicine 17:2635, method 10: Wilson's limits and the
    pairs' correlation). It keeps a width where all are right, which a bootstrap does not.
    `ValueError` as `mcnemar`.
    """
    found = mcnemar(first, second)
    n, both = found.count, int((first & second).sum())
    right = [int(side.sum()) for side in (first, second)]
    a, b = (wilson(successes, n, confidence=confidence) for successes in right)
    (low, high), (other_low, other_high) = a.interval, b.interval
    neither = n - both - found.only_first - found.only_second
    cells = right[0] * (n - right[0]) * right[1] * (n - right[1])
    excess = both * neither - found.only_first * found.only_second
    if excess > 0:  # a continuity correction, of positive correlations alone
        excess = max(excess - n / 2, 0)
    phi = excess / sqrt(cells) if cells else 0.0

    def half(down: float, up: float) -> float:
        return sqrt(max(0.0, down**2 - 2 * phi * down * up + up**2))

    value = a.value - b.value
    return Estimate(
        value=value,
        low=value - half(a.value - low, other_high - b.value),
        high=value + half(high - a.value, b.value - other_low),
        count=n,
        percent=True,
    )


@dataclass(frozen=True, kw_only=True)
class PairedDifference(Estimate):
    """statistic(first) - statistic(second), with its interval.

    `p_value` (two-sided) is twice the share of resamples on the far side of 0, never below
    2 / (resamples + 1).
    """

    p_value: float


def row_means(values: Tensor) -> Tensor:
    """(R, N) => (R,)."""
    return values.mean(dim=1)


def paired_bootstrap(
    first: Tensor,
    second: Tensor,
    *,
    statistic: Callable[[Tensor], Tensor] = row_means,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> PairedDifference:
    """Percentile bootstrap of a difference, pairs drawn together (Efron and Tibshirani 1993).

    `first` (N,), `second` (N,): any value per image (a CLIP score, right or wrong, a distance),
    pair i of the same seed and caption. `statistic` maps resamples (R, N) to (R,); the mean
    unless given. The same for the same `seed`. `ValueError` for less than 2 pairs, unequal
    lengths, NaN.
    """
    first = checked_values(first, name="first")
    second = checked_values(second, name="second")
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(
            f"{len(first)} and {len(second)} values are not pairs: give as many of both, at least 2"
        )
    differences = torch.cat(
        [
            statistic(first[rows]) - statistic(second[rows])
            for rows in resampled(len(first), resamples=resamples, seed=seed)
        ]
    )
    low, high = percentile_interval(differences, confidence=confidence)
    beyond = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return PairedDifference(
        value=float(statistic(first[None])[0] - statistic(second[None])[0]),
        low=low,
        high=high,
        p_value=min(1.0, 2 * (beyond + 1) / (resamples + 1)),
        count=len(first),
    )
