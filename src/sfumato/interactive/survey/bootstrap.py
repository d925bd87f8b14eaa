"""Intervals over people and pictures.

Answers of one person are alike, and so are answers about one picture, so a binomial interval of
all answers is far too narrow: it finds differences between equal models in a quarter of all
surveys. People and pictures are both drawn anew here.

Drawing both at once gives each answer the product of two weights. Its variance holds the noise of
single answers three times (Owen 2007, "The pigeonhole bootstrap"), where once is right. The same
draws give the parts: people alone, pictures alone, and what the two have in common, and

    variance = people + pictures - common                     (Cameron, Gelbach and Miller 2011)

has it once. It is never below the noise of single answers, which the true variance is not either.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

RESAMPLES = 1_000
_NO_VARIANCE = 1e-18
"""What is below it is rounding: answers are worth between 0 and 7."""
Array: TypeAlias = np.ndarray
Statistic = Callable[[Array, Array], Array]
"""From totals (..., G) and counts (..., G) of the answers of each group to values (..., M)."""


@dataclass(frozen=True, eq=False)
class Answers:
    """Valued answers, one a row: `person`, `item` and `group` (N,) are numbers from 0, `value`
    (N,) float64. A group is what has a mean: a model, or a pair of models."""

    person: Array
    item: Array
    group: Array
    value: Array
    groups: int

    def __len__(self) -> int:
        return len(self.value)

    def where(self, rows: Array) -> "Answers":
        """Some of the rows."""
        return Answers(
            self.person[rows], self.item[rows], self.group[rows], self.value[rows], self.groups
        )

    def tables(self) -> tuple[Array, Array]:
        """Totals and counts (G, P, I) of the people and items that have answers."""
        people, person = np.unique(self.person, return_inverse=True)
        items, item = np.unique(self.item, return_inverse=True)
        shape = (self.groups, len(people), len(items))
        flat = np.ravel_multi_index((self.group, person, item), shape)
        size = int(np.prod(shape))
        totals = np.bincount(flat, self.value, minlength=size).reshape(shape)
        return totals, np.bincount(flat, minlength=size).reshape(shape).astype(np.float64)


@dataclass(frozen=True, eq=False)
class Crossed:
    """`value` (M,) with the standard `error` (M,) and degrees of freedom `df` (M,) of its t."""

    value: Array
    error: Array
    df: Array

    def limits(self, *, confidence: float = 0.95, share: bool = False) -> tuple[Array, Array]:
        """The interval, NaN where the error is. Of a `share` it is made on the scale of log odds,
        so that it stays between 0 and 1."""
        from scipy.special import expit, logit, stdtrit

        reach = stdtrit(self.df, (1 + confidence) / 2) * self.error
        if not share:
            return self.value - reach, self.value + reach
        inside = self.value.clip(1e-12, 1 - 1e-12)
        reach = reach / (inside * (1 - inside))
        return expit(logit(inside) - reach), expit(logit(inside) + reach)

    def p_values(self, null: float = 0.0, *, share: bool = False) -> Array:
        """Two-sided, of `value` = `null`; below 0.05 where the 95 % interval leaves it out. NaN
        where the error is."""
        from scipy.special import logit, stdtr

        distance, error = self.value - null, self.error
        if share:
            inside = self.value.clip(1e-12, 1 - 1e-12)
            distance, error = logit(inside) - logit(null), error / (inside * (1 - inside))
        return 2 * stdtr(self.df, -np.abs(distance) / error)

    def with_hidden(self, variance: Array) -> "Crossed":
        """With `variance` (M,) that the bootstrap does not see; NaN where it is not known."""
        return replace(self, error=np.sqrt(self.error**2 + variance))


def means(totals: Array, counts: Array) -> Array:
    """The mean of each group, NaN of one without answers."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return totals / counts


def crossed_bootstrap(
    answers: Answers,
    statistic: Statistic = means,
    *,
    resamples: int = RESAMPLES,
    rng: np.random.Generator,
) -> Crossed:
    """`statistic` of the answers with its standard error over people and items.

    `ValueError` for no answers. The error is NaN with fewer than two people or two items, and
    where nothing that is drawn changes the value: that is not known to be exact.
    """
    if not len(answers):
        raise ValueError("there are no answers")
    totals, counts = answers.tables()
    people, items = totals.shape[1:]
    value = statistic(totals.sum((1, 2)), counts.sum((1, 2)))
    if people < 2 or items < 2:
        unknown = np.full_like(value, np.nan)
        return Crossed(value, unknown, unknown)
    of_people = rng.multinomial(people, np.full(people, 1 / people), resamples).astype(float)
    of_items = rng.multinomial(items, np.full(items, 1 / items), resamples).astype(float)
    by_person = _moved(statistic, totals.sum(2), counts.sum(2), of_people) - value
    by_item = _moved(statistic, totals.sum(1), counts.sum(1), of_items) - value
    both = statistic(*(_weighted(table, of_people, of_items) for table in (totals, counts)))
    common = both - value - by_person - by_item
    # The bootstrap of n draws has (n - 1) / n of the variance.
    first, second = people / (people - 1), items / (items - 1)
    parts = [_variance(by_person) * first, _variance(by_item) * second]
    noise = _variance(common) * first * second
    variance = np.maximum(parts[0] + parts[1] - noise, noise)
    error = np.sqrt(np.where(variance > _NO_VARIANCE, variance, np.nan))
    return Crossed(value, error, _degrees(variance, parts, (people, items)))


def _moved(statistic: Statistic, totals: Array, counts: Array, weights: Array) -> Array:
    """The statistic of each resample (R, M); totals and counts (G, n), weights (R, n)."""
    return statistic(weights @ totals.T, weights @ counts.T)


def _weighted(table: Array, of_people: Array, of_items: Array) -> Array:
    """(R, G): the sum of each group's table (P, I) with products of weights."""
    return np.stack([((of_people @ one) * of_items).sum(1) for one in table], axis=1)


def _variance(values: Array) -> Array:
    """Over resamples (R, M), but those in which a group had no answers."""
    there = np.isfinite(values)
    count = there.sum(0)
    kept = np.where(there, values, 0.0)
    mean = kept.sum(0) / np.maximum(count, 1)
    return (np.where(there, values - mean, 0.0) ** 2).sum(0) / np.maximum(count - 1, 1)


def _degrees(variance: Array, parts: list[Array], sizes: tuple[int, int]) -> Array:
    """Satterthwaite's, of a sum of two variances with sizes - 1 degrees each."""
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = [(part / variance) ** 2 / (n - 1) for part, n in zip(parts, sizes, strict=True)]
        df = 1 / (shares[0] + shares[1])
    return np.where(np.isfinite(df), df, min(sizes) - 1)
