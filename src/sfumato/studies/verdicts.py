"""Held, not held, or not decidable: claims decided from intervals alone, by one rule."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field
from torch import Tensor

from sfumato.base.section import Section
from sfumato.evaluation.metrics.diversity import diversity_difference
from sfumato.evaluation.metrics.intervals import Estimate
from sfumato.evaluation.metrics.paired import paired_bootstrap, share_difference
from sfumato.evaluation.metrics.registry import metric_of
from sfumato.evaluation.reference import Scores
from sfumato.studies.study import ACCURACY, DIVERSITY, FRECHET

Verdict = Literal["held", "not held", "not decidable here"]
HELD: Verdict = "held"
NOT_HELD: Verdict = "not held"
UNDECIDED: Verdict = "not decidable here"

RULE = (
    "An effect holds where its 95 % interval lies above 0 and its value reaches the margin, the "
    "smallest effect that matters; it does not hold where the interval ends below the margin; "
    "between the two it cannot be decided here."
)

_GREY_LEVEL = 1 / 255
MARGINS = {
    ACCURACY: 0.05,
    "loss": 0.05,
    "border_rms": _GREY_LEVEL,
    "border_deviation": _GREY_LEVEL,
    "edge_rms": _GREY_LEVEL,
    "brightness": 0.01,
    "saturated": 0.01,
}
"""Smallest difference of each metric that matters: 8 bits do not show an RMS below a grey level,
and a loss that falls by less over a quarter of the training has come to rest. Of other metrics it
is `SHARE_OF_REAL` of real images' value."""
SHARE_OF_REAL = 0.1


class Effect(Section):
    """A difference, `value` in [`low`, `high`], with the sign that makes it positive where the
    claim is right. `margin`: the smallest one that matters."""

    what: str
    measure: str
    """The key of the metric that it is a difference of."""
    value: float
    low: float
    high: float
    margin: float

    @classmethod
    def of(cls, what: str, found: Estimate, *, measure: str, margin: float) -> "Effect":
        """From an estimate of the same sign."""
        low, high = found.interval
        return cls(what=what, measure=measure, value=found.value, low=low, high=high, margin=margin)


class Claim(Section):
    """One claim with its verdict; `sentence` gives the reason, `figure` the file that shows it."""

    key: str
    claim: str
    verdict: Verdict
    sentence: str
    effects: list[Effect] = Field(default_factory=list)
    figure: str = ""

    @classmethod
    def decided(
        cls, key: str, claim: str, effects: Sequence[Effect], *, sentence: str, figure: str
    ) -> "Claim":
        """A claim that needs all of `effects`."""
        return cls(
            key=key,
            claim=claim,
            verdict=together([decide(effect) for effect in effects]),
            sentence=sentence,
            effects=list(effects),
            figure=figure,
        )

    @classmethod
    def undecided(cls, key: str, claim: str, why: str) -> "Claim":
        return cls(key=key, claim=claim, verdict=UNDECIDED, sentence=why)


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
    """Of a claim that needs several effects: one that does not hold refutes it.

    `ValueError` for no verdicts.
    """
    if not verdicts:
        raise ValueError("there are no verdicts to join")
    if NOT_HELD in verdicts:
        return NOT_HELD
    return UNDECIDED if UNDECIDED in verdicts else HELD


def because(
    effect: Verdict, more_than_without_cause: Verdict, *, also_differ: Sequence[str]
) -> Verdict:
    """Whether one cause has this `effect`, by a second model without that cause.

    `more_than_without_cause`: whether the effect is larger where the cause is. An effect that is
    not there has no cause. Where the two models differ in more than the cause (`also_differ`),
    their comparison decides nothing.
    """
    if effect == NOT_HELD:
        return NOT_HELD
    if also_differ:
        return UNDECIDED
    return together([effect, more_than_without_cause])


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Scores of sets of the same seeds and classes, by model variant and guidance scale.

    `labels` (N,): the classes; `real`: what real images score.
    """

    scores: Mapping[tuple[str, float], Scores]
    labels: Tensor
    real: Mapping[str, Estimate]

    def values(self, variant: str, scale: float, measure: str) -> Tensor:
        """(N,): one value an image, whose mean is the metric."""
        return self.scores[variant, scale].values[measure]

    def mean(self, variant: str, scale: float, measure: str) -> str:
        """The metric in its unit."""
        value = float(self.values(variant, scale, measure).double().mean())
        return metric_of(measure).format(value)

    def effect(self, what: str, measure: str, first: Tensor, second: Tensor) -> Effect:
        """mean(first) - mean(second) of paired values (N,), with the metric's interval."""
        if measure == ACCURACY:
            found = share_difference(first, second)
        elif measure == DIVERSITY:
            found = diversity_difference(first, second, self.labels)
        else:
            found = paired_bootstrap(first, second)
        margin = MARGINS.get(measure)
        if margin is None:  # real images have no distance from themselves
            of = float(second.mean()) if measure == FRECHET else self.real[measure].value
            margin = SHARE_OF_REAL * of
        return Effect.of(what, found, measure=measure, margin=margin)
