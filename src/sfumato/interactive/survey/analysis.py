"""What the answers say: means and differences with intervals over people and pictures, strengths,
agreement; for all people, and for those who are kept."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from statistics import median
from typing import Any

import numpy as np

from sfumato.evaluation.metrics.intervals import Estimate
from sfumato.evaluation.metrics.shares import wilson_limits
from sfumato.interactive.survey.answers import Session
from sfumato.interactive.survey.bootstrap import (
    RESAMPLES,
    Answers,
    Array,
    Crossed,
    crossed_bootstrap,
    means,
)
from sfumato.interactive.survey.exclusions import Rules, of_kind, split, valued
from sfumato.interactive.survey.key import Key, title_of
from sfumato.interactive.survey.strengths import (
    alpha_interval,
    bradley_terry,
    krippendorff_alpha,
    wins_of,
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
    """`kept` and `everyone`: with and without exclusions; `excluded`: reasons by name."""

    key: Key
    rules: Rules
    kept: Findings | None
    everyone: Findings
    excluded: Mapping[str, list[str]]
    median_ms: float
    seed: int
    resamples: int


def analyse(
    key: Key,
    sessions: Sequence[Session],
    *,
    rules: Rules | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Analysis:
    """Everything that a survey says; the same for the same answers and `seed`."""
    rules = rules or Rules()
    kept, excluded = split(key, sessions, rules)
    began = [one for one in sessions if of_kind(key, one, "trial")]
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

    def crossed(statistic: Callable[[Array, Array], Array]) -> Crossed:
        return crossed_bootstrap(
            answers, statistic, resamples=resamples, rng=np.random.default_rng(seed)
        )

    results = {"means": _means(key, answers, crossed(means))}
    if key.design.pair and len(key.arms) > 2:
        results["strengths"] = _strengths(key, crossed)
    elif key.design.real:
        results["errors"] = _errors(key, crossed)
    if not key.design.pair:
        results["differences"] = _differences(key, crossed)
    agreement = {}
    for question, word in enumerate(key.design.words):
        agreement[word or "answers"] = _agreement(key, answers, question, seed)
    return Findings(
        people=len(sessions), answers=len(answers), results=results, agreement=agreement
    )


# Results ------------------------------------------------------------------------------------------


def estimates(found: Crossed, counts: Sequence[int], *, share: bool, units: int) -> list[Estimate]:
    """Values with their intervals. Where all answers agree there is nothing to draw anew: the
    interval is Wilson's of so many `units`, the fewer of people and pictures."""
    low, high = found.limits(share=share)
    made = []
    for place, count in enumerate(counts):
        value = float(found.value[place])
        limits: tuple[float | None, float | None] = float(low[place]), float(high[place])
        if share and value in (0.0, 1.0) and units:
            limits = wilson_limits(round(value * units), units)
        elif not np.isfinite(found.error[place]):
            limits = None, None
        made.append(
            Estimate(value=value, low=limits[0], high=limits[1], count=count, percent=share)
        )
    return made


def _means(key: Key, answers: Answers, found: Crossed) -> list[Result]:
    counts = np.bincount(answers.group, minlength=answers.groups)
    units = min(len(np.unique(answers.person)), len(np.unique(answers.item)))
    share, null = key.design.share, key.design.null
    values = estimates(found, counts.tolist(), share=share, units=units)
    p_values = found.p_values(null or 0.0, share=share)
    made = [
        Result(
            title=title_of(key, number),
            estimate=value,
            p_value=_known(p_values[number]) if null is not None else None,
        )
        for number, value in enumerate(values)
        if value.count
    ]
    return holm(made)


def _differences(key: Key, crossed: Callable[..., Crossed]) -> list[Result]:
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

    found = crossed(statistic)
    return _tested(
        [f"{title_of(key, a)} less {key.arms[key.groups[b].arms[0]]}" for a, b in pairs],
        found,
        percent=key.design.share,
    )


def _strengths(key: Key, crossed: Callable[..., Crossed]) -> list[Result]:
    """Bradley-Terry's, in log odds against the mean of all models."""
    pairs = [(group.arms[0], group.arms[1]) for group in key.groups]

    def statistic(totals: Array, counts: Array) -> Array:
        return bradley_terry(wins_of(totals, counts, pairs))

    return _tested(list(key.arms), crossed(statistic), percent=False)


def _errors(key: Key, crossed: Callable[..., Crossed]) -> list[Result]:
    """HYPE of each model: how often people are wrong about its pictures and real ones, half of
    each. 50 % where nobody can tell them apart."""
    models = len(key.arms) - 1

    def statistic(totals: Array, counts: Array) -> Array:
        taken = means(totals, counts)
        return (taken[..., :models] + 1 - taken[..., models:]) / 2

    return [
        replace(one, p_value=None, adjusted=None)
        for one in _tested(list(key.arms[:models]), crossed(statistic), percent=True)
    ]


def _tested(titles: Sequence[str], found: Crossed, *, percent: bool) -> list[Result]:
    values = estimates(found, [0] * len(titles), share=False, units=0)
    p_values = found.p_values()
    return holm(
        [
            Result(
                title=title,
                estimate=replace(value, count=None, percent=percent),
                p_value=_known(p),
            )
            for title, value, p in zip(titles, values, p_values, strict=True)
        ]
    )


def _known(p_value: float) -> float | None:
    return float(p_value) if np.isfinite(p_value) else None


def holm(results: Sequence[Result]) -> list[Result]:
    """p-values adjusted for their number (Holm 1979); a single one stays as it is."""
    known = [one.p_value for one in results if one.p_value is not None]
    adjusted: dict[float, float] = {}
    largest = 0.0
    for place, p_value in enumerate(sorted(known)):
        largest = max(largest, min(1.0, p_value * (len(known) - place)))
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
    return Estimate(value=alpha, low=low, high=high, count=len(value))
