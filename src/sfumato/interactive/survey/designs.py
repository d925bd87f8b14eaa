"""What a survey asks: its questions, and what an answer is worth."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from sfumato.base.errors import InputError, nearest

REAL = "real images"
"""The name of the real images among the models."""
CAPTIONS = 4
"""Captions to choose from, at most."""
LEVELS = 7
"""Of a Likert scale."""
TIE = "No difference"


@dataclass(frozen=True, kw_only=True)
class Question:
    """`text` with the `choices` of every trial; none where each trial has captions of its own.
    `ends`: what the lowest and the highest number mean."""

    text: str
    choices: tuple[str, ...] = ()
    ends: tuple[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Design:
    """`measure`: what the mean of an answer's values is; `null`: its value by chance, where it has
    one; `pair`: whether two pictures of different models are beside each other."""

    name: str
    about: str
    measure: str
    questions: tuple[Question, ...]
    pair: bool = False
    real: bool = False
    shows: Literal["nothing", "caption", "captions"] = "nothing"
    null: float | None = None
    share: bool = True
    words: tuple[str, ...] = ("",)
    """What the questions are about, in results."""


def _two(name: str, about: str, text: str, shows: Literal["nothing", "caption"]) -> Design:
    return Design(
        name=name,
        about=about,
        measure="share that chose the first of two",
        questions=(Question(text=text, choices=("Left", "Right")),),
        pair=True,
        shows=shows,
        null=0.5,
    )


def _rated(text: str, low: str, high: str) -> Question:
    return Question(
        text=text, choices=tuple(str(n) for n in range(1, LEVELS + 1)), ends=(low, high)
    )


DESIGNS = {
    one.name: one
    for one in (
        _two("preference", "Which of two pictures?", "Which picture do you prefer?", "nothing"),
        _two("fit", "Which of two fits the caption?", "Which picture fits the text?", "caption"),
        Design(
            name="real",
            about="Real or generated? (HYPE's form without a time limit, Zhou et al. 2019)",
            measure="share taken for real",
            questions=(
                Question(
                    text="Is this picture real, or made by a computer?",
                    choices=("Real", "Made by a computer"),
                ),
            ),
            real=True,
        ),
        Design(
            name="caption",
            about="Which of the captions belongs to the picture?",
            measure="share of right captions",
            questions=(Question(text="Which text belongs to this picture?"),),
            shows="captions",
        ),
        Design(
            name="likert",
            about="Aesthetics and creativity, from 1 to 7.",
            measure="mean from 1 to 7",
            questions=(
                _rated("How beautiful is this picture?", "not at all", "very"),
                _rated("How creative is this picture?", "not at all", "very"),
            ),
            share=False,
            words=("aesthetics", "creativity"),
        ),
    )
}


def design_of(name: str) -> Design:
    """The design of a name; `InputError` for another."""
    if name not in DESIGNS:
        raise InputError(f"No design named '{name}'.", hint=nearest(name, list(DESIGNS)))
    return DESIGNS[name]


@dataclass(frozen=True)
class Group:
    """What has a mean of its own: a question about a model, or about a pair of them.

    `weight`: of how many trials each has, relative to the others."""

    question: int
    arms: tuple[int, ...]
    weight: int = 1


def groups_of(design: Design, arms: int) -> list[Group]:
    """Of `arms` models; the real images are arm number `arms`, in half of the trials."""
    if design.pair:
        if arms < 2:
            raise InputError(
                f"The design '{design.name}' compares models, and there is one.",
                hint="Give two or more, or --design real, caption or likert.",
            )
        return [Group(0, pair) for pair in combinations(range(arms), 2)]
    groups = [
        Group(question, (arm,)) for question in range(len(design.questions)) for arm in range(arms)
    ]
    return [*groups, Group(0, (arms,), weight=arms)] if design.real else groups


def values_of(design: Design, choices: int, *, ties: bool, right: int | None = None) -> list[float]:
    """What each choice is worth, in the order in which the models are those of the group."""
    if right is not None:
        return [float(place == right) for place in range(choices)]
    if design.pair:
        return [1.0, 0.5, 0.0] if ties else [1.0, 0.0]
    if design.real:
        return [1.0, 0.0]
    return [float(level) for level in range(1, choices + 1)]


def with_tie(questions: Sequence[Question]) -> list[Question]:
    """Questions about two pictures with the answer that they do not differ."""
    return [
        Question(text=one.text, choices=(one.choices[0], TIE, one.choices[-1])) for one in questions
    ]
