"""What the answers say: means and differences with intervals over people and pictures, strengths,
agreement; for all people, and for those who are kept."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from statistics import median
from typing import Any

import numpy as np

from sfumato.base.errors import InputError
from sfumato.base.words import counted
from sfumato.evaluation.metrics.intervals import Estimate
from sfumato.interactive.survey.answers import Session
from sfumato.interactive.survey.bootstrap import (
    RESAMPLES,
    Answers,
    Array,
    Crossed,
    Statistic,
    crossed_bootstrap,
    means,
)
from sfumato.interactive.survey.exclusions import Rules, of_kind, split, valued
from sfumato.interactive.survey.key import Key, title_of
from sfumato.interactive.survey.strengths import (
    alpha_interval,
    bradley_terry,
    is_connected,
    krippendorff_alpha,
    wins_of,
)
from sfumato.interactive.survey.unanimous import (
    exact_limits,
    hidden_variances,
    independent_answers,
    sign_test,
    unanimous_groups,
)


@dataclass(frozen=True, kw_only=True)
class Result:
    """An estimate with what it is of. `p_value`: that it is what chance gives, where that is known;
    `adjusted`: for all results of the same kind (Holm 1979)."""

    title: str
    estimate: Estimate
    p_value: float | None = None
    adjusted: float | None = None

    def plain(self) -> dict[str, Any]:
        return {**asdict(self), "estimate": asdict(self.estimate)}


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Of some of the people. `results` by kind: means, differences, strengths, errors."""

    people: int
    answers: int
    results: dict[str, list[Result]]
    agreement: dict[str, Estimate]

    def plain(self) -> dict[str, Any]:
        return {
            "people": self.people,
            "answers": self.answers,
            **{name: [one.plain() for one in of] for name, of in self.results.items()},
            "agreement": {name: asdict(one) for name, one in self.agreement.items()},
        }


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """`kept` and `everyone`: with and without exclusions; `excluded`: reasons by name; `simulated`:
    of a synthetic crowd."""

    key: Key
    rules: Rules
    kept: Findings | None
    everyone: Findings
    excluded: Mapping[str, list[str]]
    median_ms: float
    seed: int
    resamples: int
    simulated: bool


def analyse(
    key: Key,
    sessions: Sequence[Session],
    *,
    rules: Rules | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Analysis:
    """Everything that a survey says; the same for the same answers and `seed`. `InputError` where
    nobody has answered a question that counts."""
    rules = rules or Rules()
    kept, excluded = split(key, sessions, rules)
    began = [one for one in sessions if of_kind(key, one, "trial")]
    if not began:
        raise InputError(
            f"Nobody has answered a question that counts yet: {counted(len(sessions), 'form')} "
            "with answers to practice or attention checks alone.",
            hint="Wait for more answers, or give files of people who went on.",
        )
    times = [answer.ms for one in began for answer in of_kind(key, one, "trial")]
    return Analysis(
        key=key,
        rules=rules,
        kept=findings(key, kept, resamples=resamples, seed=seed) if kept else None,
        everyone=findings(key, began, resamples=resamples, seed=seed),
        excluded=excluded,
        median_ms=float(median(times)),
        seed=seed,
        resamples=resamples,
        simulated=all(one.simulated for one in began),
    )


def answers_of(key: Key, sessions: Sequence[Session]) -> Answers:
    """The trials that count, valued. A picture is an item; pictures of different models for the
    same caption are one item, as they share what is hard about it, and real ones are their own."""
    rows = []
    for person, session in enumerate(sessions):
        for answer in of_kind(key, session, "trial"):
            trial = key.trials[answer.trial]
            real = key.design.real and trial.arms[0] == len(key.arms) - 1
            item = trial.item + (key.settings.pictures if real else 0)
            rows.append((person, item, trial.group, valued(key, session, answer)))
    table = np.array(rows, dtype=np.float64).reshape(-1, 4)
    person, item, group = (table[:, place].astype(np.int64) for place in range(3))
    return Answers(person, item, group, table[:, 3], len(key.groups))


def findings(key: Key, sessions: Sequence[Session], *, resamples: int, seed: int) -> Findings:
    """Of some people; `ValueError` for no answers."""
    answers = answers_of(key, sessions)

    def crossed(statistic: Statistic) -> Crossed:
        return crossed_bootstrap(
            answers, statistic, resamples=resamples, rng=np.random.default_rng(seed)
        )

    results = {"means": means_of(key, answers, crossed(means))}
    if key.design.pair and len(key.arms) > 2:
        results["strengths"] = _strengths(key, answers, crossed)
    elif key.design.real:
        results["errors"] = _errors(key, answers, crossed)
    if not key.design.pair:
        results["differences"] = differences_of(key, answers, crossed)
    agreement = {}
    for question, word in enumerate(key.design.words):
        agreement[word or "answers"] = _agreement(key, answers, question, seed)
    return Findings(
        people=len(sessions), answers=len(answers), results=results, agreement=agreement
    )


# Results ------------------------------------------------------------------------------------------


def estimate(value: float, limits: Sequence[float], *, percent: bool) -> Estimate:
    """A value with its interval, where that is known."""
    low, high = (_known(limit) for limit in limits)
    return Estimate(value=float(value), low=low, high=high, percent=percent)


def means_of(key: Key, answers: Answers, found: Crossed) -> list[Result]:
    """Of the groups that have answers. A share of 0 or 1 has its exact interval and test."""
    share, null = key.design.share, key.design.null
    counts = np.bincount(answers.group, minlength=answers.groups).tolist()
    units, agreed = independent_answers(answers), unanimous_groups(answers)
    found = found.with_hidden(np.where(units < 2, np.nan, 0.0))
    limits = np.stack(found.limits(share=share), axis=1).tolist()
    p_values = found.p_values(null or 0.0, share=share)
    made = []
    for group in np.flatnonzero(counts).tolist():
        if share and agreed[group] and found.value[group] in (0.0, 1.0):
            limits[group] = exact_limits(found.value[group], units[group])
            p_values[group] = sign_test(units[group])
        value = estimate(found.value[group], limits[group], percent=share)
        p_value = _known(p_values[group]) if null is not None else None
        value = replace(value, count=counts[group])
        made.append(Result(title=title_of(key, group), estimate=value, p_value=p_value))
    return holm(made)


def differences_of(
    key: Key, answers: Answers, crossed: Callable[[Statistic], Crossed]
) -> list[Result]:
    """Between models, of the same question; first less second."""
    pairs = [
        (a, b)
        for a, b in combinations(range(len(key.groups)), 2)
        if key.groups[a].question == key.groups[b].question
    ]
    if not pairs:
        return []
    first, second = (np.array(side) for side in zip(*pairs, strict=True))

    def statistic(totals: Array, counts: Array) -> Array:
        values = means(totals, counts)
        return values[..., first] - values[..., second]

    hidden = hidden_variances(answers, share=key.design.share)
    return _tested(
        [f"{title_of(key, a)} less {key.arms[key.groups[b].arms[0]]}" for a, b in pairs],
        crossed(statistic).with_hidden(hidden[first] + hidden[second]),
        percent=key.design.share,
    )


def _strengths(key: Key, answers: Answers, crossed: Callable[[Statistic], Crossed]) -> list[Result]:
    """Bradley-Terry's, in log odds against the mean of all models. Where the answers leave them
    without bounds only the prior has any, and there is no interval."""
    pairs = [(group.arms[0], group.arms[1]) for group in key.groups]

    def statistic(totals: Array, counts: Array) -> Array:
        return bradley_terry(wins_of(totals, counts, pairs))

    found = crossed(statistic)
    totals, counts = (table.sum((1, 2)) for table in answers.tables())
    hidden = 0.0 if is_connected(wins_of(totals, counts, pairs)) else np.nan
    found = found.with_hidden(np.full(len(key.arms), hidden))
    return _tested(list(key.arms), found, percent=False)


def _errors(key: Key, answers: Answers, crossed: Callable[[Statistic], Crossed]) -> list[Result]:
    """HYPE of each model: how often people are wrong about its pictures and real ones, half of
    each. 50 % where nobody can tell them apart."""
    models = len(key.arms) - 1

    def statistic(totals: Array, counts: Array) -> Array:
        taken = means(totals, counts)
        return (taken[..., :models] + 1 - taken[..., models:]) / 2

    hidden = hidden_variances(answers, share=True)
    found = crossed(statistic).with_hidden((hidden[:models] + hidden[models]) / 4)
    return [
        replace(one, p_value=None, adjusted=None)
        for one in _tested(list(key.arms[:models]), found, percent=True)
    ]


def _tested(titles: Sequence[str], found: Crossed, *, percent: bool) -> list[Result]:
    """Values that are 0 without an effect."""
    rows = zip(titles, found.value, *found.limits(), found.p_values(), strict=True)
    return holm(
        [
            Result(
                title=title,
                estimate=estimate(value, limits, percent=percent),
                p_value=_known(p_value),
            )
            for title, value, *limits, p_value in rows
        ]
    )


def _known(p_value: float) -> float | None:
    return float(p_value) if np.isfinite(p_value) else None


def holm(results: Sequence[Result]) -> list[Result]:
    """p-values adjusted for their number (Holm 1979); a single one stays as it is. Those that are
    not known count as 1: how many were asked about does not depend on the answers."""
    known = [one.p_value for one in results if one.p_value is not None]
    adjusted: dict[float, float] = {}
    largest = 0.0
    for place, p_value in enumerate(sorted(known)):
        largest = max(largest, min(1.0, p_value * (len(results) - place)))
        adjusted.setdefault(p_value, largest)
    return [
        one if one.p_value is None else replace(one, adjusted=adjusted[one.p_value])
        for one in results
    ]


def _agreement(key: Key, answers: Answers, question: int, seed: int) -> Estimate:
    """Krippendorff's alpha over people, of the pictures (or pairs) of a question."""
    chosen = np.array([group.question == question for group in key.groups])[answers.group]
    unit = (answers.item * answers.groups + answers.group)[chosen]
    value = answers.value[chosen]
    alpha = krippendorff_alpha(unit, value)
    if not np.isfinite(alpha):
        return Estimate(value=alpha, count=len(value))
    low, high = alpha_interval(unit, value, rng=np.random.default_rng(seed))
    if low == high:  # all agree: what is drawn anew does too
        return Estimate(value=alpha, count=len(value))
    return Estimate(value=alpha, low=low, high=high, count=len(value))
