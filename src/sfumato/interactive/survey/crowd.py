"""A synthetic crowd whose truth is known: for power, for tests, and to try a survey before people.

Each model has a strength, each person a taste for it and each picture a quality, all on the scale
of log odds:

    eta = strength + taste + quality                of one picture
    eta = difference of the two                     of a pair

and answers follow a logistic law in eta. The spread of the difference within a pair is `person_sd`
over people and `item_sd` over pictures.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from sfumato.base.files import write_json
from sfumato.base.randomness import derived_seed
from sfumato.interactive.survey.answers import Answer, Session, returned
from sfumato.interactive.survey.bootstrap import Answers, Array
from sfumato.interactive.survey.designs import LEVELS, Design
from sfumato.interactive.survey.forms import Settings, Trial
from sfumato.interactive.survey.key import Key, title_of

CUTS = np.linspace(-2.5, 2.5, LEVELS - 1)
"""Of eta with logistic noise, between the levels of a Likert scale."""
USUAL_SD = 0.5
"""With it a binomial test of 30 people and 40 pictures has a third of false positives."""
_CARELESS_MS, _USUAL_MS = 220, 2_500


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """`strengths` of the models (and of the real images, the last); `tie`: half the width in eta of
    what is called no difference; `careless`: the share of people who answer at random and fast;
    `leaving`: the share that stops half-way."""

    strengths: Sequence[float]
    person_sd: float = USUAL_SD
    item_sd: float = USUAL_SD
    tie: float = 0.5
    careless: float = 0.0
    leaving: float = 0.0

    def spread(self, design: Design) -> float:
        """Standard deviation of eta over people and pictures."""
        return float(np.hypot(self.person_sd, self.item_sd * (1 if design.pair else np.sqrt(0.5))))


def simulate(key: Key, crowd: Crowd, rng: np.random.Generator) -> list[Session]:
    """The answers of a person for each form."""
    asked = Asked.of(key)
    people, length = asked.trial.shape
    careless = rng.random(people) < crowd.careless
    stops = np.where(rng.random(people) < crowd.leaving, length // 2, length)
    stored = _stored_choices(key, asked, crowd, rng)
    shown = np.where(asked.flip, asked.choices - 1 - stored, stored)
    at_random = rng.integers(asked.choices)
    shown = np.where(careless[:, None], at_random, shown)
    usual = np.where(careless, _CARELESS_MS, _USUAL_MS)[:, None]
    ms = (usual * np.exp(rng.normal(0, 0.4, shown.shape))).astype(int)
    found = []
    for person, form in enumerate(key.forms):
        stop = stops[person]
        rows = zip(form[:stop], shown[person].tolist(), ms[person].tolist(), strict=False)
        answers = [Answer(place, one[0], *rest) for place, (one, *rest) in enumerate(rows)]
        found.append(Session(rng.bytes(16).hex(), person, answers, simulated=True))
    return found


def write_crowd(folder: Path, key: Key, crowd: Crowd, *, seed: int) -> int:
    """The files that people of a crowd return, and `truth.json`; how many people."""
    sessions = simulate(key, crowd, np.random.default_rng(derived_seed("crowd", seed)))
    for session in sessions:
        write_json(folder / f"answers-{session.name[:8]}.json", returned(session, key.survey))
    means = true_means(key, crowd).tolist()
    truth = {
        "seed": seed,
        "crowd": asdict(crowd),
        "measure": key.design.measure,
        "means": {title_of(key, number): value for number, value in enumerate(means)},
    }
    write_json(folder / "truth.json", truth)
    return len(sessions)


def simulated_answers(key: Key, asked: "Asked", crowd: Crowd, rng: np.random.Generator) -> Answers:
    """The valued answers of careful people who stay, as `answers_of` gives those of `simulate`:
    for thousands of crowds."""
    stored = _stored_choices(key, asked, crowd, rng)
    value = asked.values[asked.trial, stored]
    person = np.broadcast_to(np.arange(len(value))[:, None], value.shape)
    item = asked.item + key.settings.pictures * asked.is_real
    counts = asked.group >= 0
    return Answers(
        person[counts], item[counts], asked.group[counts], value[counts], len(key.groups)
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """What each form asks, as arrays (people, places): number of the trial, whether its sides are
    exchanged, its models, picture, group and number of choices; `values` (trials, choices)."""

    trial: Array
    flip: Array
    first: Array
    second: Array
    item: Array
    group: Array
    choices: Array
    is_real: Array
    values: Array

    @classmethod
    def of(cls, key: Key) -> "Asked":
        place = {name: number for number, name in enumerate(key.trials)}
        trials = list(key.trials.values())
        number = np.array([[place[name] for name, _ in form] for form in key.forms])
        values = np.full((len(trials), max(len(one.values) for one in trials)), -np.inf)
        for row, one in zip(values, trials, strict=True):
            row[: len(one.values)] = one.values

        def each(of: Callable[[Trial], int]) -> Array:
            return np.array([of(one) for one in trials])[number]

        real = len(key.arms) - 1 if key.design.real else None
        return cls(
            trial=number,
            flip=np.array([[flip for _, flip in form] for form in key.forms]),
            first=each(lambda one: one.arms[0]),
            second=each(lambda one: one.arms[-1]),
            item=each(lambda one: one.item),
            group=each(lambda one: one.group),
            choices=each(lambda one: len(one.values)),
            is_real=each(lambda one: int(one.arms[0] == real)),
            values=values,
        )


def _stored_choices(key: Key, asked: Asked, crowd: Crowd, rng: np.random.Generator) -> Array:
    """(people, places), in the order in which the choices are stored; an attention check is
    answered right by all who look."""
    noisy = _eta(key, asked, crowd, rng) + rng.logistic(size=asked.trial.shape)
    best = asked.values.argmax(1)[asked.trial]
    if key.design.pair:
        last = asked.choices - 1
        tie = np.where(last == 2, crowd.tie, 0.0)
        chosen = np.where(noisy > tie, 0, np.where(noisy <= -tie, last, 1))
    elif key.design.real:
        chosen = np.where(noisy > 0, 0, 1)
    elif key.design.shows == "captions":
        chosen = np.where(noisy > 0, best, rng.integers(asked.choices))
    else:
        chosen = (noisy[..., None] > CUTS).sum(-1)
    checks = np.array([one.kind == "attention" for one in key.trials.values()])[asked.trial]
    return np.where(checks, best, chosen)


def _eta(key: Key, asked: Asked, crowd: Crowd, rng: np.random.Generator) -> Array:
    """(people, places), of the picture that is stored first, less that of the other."""
    arms, half = len(key.arms), np.sqrt(0.5)
    people = np.arange(len(asked.trial))[:, None]
    # One more model than there are: what is scrambled has number -1, and is judged by nobody.
    strength = np.append(np.asarray(crowd.strengths, dtype=np.float64), 0.0)
    taste = rng.normal(0, crowd.person_sd * half, (len(people), arms + 1))
    quality = rng.normal(0, crowd.item_sd * half, (arms + 1, key.settings.pictures))
    common = rng.normal(0, crowd.person_sd * half, (len(people), 1))

    def of(arm: Array) -> Array:
        return strength[arm] + taste[people, arm] + quality[arm, asked.item]

    return of(asked.first) - of(asked.second) if key.design.pair else of(asked.first) + common


# What is true -------------------------------------------------------------------------------------


def true_means(key: Key, crowd: Crowd) -> Array:
    """The mean value of each group over all people and pictures that the crowd stands for."""
    strengths = crowd.strengths
    etas = [
        strengths[group.arms[0]] - (strengths[group.arms[1]] if key.design.pair else 0.0)
        for group in key.groups
    ]
    return np.array([expected_mean(key.design, key.settings, crowd, eta) for eta in etas])


def expected_mean(design: Design, settings: Settings, crowd: Crowd, eta: float) -> float:
    """The mean value over etas around `eta` with the crowd's spread (Gauss-Hermite quadrature)."""
    from scipy.special import expit

    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    at = eta + crowd.spread(design) * nodes
    if design.pair:
        tie = crowd.tie if settings.ties else 0.0
        values = (expit(at - tie) + expit(at + tie)) / 2
    elif design.shows == "captions":
        guess = 1 / settings.captions
        values = guess + (1 - guess) * expit(at)
    elif design.share:
        values = expit(at)
    else:
        values = 1 + expit(at[:, None] - CUTS).sum(1)
    return float((weights * values).sum() / weights.sum())
