"""How many people and trials a survey needs: surveys of synthetic crowds, analysed as real ones."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sfumato.base.errors import InputError
from sfumato.base.randomness import derived_seed
from sfumato.evaluation.metrics.intervals import Estimate, wilson
from sfumato.interactive.survey.analysis import differences_of, means_of
from sfumato.interactive.survey.bootstrap import Crossed, Statistic, crossed_bootstrap, means
from sfumato.interactive.survey.crowd import (
    USUAL_SD,
    Asked,
    Crowd,
    expected_mean,
    simulated_answers,
)
from sfumato.interactive.survey.designs import Design, design_of, groups_of
from sfumato.interactive.survey.forms import Settings, make_layout, most_trials
from sfumato.interactive.survey.key import Key

PEOPLE = (10, 15, 20, 30, 40, 60, 80, 120)
TRIALS = (10, 20, 40, 80)
SURVEYS, _RESAMPLES = 200, 200


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What is to be found between two of the `models`: `size` is the share that prefers the better
    one (0.6), or of single pictures the difference of shares (0.1) or of levels (0.5).
    `person_sd`, `item_sd`: as of `Crowd`."""

    size: float
    models: int = 2
    person_sd: float = USUAL_SD
    item_sd: float = USUAL_SD


@dataclass(frozen=True, kw_only=True)
class Power:
    """The share of surveys of this size that find the effect at the 5 % level."""

    people: int
    trials: int
    found: Estimate


@dataclass(frozen=True, kw_only=True)
class Given:
    """What of a size is not to be looked for."""

    people: int | None = None
    trials: int | None = None


USUAL_SIZE = {"pair": 0.6, "share": 0.1, "levels": 0.5}


def usual_size(design: Design) -> float:
    """Of an effect worth finding."""
    return USUAL_SIZE["pair" if design.pair else "share" if design.share else "levels"]


def power_table(
    settings: Settings,
    effect: Effect,
    power: float,
    *,
    seed: int = 0,
    surveys: int = SURVEYS,
    given: Given = Given(),
) -> list[Power]:
    """For each number of trials that the pictures allow, more and more people until the effect is
    found in a share `power` of the surveys; of what is `given` that alone."""
    found = []
    for trials in _numbers_of_trials(settings, effect.models, given):
        for people in PEOPLE if given.people is None else (given.people,):
            size = replace(settings, people=people, trials=trials, practice=0, attention=0)
            found.append(power_of(size, effect, seed=seed, surveys=surveys))
            if found[-1].found.value >= power:
                break
    return found


def _numbers_of_trials(settings: Settings, models: int, given: Given) -> Sequence[int]:
    """Each group is asked about, and nobody is asked the same twice."""
    if given.trials is not None:
        return (given.trials,)
    groups = groups_of(design_of(settings.design), models)
    most = most_trials(groups, settings.items)
    return [one for one in TRIALS if len(groups) <= one <= most] or [most]


def smallest(sizes: Sequence[Power], power: float, given: Given = Given()) -> Power:
    """The size with enough power and the fewest answers, fewer people of as many; `InputError`
    where there is none."""
    enough = [one for one in sizes if one.found.value >= power]
    if not enough:
        best = max(sizes, key=lambda one: one.found.value)
        named = (("--people", given.people), ("--trials", given.trials))
        left_out = [f"leave {name} out" for name, value in named if value is not None]
        ways = [*left_out, "look for a larger --effect", "give more pictures (--count)"]
        raise InputError(
            f"No size that was tried finds the effect in {100 * power:.0f} % of surveys; "
            f"{best.people} people and {best.trials} trials find it in "
            f"{100 * best.found.value:.0f} %.",
            hint=f"To find it, {', '.join(ways[:-1])}, or {ways[-1]}.",
        )
    return min(enough, key=lambda one: (one.people * one.trials, one.people))


def power_of(settings: Settings, effect: Effect, *, seed: int = 0, surveys: int = SURVEYS) -> Power:
    """Between the first two models, in so many simulated surveys, analysed as a real one: the
    p-value is adjusted for those of all other models."""
    design = design_of(settings.design)
    rng = np.random.default_rng(
        derived_seed("power", seed, settings.people, settings.trials, settings.items)
    )
    crowd = crowd_with(design, settings, effect)
    layout = make_layout(design, effect.models, settings, rng)
    names = [str(number) for number in range(len(layout.trials))]
    arms = [str(arm) for arm in range(len(crowd.strengths))]
    key = Key.of(layout, arms, names, "power")
    asked = Asked.of(key)
    significant = sum(_finds(key, asked, crowd, rng) for _ in range(surveys))
    return Power(people=settings.people, trials=settings.trials, found=wilson(significant, surveys))


def _finds(key: Key, asked: Asked, crowd: Crowd, rng: np.random.Generator) -> bool:
    answers = simulated_answers(key, asked, crowd, rng)

    def crossed(statistic: Statistic) -> Crossed:
        return crossed_bootstrap(answers, statistic, resamples=_RESAMPLES, rng=rng)

    if key.design.pair:
        first = means_of(key, answers, crossed(means))[0]
    else:
        first = differences_of(key, answers, crossed)[0]
    return first.adjusted is not None and first.adjusted < 0.05


def crowd_with(design: Design, settings: Settings, effect: Effect) -> Crowd:
    """A crowd for whom the true means of the first two models are the effect apart; `InputError`
    for an effect that no crowd has."""
    from scipy.optimize import brentq

    def crowd(gap: float) -> Crowd:
        others = [0.0] * (effect.models - 2) + ([1.0] if design.real else [])
        strengths = [gap / 2, -gap / 2, *others]
        return Crowd(strengths=strengths, person_sd=effect.person_sd, item_sd=effect.item_sd)

    def above(gap: float) -> float:
        return _effect_of(design, settings, crowd(gap)) - effect.size

    least = 0.5 if design.pair else 0.0
    if not effect.size > least or above(20.0) < 0:
        raise InputError(
            f"An effect of {effect.size:g} is out of range for the design '{design.name}'.",
            hint=f"For example: --effect {usual_size(design):g}",
        )
    return crowd(float(brentq(above, 0.0, 20.0)))  # pyright: ignore


def _effect_of(design: Design, settings: Settings, crowd: Crowd) -> float:
    first, second = crowd.strengths[:2]
    if design.pair:
        return expected_mean(design, settings, crowd, first - second)
    values = [expected_mean(design, settings, crowd, eta) for eta in (first, second)]
    return values[0] - values[1]
