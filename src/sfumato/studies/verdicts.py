"""Held, not held, or not decidable: claims decided from intervals alone, by one rule."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from sfumato.base.section import Section
from sfumato.evaluation.metrics.intervals import Estimate

Verdict = Literal["held", "not held", "not decidable here"]
HELD: Verdict = "held"
NOT_HELD: Verdict = "not held"
UNDECIDED: Verdict = "not decidable here"

RULE = (
    "An effect holds where its 95 % interval lies above 0 and its value reaches the margin, the "
    "smallest effect that matters; it does not hold where the interval ends below the margin; "
    "between the two it cannot be decided here."
)


class Effect(Section):
    """How much more there is than the claim's opposite allows: `value` in [`low`, `high`].

    Written such that the claim says it is positive. `margin`: the smallest one that matters.
    """

    what: str
    measure: str
    """The key of what it is a difference of, which gives the unit."""
    value: float
    low: float
    high: float
    margin: float

    @classmethod
    def of(cls, what: str, found: Estimate, *, measure: str, margin: float) -> "Effect":
        """From an estimate of the same sign."""
        return cls(
            what=what,
            measure=measure,
            value=found.value,
            low=found.interval[0],
            high=found.interval[1],
            margin=margin,
        )


class Claim(Section):
    """One claim with its verdict; `sentence` says why, `figure` where it can be seen."""

    key: str
    claim: str
    verdict: Verdict
    sentence: str
    effects: list[Effect] = Field(default_factory=list)
    figure: str = ""


def decide(effect: Effect) -> Verdict:
    """Whether there is such an effect, by `RULE`."""
    if effect.low > 0 and effect.value >= effect.margin:
        return HELD
    if effect.high < effect.margin:
        return NOT_HELD
    return UNDECIDED


def opposite(verdict: Verdict) -> Verdict:
    """Of the claim that there is no such effect."""
    if verdict == UNDECIDED:
        return UNDECIDED
    return NOT_HELD if verdict == HELD else HELD


def together(verdicts: Sequence[Verdict]) -> Verdict:
    """Of a claim that several effects must all bear out: one that does not hold refutes it.

    `ValueError` for no verdicts.
    """
    if not verdicts:
        raise ValueError("no verdicts decide nothing")
    if NOT_HELD in verdicts:
        return NOT_HELD
    return UNDECIDED if UNDECIDED in verdicts else HELD


def because(
    effect: Verdict, more_than_without_cause: Verdict, *, also_differ: Sequence[str]
) -> Verdict:
    """Whether `effect` is there because of one cause, from a second model without that cause.

    `more_than_without_cause`: whether the effect is larger where the cause is. An effect that is
    not there has no cause. Where the two models differ in more than the cause (`also_differ`),
    what one has more of cannot be laid to the cause alone, nor can what they have alike acquit it.
    """
    if effect == NOT_HELD:
        return NOT_HELD
    if also_differ:
        return UNDECIDED
    return together([effect, more_than_without_cause])


SHARE_OF_REAL = 0.1
"""Smallest difference of a share of power or a distance that matters, as a part of real images'."""


ACCURACY = 0.05
"""Smallest difference of class accuracy that matters."""
