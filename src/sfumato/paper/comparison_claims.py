"""Does one kind of model substantially outperform another? Decided for each pair of groups of runs,
by the studies' rule."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from sfumato.evaluation.metrics.intervals import Estimate, difference_of_shares, wilson_limits
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

CAN, LATENT, PIXELS = "CAN", "latent diffusion", "diffusion"
"""Kinds of models."""
CLAIMED = ((PIXELS, CAN), (LATENT, CAN), (LATENT, PIXELS))
"""Does the first kind outperform the second?"""
SHARES = ("precision.classifier", "recall.classifier", "coverage.classifier")
DECIDING = (FRECHET, *SHARES, ACCURACY)
"""Metrics that the claim is decided by, as far as both models have them."""
SHARE_MARGIN = 0.05
MOST_TIMES = 1.25
"""Training times that differ by no more than this factor are called equal."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a claim needs of one run: `values` by metric, one an image, `core_seconds` of training
    on `device`, the guidance `scale` of diffusion."""

    label: str
    kind: str
    conditional: bool = True
    scale: str = ""
    seed: int
    core_seconds: float | None
    device: str
    parameters: int
    metrics: Mapping[str, Estimate]
    values: Mapping[str, Tensor]


def claims_of(runs: Sequence[Measured]) -> list[Claim]:
    """One for each pair of labels of `CLAIMED` kinds that are both conditional, or both not, and of
    two kinds of diffusion at one guidance scale; a CAN without such a partner is named."""
    sides: dict[tuple[str, bool, str], dict[str, list[Measured]]] = {}
    for one in sorted(runs, key=lambda run: run.seed):
        own = sides.setdefault((one.kind, one.conditional, one.scale), {})
        own.setdefault(one.label, []).append(one)
    found = [
        claim_of(first, second)
        for kinds in CLAIMED
        for (kind, conditional, scale), firsts in sides.items()
        for (other, same, other_scale), seconds in sides.items()
        if (kind, other) == kinds and conditional == same and (other == CAN or scale == other_scale)
        for second in seconds.values()
        for first in firsts.values()
    ]
    return found + _without_partner(sides)


def _without_partner(
    sides: Mapping[tuple[str, bool, str], Mapping[str, Sequence[Measured]]],
) -> list[Claim]:
    found = []
    for (kind, conditional, _), cans in sides.items():
        partners = any(other != CAN and same == conditional for other, same, _ in sides)
        if kind != CAN or partners:
            continue
        scale = "w > 0" if conditional else "w = 0"
        why = f"No diffusion model at {scale} was given, as PATH@{int(conditional)} does."
        claim = "Diffusion substantially outperforms {}"
        found += [Claim.undecided(label, claim.format(label), why) for label in cans]
    return found


def effects_of(first: Measured, second: Measured) -> list[Effect]:
    """How much better the first is, by each metric that both have; images of one seed are pairs.
    Models that are not asked for classes have no class accuracy to be better by."""
    return [
        effect
        for key in DECIDING
        if key in first.metrics and key in second.metrics
        if key != ACCURACY or (first.conditional and second.conditional)
        for effect in [_effect(key, first, second)]
    ]


def _effect(key: str, first: Measured, second: Measured) -> Effect:
    a, b = first.metrics[key], second.metrics[key]
    what, margin = f"{first.kind} less {second.kind}", SHARE_MARGIN
    if key == FRECHET:
        what, margin = f"{second.kind} less {first.kind}", SHARE_OF_REAL * a.value
        found: Estimate = paired_bootstrap(second.values[key], first.values[key])
    elif key == ACCURACY:
        margin = MARGINS[ACCURACY]
        found = share_difference(first.values[key], second.values[key])
    else:
        found = difference_of_shares(_of_images(a, first), _of_images(b, second))
    return Effect.of(f"{title_of(key)}, {what}", found, measure=key, margin=margin)


def _of_images(share: Estimate, run: Measured) -> Estimate:
    """A share with the interval of no more rows than `run` has images: recall and coverage are
    shares of reference images, but it is the generated ones that vary from draw to draw."""
    most = len(run.values[FRECHET])
    if share.count is None or share.count <= most:
        return share
    low, high = wilson_limits(share.value * most, most)
    return replace(share, low=low, high=high, count=most)


def fair(verdict: Verdict, times: float | None) -> Verdict:
    """What a verdict is worth where the first was trained `times` as long; None: not known.

    A side that wins with more time, or loses with less, shows nothing of the method.
    """
    if times is None:
        return UNDECIDED
    if verdict == HELD and times > MOST_TIMES:
        return UNDECIDED
    if verdict == NOT_HELD and times < 1 / MOST_TIMES:
        return UNDECIDED
    return verdict


def times_of(first: Measured, second: Measured) -> float | None:
    """How many times as long the first was trained; None where it cannot be told."""
    known = first.core_seconds and second.core_seconds and first.device == second.device
    return first.core_seconds / second.core_seconds if known else None


def _pairs(
    firsts: Sequence[Measured], seconds: Sequence[Measured]
) -> tuple[list[tuple[Measured, Measured]], str]:
    """As many runs on both sides: in the order of their seeds. Else those of the same seed, and a
    sentence on the others."""
    if len(firsts) == len(seconds):
        return list(zip(firsts, seconds, strict=True)), ""
    pairs = [(a, b) for a in firsts for b in seconds if a.seed == b.seed]
    paired = {a.seed for a, _ in pairs}
    alone = [
        f"{one.label}, seed {one.seed}" for one in (*firsts, *seconds) if one.seed not in paired
    ]
    return pairs, f" Not paired: {'; '.join(alone)}."


def claim_of(firsts: Sequence[Measured], seconds: Sequence[Measured]) -> Claim:
    """Of two groups of runs that differ in their seeds; undecided where there is no pair."""
    first, second = firsts[0], seconds[0]
    key = f"{first.label} / {second.label}"
    claim = f"{first.label} substantially outperforms {second.label}"
    pairs, alone = _pairs(firsts, seconds)
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
        sentence += f" {second.label} is better by: {', '.join(wins)}."
    return Claim(
        key=key,
        claim=claim,
        verdict=agreed,
        sentence=sentence + alone,
        effects=found[0],
        figure="comparison.png",
    )


def _budget(first: Measured, second: Measured) -> str:
    size = f"{first.parameters:,} and {second.parameters:,} parameters"
    times = times_of(first, second)
    if times is None:
        return f"{size}; training times that can be compared are not recorded."
    return f"The first was trained {times:.2g} times as long; {size}."
