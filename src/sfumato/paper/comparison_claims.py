"""Does diffusion substantially outperform a CAN? Decided for each pair, by the studies' rule."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from sfumato.evaluation.metrics.intervals import Estimate, difference_of_shares
from sfumato.evaluation.metrics.paired import paired_bootstrap, share_difference
from sfumato.evaluation.metrics.registry import title_of
from sfumato.studies.study import ACCURACY, FRECHET
from sfumato.studies.verdicts import (
    HELD,
    MARGINS,
    NOT_HELD,
    SHARE_OF_REAL,
    UNDECIDED,
    Claim,
    Effect,
    Verdict,
    decide,
    together,
)

SHARES = ("precision.classifier", "recall.classifier", "coverage.classifier")
DECIDING = (FRECHET, *SHARES, ACCURACY)
"""Metrics that the claim is decided by, as far as both models have them."""
SHARE_MARGIN = 0.05
MOST_TIMES = 1.25
"""Training times that differ by no more than this factor are called equal."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a claim needs of one run: `values` by metric, one an image, `core_seconds` of training
    on `device`."""

    label: str
    seed: int
    core_seconds: float | None
    device: str
    parameters: int
    metrics: Mapping[str, Estimate]
    values: Mapping[str, Tensor]


def effects_of(diffusion: Measured, can: Measured) -> list[Effect]:
    """How much better diffusion is, by each metric that both have; images of one seed are pairs."""
    return [
        effect
        for key in DECIDING
        if key in diffusion.metrics and key in can.metrics
        for effect in [_effect(key, diffusion, can)]
    ]


def _effect(key: str, diffusion: Measured, can: Measured) -> Effect:
    a, b = diffusion.metrics[key], can.metrics[key]
    if key == FRECHET:
        what, margin = "CAN less diffusion", SHARE_OF_REAL * a.value
        found: Estimate = paired_bootstrap(can.values[key], diffusion.values[key])
    elif key == ACCURACY:
        what, margin = "diffusion less CAN", MARGINS[ACCURACY]
        found = share_difference(diffusion.values[key], can.values[key])
    else:
        what, margin = "diffusion less CAN", SHARE_MARGIN
        found = difference_of_shares(a, b)
    return Effect.of(f"{title_of(key)}, {what}", found, measure=key, margin=margin)


def fair(verdict: Verdict, times: float | None) -> Verdict:
    """What a verdict is worth where diffusion was trained `times` as long; None: not known.

    A side that wins with more time, or loses with less, shows nothing of the method.
    """
    if times is None:
        return UNDECIDED
    if verdict == HELD and times > MOST_TIMES:
        return UNDECIDED
    if verdict == NOT_HELD and times < 1 / MOST_TIMES:
        return UNDECIDED
    return verdict


def times_of(diffusion: Measured, can: Measured) -> float | None:
    """How many times as long diffusion was trained; None where it cannot be told."""
    known = diffusion.core_seconds and can.core_seconds and diffusion.device == can.device
    return diffusion.core_seconds / can.core_seconds if known else None


def _pairs(
    diffusions: Sequence[Measured], cans: Sequence[Measured]
) -> tuple[list[tuple[Measured, Measured]], str]:
    """As many runs on both sides: in the order of their seeds. Else those of the same seed, and a
    sentence on the others."""
    if len(diffusions) == len(cans):
        return list(zip(diffusions, cans, strict=True)), ""
    pairs = [(a, b) for a in diffusions for b in cans if a.seed == b.seed]
    paired = {a.seed for a, _ in pairs}
    alone = [
        f"{one.label}, seed {one.seed}" for one in (*diffusions, *cans) if one.seed not in paired
    ]
    return pairs, f" Not paired: {'; '.join(alone)}."


def claim_of(diffusions: Sequence[Measured], cans: Sequence[Measured]) -> Claim:
    """Of two groups of runs that differ in their seeds; undecided where there is no pair."""
    first, second = diffusions[0], cans[0]
    key = f"{first.label} / {second.label}"
    claim = f"{first.label} substantially outperforms {second.label}"
    pairs, alone = _pairs(diffusions, cans)
    if not pairs:
        return Claim.undecided(key, claim, f"No two runs have the same seed.{alone}")
    first, second = pairs[0]
    found = [effects_of(*pair) for pair in pairs]
    verdicts = [
        fair(together([decide(one) for one in effects]), times_of(*pair))
        for pair, effects in zip(pairs, found, strict=True)
    ]
    agreed = verdicts[0] if len(set(verdicts)) == 1 else UNDECIDED
    sentence = _budget(first, second)
    if len(pairs) > 1:
        sentence += f" Of {len(pairs)} pairs of seeds: {', '.join(verdicts)}."
    wins = [
        title_of(key)
        for key in DECIDING
        if all(
            any(e.measure == key and e.high < 0 and -e.value >= e.margin for e in effects)
            for effects in found
        )
    ]
    if wins:
        sentence += f" The CAN is better by: {', '.join(wins)}."
    return Claim(
        key=key,
        claim=claim,
        verdict=agreed,
        sentence=sentence + alone,
        effects=found[0],
        figure="comparison.png",
    )


def _budget(diffusion: Measured, can: Measured) -> str:
    size = f"{diffusion.parameters:,} and {can.parameters:,} parameters"
    times = times_of(diffusion, can)
    if times is None:
        return f"{size}; training times that can be compared are not recorded."
    return f"Diffusion was trained {times:.2g} times as long; {size}."
