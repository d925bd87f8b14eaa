"""Who sees what: forms, each the trials of one person in their order, balanced and random by seed.

Over all forms each group (a pair of models, or a model) has as many trials as any other by its
weight, and each picture of it is seen equally often, to within one. In a form the first model of a
pair is on the left in half of the trials of that pair, to within one; over the forms each picture
of it is seen either way round.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sfumato.base.errors import InputError
from sfumato.base.words import counted
from sfumato.interactive.survey.designs import (
    CAPTIONS,
    Design,
    Group,
    groups_of,
    values_of,
)

SCRAMBLED = -1
"""In place of a model: a picture whose pixels are out of order."""
Kind = Literal["trial", "practice", "attention"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How large a survey is. `items`: pictures of each model that are asked about.
    `captions`: to choose from, in the design of that name."""

    design: str
    people: int = 30
    trials: int = 40
    items: int = 40
    practice: int = 2
    attention: int = 3
    ties: bool = False
    captions: int = CAPTIONS

    @property
    def pictures(self) -> int:
        """Of each model: those of practice and attention checks are in no other trial."""
        return self.items + self.practice + self.attention


@dataclass(frozen=True)
class Trial:
    """Picture `item` of the `arms`, in the order in which they are stored; `values` of the choices
    in that order. `right`: the place of the right caption, or of the choice that an attention check
    asks for. `group`: its number, -1 of practice and attention."""

    kind: Kind
    group: int
    item: int
    question: int
    arms: tuple[int, ...]
    values: tuple[float, ...]
    right: int | None = None


@dataclass(frozen=True, kw_only=True)
class Layout:
    """`forms`: of each person the numbers of `trials`, and whether the sides are exchanged."""

    design: Design
    settings: Settings
    groups: list[Group]
    trials: list[Trial]
    forms: list[list[tuple[int, bool]]]


def make_layout(design: Design, arms: int, settings: Settings, rng: np.random.Generator) -> Layout:
    """The trials and forms of a survey of `arms` models; `InputError` for too few pictures."""
    groups = check_size(design, arms, settings)
    trials = _practice(design, groups, settings, rng) + _attention(design, arms, settings, rng)
    extra = len(trials)
    place: dict[tuple[int, int], int] = {}
    for number, group in enumerate(groups):
        for position, item in enumerate(rng.permutation(settings.items).tolist()):
            place[number, position] = len(trials)
            trials.append(_trial(design, number, group, item, position, settings, rng))
    forms = []
    for visits in _visits(groups, settings, rng):
        form = [
            (place[group, position], left != _stored_first(trials[place[group, position]], groups))
            for group, position, left in visits
        ]
        forms.append(_ordered(form, trials, extra, settings, rng))
    return Layout(design=design, settings=settings, groups=groups, trials=trials, forms=forms)


def check_size(design: Design, arms: int, settings: Settings) -> list[Group]:
    """The groups of a survey of `arms` models; `InputError` for a size that it cannot have."""
    groups = groups_of(design, arms)
    most = most_of_a_group(groups, settings.trials)
    if most > settings.items:
        raise InputError(
            f"{counted(settings.trials, 'trial')} of the design '{design.name}' take {most} "
            f"pictures of a model, and there are {settings.items}.",
            hint="Give fewer --trials or more pictures (--count); nobody is asked the same twice.",
        )
    if settings.trials < len(groups):
        raise InputError(
            f"{counted(settings.trials, 'trial')} are too few: there are {len(groups)} pairs or "
            "models to ask about.",
            hint=f"Give --trials {len(groups)} or more.",
        )
    return groups


def most_of_a_group(groups: Sequence[Group], trials: int) -> int:
    """Of one group in a form, which is a piece of rounds: whole ones, and a rest that may hold all
    that a round has of a group."""
    rounds, rest = divmod(trials, sum(group.weight for group in groups))
    return max(rounds * group.weight + min(group.weight, rest) for group in groups)


def most_trials(groups: Sequence[Group], items: int) -> int:
    """Of a form that asks nothing twice, where each group has so many pictures."""
    weight = max(group.weight for group in groups)
    rounds, rest = divmod(items, weight)
    return rounds * sum(group.weight for group in groups) + rest


# Trials -------------------------------------------------------------------------------------------


def _choices(design: Design, question: int, settings: Settings) -> int:
    if design.shows == "captions":
        return settings.captions
    return len(design.questions[question].choices) + (design.pair and settings.ties)


def _trial(
    design: Design,
    number: int,
    group: Group,
    item: int,
    position: int,
    settings: Settings,
    rng: np.random.Generator,
) -> Trial:
    """One that counts. Which model of a pair is stored first is drawn, so that nothing in the page
    tells them apart."""
    choices = _choices(design, group.question, settings)
    right = position % choices if design.shows == "captions" else None
    values = values_of(design, choices, ties=settings.ties, right=right)
    arms = group.arms
    if design.pair and rng.random() < 0.5:
        arms, values = arms[::-1], values[::-1]
    return Trial("trial", number, item, group.question, arms, tuple(values), right)


def _practice(
    design: Design, groups: Sequence[Group], settings: Settings, rng: np.random.Generator
) -> list[Trial]:
    """Of pictures that are in no other trial."""
    made = []
    for number in range(settings.practice):
        group = groups[number * len(groups) // settings.practice]
        item = settings.items + number
        one = _trial(design, -1, group, item, number, settings, rng)
        made.append(Trial("practice", -1, item, one.question, one.arms, one.values, one.right))
    return made


def _attention(
    design: Design, arms: int, settings: Settings, rng: np.random.Generator
) -> list[Trial]:
    """Trials with an answer that anybody who looks gives: a picture beside a scrambled one, a
    scrambled one that is not real, a choice that the text asks for."""
    made = []
    for number in range(settings.attention):
        item, arm = settings.items + settings.practice + number, number % arms
        question = number % len(design.questions)
        choices = _choices(design, question, settings)
        right: int | None = None
        shown: tuple[int, ...] = (arm,)
        if design.pair:
            sides = [(arm, SCRAMBLED), (SCRAMBLED, arm)]
            shown = sides[number % 2]
            values = [float(place == (choices - 1) * (number % 2)) for place in range(choices)]
        elif design.real:
            shown, values = (SCRAMBLED,), [0.0, 1.0]
        else:
            right = int(rng.integers(choices))
            values = [float(place == right) for place in range(choices)]
        made.append(Trial("attention", -1, item, question, shown, tuple(values), right))
    return made


# Forms --------------------------------------------------------------------------------------------


def _visits(
    groups: Sequence[Group], settings: Settings, rng: np.random.Generator
) -> list[list[tuple[int, int, bool]]]:
    """Of each form (group, position among its pictures, whether its first model is on the left).

    Groups are taken in turn, and so are the pictures of each, over all forms.
    """
    turn = rng.permutation([n for n, group in enumerate(groups) for _ in range(group.weight)])
    taken = [0] * len(groups)
    # Half of the groups begin on either side, so that a form with one trial of each is balanced.
    offset = rng.permutation(np.arange(len(groups)) % 2)
    forms = []
    for form in range(settings.people):
        visits = []
        for step in range(form * settings.trials, (form + 1) * settings.trials):
            group = int(turn[step % len(turn)])
            again, position = divmod(taken[group], settings.items)
            taken[group] += 1
            visits.append((group, position, bool((position + again + offset[group]) % 2)))
        forms.append(visits)
    return forms


def _stored_first(trial: Trial, groups: Sequence[Group]) -> bool:
    """Whether the first model of the pair is the one that is stored first; of one picture there is
    nothing to exchange."""
    return trial.arms == groups[trial.group].arms


def _ordered(
    form: list[tuple[int, bool]],
    trials: Sequence[Trial],
    extra: int,
    settings: Settings,
    rng: np.random.Generator,
) -> list[tuple[int, bool]]:
    """Practice first, then one question after the other, the trials of each in random order, with
    an attention check in each part of about equal length."""
    questions = {trials[number].question for number, _ in form}
    turn = {one: place for place, one in enumerate(rng.permutation(sorted(questions)).tolist())}
    noise = rng.random(len(form))
    order = sorted(range(len(form)), key=lambda i: (turn[trials[form[i][0]].question], noise[i]))
    shuffled = [form[place] for place in order]
    if len(trials[form[0][0]].arms) == 1:
        shuffled = [(number, False) for number, _ in shuffled]
    checks = rng.permutation(range(settings.practice, extra)).tolist()
    parts = np.array_split(np.arange(len(form)), max(1, len(checks)))
    for number, part in reversed([*zip(checks, parts, strict=False)]):
        shuffled.insert(int(rng.choice(part)) + 1, (number, bool(rng.integers(2)) and _two(trials)))
    return [(number, False) for number in range(settings.practice)] + shuffled


def _two(trials: Sequence[Trial]) -> bool:
    return len(trials[-1].arms) == 2
