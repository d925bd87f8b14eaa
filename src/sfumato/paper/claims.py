"""The claims of the paper on guidance (section 3.2.7), decided from images of the same seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sfumato.base.images import ValueRange
from sfumato.evaluation.metrics.curves import Plateau, plateau
from sfumato.evaluation.metrics.intervals import difference_of_shares, wilson
from sfumato.evaluation.metrics.registry import metric_of
from sfumato.studies.study import ACCURACY, DIVERSITY
from sfumato.studies.verdicts import (
    MARGINS,
    NOT_HELD,
    UNDECIDED,
    Claim,
    Effect,
    Evidence,
    Verdict,
    because,
    decide,
    opposite,
    together,
)

NONE, GUIDED = 1.0, 5.0
"""The two guidance scales that the paper compares: w = 1 is conditional without guidance."""
EARLY_EPOCHS, LATE_EPOCHS = 5, 20
NOISE = {
    "border_rms": "RMS of the outer 4 pixels",
    "border_deviation": "RMS of the outer 4 pixels about their own mean",
    "edge_rms": "RMS of the outer 2 pixels",
    "high_frequency": "share of power above half Nyquist",
}
"""What noise is, by metric: the pixels that are blank in MNIST, with an even grey and without it,
and fine grain anywhere."""
_JSON = "findings.json"


@dataclass(frozen=True, kw_only=True)
class PaperEvidence(Evidence):
    """Scores of the variants `without` and `with` dropout, `clipped`, `stretched` and `early` (an
    older checkpoint's), as far as there are such.

    `digits`: the classes 4 and 5, or none; `also_differ`: what the two models differ in beside
    dropout; `epochs`: of the older checkpoint and of the newest one; `losses`: the records of
    metrics.jsonl, `total_images` the run's length; `value_range`: of the pixels inside the network,
    None for latents.
    """

    digits: Sequence[int]
    also_differ: Sequence[str]
    epochs: tuple[float, float] | None
    losses: Sequence[Mapping[str, Any]]
    total_images: int
    value_range: ValueRange | None

    def rise(self, variant: str, measure: str) -> Tensor:
        """(N,): how much more an image has at w = 5 than the same one at w = 1."""
        return self.values(variant, GUIDED, measure) - self.values(variant, NONE, measure)

    def missing(self, variant: str) -> str:
        """Why there is no such variant; empty where there is."""
        if (variant, GUIDED) in self.scores:
            return ""
        clipping = "This run's values are latents, which the paper does not clip."
        if self.value_range is not None:
            low, high = self.value_range
            clipping = (
                f"This run's values lie in [{low:g}, {high:g}], which clipping to [-1, 1] does not "
                "change."
            )
        return {
            "with": "No run with caption dropout was given.",
            "early": "The run keeps no older checkpoint.",
            "stretched": clipping,
        }[variant]


def paper_claims(evidence: PaperEvidence) -> list[Claim]:
    return [
        *(_noise(evidence, claim, measure) for claim in _NOISE_CLAIMS[:2] for measure in NOISE),
        _because_of_dropout(evidence),
        *(_noise(evidence, _NOISE_CLAIMS[2], measure) for measure in NOISE),
        *_digits(evidence),
        *(_longer(evidence, *one) for one in _LONGER),
        _diversity(evidence, "without"),
        _diversity(evidence, "with"),
        _loss(evidence),
    ]


# Noise --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _NoiseClaim:
    """That noise rises from w = 1 to 5, for `more` than for `less` (a variant) or than not at
    all. `shown`: the variants whose values are given as the reason."""

    key: str
    claim: str
    effect: str
    more: str = "without"
    less: str = ""
    shown: Mapping[str, str]
    figure: str = "findings.png"

    def effect_of(self, evidence: PaperEvidence, measure: str) -> Effect:
        what = f"{NOISE[measure]}: {self.effect}"
        if self.less:
            pair = (evidence.rise(variant, measure) for variant in (self.more, self.less))
        else:
            pair = (evidence.values(self.more, scale, measure) for scale in (GUIDED, NONE))
        return evidence.effect(what, measure, *pair)


_NOISE_CLAIMS = (
    _NoiseClaim(
        key="noise",
        claim="Without dropout, w = 5 is noisier than w = 1",
        effect="w = 5 less w = 1",
        shown={"without": "without dropout"},
    ),
    _NoiseClaim(
        key="dropout",
        claim="Guidance adds more noise without dropout than with it",
        effect="rise without dropout less rise with it",
        less="with",
        shown={"without": "without dropout", "with": "with dropout"},
    ),
    _NoiseClaim(
        key="post_processing",
        claim="The picture's post-processing (x0 clipped to [-1, 1], then each image from its "
        "minimum to its maximum) adds to that noise",
        effect="rise in the paper's pictures less rise in ours",
        more="stretched",
        less="without",
        shown={"without": "ours", "clipped": "clipped", "stretched": "clipped and stretched"},
        figure="examples.png",
    ),
)


def _noise(evidence: PaperEvidence, spec: _NoiseClaim, measure: str) -> Claim:
    key, claim = f"{spec.key}_{measure}", f"{spec.claim}: {NOISE[measure]}"
    for variant in spec.shown:
        if variant != "clipped" and (why := evidence.missing(variant)):
            return Claim.undecided(key, claim, why)
    values = "; ".join(
        f"{title} {evidence.mean(variant, NONE, measure)} to "
        f"{evidence.mean(variant, GUIDED, measure)}"
        for variant, title in spec.shown.items()
    )
    real = metric_of(measure).format(evidence.real[measure].value)
    sentence = f"From w = 1 to 5: {values}; real images have {real}."
    effect = spec.effect_of(evidence, measure)
    return Claim.decided(key, claim, [effect], sentence=sentence, figure=spec.figure)


def _because_of_dropout(evidence: PaperEvidence) -> Claim:
    key = "because_of_dropout"
    claim = "The noise is there because the model was trained without dropout"
    rise, more_than_with, _ = _NOISE_CLAIMS
    noisier: dict[str, Verdict] = {
        measure: decide(rise.effect_of(evidence, measure)) for measure in NOISE
    }
    # One measure that rises is noise enough; the cause is asked of those that may.
    rising = [measure for measure in NOISE if noisier[measure] != NOT_HELD]
    if not rising:
        why = "There is no such noise at w = 5 that could have a cause."
        return Claim(key=key, claim=claim, verdict=NOT_HELD, sentence=why)
    if why := evidence.missing("with"):
        return Claim.undecided(key, claim, why)
    effects = [more_than_with.effect_of(evidence, measure) for measure in rising]
    differ = evidence.also_differ
    verdict = because(
        together([noisier[measure] for measure in rising]),
        together([decide(effect) for effect in effects]),
        also_differ=differ,
    )
    sentence = "The two runs differ in dropout alone."
    if differ:
        more = f"; and {len(differ) - 4} more" if len(differ) > 4 else ""
        sentence = (
            f"The two runs differ in {len(differ)} more settings ({'; '.join(differ[:4])}{more}), "
            "so the effect of dropout alone is not known: train two runs that differ in "
            "training.caption_dropout only."
        )
    sentence += f" Noise rises, or may, by {len(rising)} of {len(NOISE)} measures."
    return Claim(key=key, claim=claim, verdict=verdict, sentence=sentence, effects=effects)


# Class accuracy, longer training, diversity, the loss ---------------------------------------------


def _digits(evidence: PaperEvidence) -> list[Claim]:
    keys = ("digits_are_worse", "digits_improve")
    claims = (
        "Without guidance digits 4 and 5 are worse than the others",
        "Guidance at w = 5 improves digits 4 and 5",
    )
    if not evidence.digits:
        why = "These data have no classes 4 and 5."
        return [Claim.undecided(*both, why) for both in zip(keys, claims, strict=True)]
    chosen = torch.isin(evidence.labels, torch.tensor(evidence.digits))
    (own, others), (guided, guided_others) = (
        (right[chosen], right[~chosen])
        for right in (evidence.values("without", scale, ACCURACY) for scale in (NONE, GUIDED))
    )

    def share(right: Tensor) -> str:
        return f"{100 * float(right.double().mean()):.1f} % of {len(right)}"

    worse = Effect.of(
        "class accuracy of the others less that of 4 and 5",
        difference_of_shares(*(wilson(int(x.sum()), len(x)) for x in (others, own))),
        measure=ACCURACY,
        margin=MARGINS[ACCURACY],
    )
    what = "class accuracy of 4 and 5, w = 5 less w = 1"
    improved = evidence.effect(what, ACCURACY, guided, own)
    sentences = (
        f"At w = 1 the classifier is right on {share(own)} digits 4 and 5, and on "
        f"{share(others)} others.",
        f"Digits 4 and 5: {share(own)} at w = 1, {share(guided)} at w = 5; the others "
        f"{share(others)} and {share(guided_others)}.",
    )
    return [
        Claim.decided(key, claim, [effect], sentence=sentence, figure=_JSON)
        for key, claim, effect, sentence in zip(
            keys, claims, (worse, improved), sentences, strict=True
        )
    ]


_LONGER = (
    ("longer_accuracy_w1", f"class accuracy at w = {NONE:g}", ACCURACY, NONE),
    ("longer_accuracy_w5", f"class accuracy at w = {GUIDED:g}", ACCURACY, GUIDED),
    ("longer_noise", f"less border RMS at w = {GUIDED:g}", "border_rms", GUIDED),
)


def _longer(evidence: PaperEvidence, key: str, better: str, measure: str, scale: float) -> Claim:
    """5 against 20 epochs."""
    claim = f"{LATE_EPOCHS} epochs give better digits than {EARLY_EPOCHS}: {better}"
    if evidence.epochs is None:
        return Claim.undecided(key, claim, evidence.missing("early"))
    pair = [evidence.values(variant, scale, measure) for variant in ("without", "early")]
    order = "later less earlier"
    if measure != ACCURACY:  # less noise is better
        pair, order = pair[::-1], "earlier less later"
    what = f"{better.removeprefix('less ')}, {order}"
    effect = evidence.effect(what, measure, *pair)
    early, late = evidence.epochs
    values = " and ".join(evidence.mean(one, scale, measure) for one in ("early", "without"))
    sentence = f"Measured after {early:.1f} and {late:.1f} epochs: {values}."
    found = Claim.decided(key, claim, [effect], sentence=sentence, figure=_JSON)
    if abs(early - EARLY_EPOCHS) <= 0.5 and abs(late - LATE_EPOCHS) <= 0.5:
        return found
    sentence += f" Of these epochs the claim is: {found.verdict}."
    return found.model_copy(update={"verdict": UNDECIDED, "sentence": sentence})


def _diversity(evidence: PaperEvidence, variant: str) -> Claim:
    key = f"diversity_{variant}"
    claim = f"Diversity within a class falls from w = 1 to w = 5, {variant} dropout"
    if why := evidence.missing(variant):
        return Claim.undecided(key, claim, why)
    pair = (evidence.values(variant, scale, DIVERSITY) for scale in (NONE, GUIDED))
    effect = evidence.effect("diversity at w = 1 less w = 5", DIVERSITY, *pair)
    values = ", ".join(
        f"{evidence.mean(variant, scale, DIVERSITY)} at w = {scale:g}"
        for one, scale in evidence.scores
        if one == variant and scale >= NONE
    )
    real = metric_of(DIVERSITY).format(evidence.real[DIVERSITY].value)
    sentence = f"Mean distance of two images of a class: {values}; real images have {real}."
    return Claim.decided(key, claim, [effect], sentence=sentence, figure="findings.png")


def _loss(evidence: PaperEvidence) -> Claim:
    key, claim = "loss_plateaus", "The training loss comes to rest"
    if not evidence.losses:
        return Claim.undecided(key, claim, "The run has no record of its loss yet.")
    try:
        found = plateau([record["loss"] for record in evidence.losses])
    except ValueError as error:
        return Claim.undecided(key, claim, f"{error}.")
    what = "fall of the loss from the third to the last quarter"
    effect = Effect.of(what, found.fall, measure="loss", margin=MARGINS["loss"])
    verdict, sentence = opposite(decide(effect)), _loss_text(found)
    seen = evidence.losses[-1]["images"]
    if seen < 0.95 * evidence.total_images:
        sentence += (
            f" The run has only come to {seen:,} of {evidence.total_images:,} images; of these the "
            f"claim is: {verdict}."
        )
        verdict = UNDECIDED
    return Claim(
        key=key,
        claim=claim,
        verdict=verdict,
        sentence=sentence,
        effects=[effect],
        figure="loss.png",
    )


def _loss_text(found: Plateau) -> str:
    low, high = found.fall.interval
    return (
        f"Its mean is {found.first_tenth:.4f} in the first tenth of the records, "
        f"{found.third_quarter:.4f} in the third quarter and {found.last_quarter:.4f} in the last: "
        f"{100 * found.fall.value:.1f} % less (95 % interval {100 * low:.1f} to "
        f"{100 * high:.1f}); at rest is less than {100 * MARGINS['loss']:g} %."
    )
