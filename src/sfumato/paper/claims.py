"""The claims of the paper on guidance (section 3.2.7), decided from images of the same seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sfumato.base.images import ValueRange
from sfumato.evaluation.metrics.curves import Plateau, plateau
from sfumato.evaluation.metrics.diversity import diversity_difference
from sfumato.evaluation.metrics.intervals import Estimate, difference_of_shares, wilson
from sfumato.evaluation.metrics.paired import paired_bootstrap, share_difference
from sfumato.evaluation.metrics.registry import metric_of
from sfumato.evaluation.reference import Scores
from sfumato.studies.study import ACCURACY, DIVERSITY, OF_PIXELS
from sfumato.studies.verdicts import (
    ACCURACY as ACCURACY_MARGIN,
)
from sfumato.studies.verdicts import (
    NOT_HELD,
    SHARE_OF_REAL,
    UNDECIDED,
    Claim,
    Effect,
    Verdict,
    because,
    decide,
    opposite,
    together,
)

NONE, GUIDED = 1.0, 5.0
"""The two guidance scales that the paper compares: w = 1 is conditional without guidance."""
EARLY_EPOCHS, LATE_EPOCHS = 5, 20

GREY_LEVEL = 1 / 255
"""Smallest difference of an RMS that matters: below it, 8 bits do not show it."""
LOSS = 0.05
"""A loss that falls by less over a quarter of the training has come to rest."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What claims are decided from.

    `scores` by arm and guidance scale: `without` and `with` dropout, `clipped`, `stretched` and
    `early` (an older checkpoint's), as far as there are such; `labels` (N,): the classes of the
    images; `digits`: the classes 4 and 5, or none; `also_differ`: what the two models differ in
    beside dropout; `epochs`: of the older checkpoint and of the newest one; `losses`: the records
    of metrics.jsonl, `total_images` the run's length; `value_range`: of the pixels inside the
    network.
    """

    scores: Mapping[tuple[str, float], Scores]
    labels: Tensor
    real: Mapping[str, Estimate]
    digits: Sequence[int]
    also_differ: Sequence[str]
    epochs: tuple[float, float] | None
    losses: Sequence[Mapping[str, Any]]
    total_images: int
    value_range: ValueRange

    def claims(self) -> list[Claim]:
        return [
            *(self._noisier(measure) for measure in _NOISE),
            *(self._noisier_than_with_dropout(measure) for measure in _NOISE),
            self._because_of_dropout(),
            *(self._post_processing(measure) for measure in _NOISE),
            *self._digits(),
            *self._longer(),
            self._diversity("without"),
            self._diversity("with"),
            self._loss(),
        ]

    def _margin(self, measure: str) -> float:
        relative = measure in ("high_frequency", DIVERSITY)
        return SHARE_OF_REAL * self.real[measure].value if relative else GREY_LEVEL

    def _has(self, key: str) -> bool:
        return (key, GUIDED) in self.scores

    def _values(self, key: str, scale: float, measure: str) -> Tensor:
        return self.scores[key, scale].values[measure]

    def _rise(self, key: str, measure: str) -> Tensor:
        """(N,): how much more an image has at w = 5 than the same one at w = 1."""
        return self._values(key, GUIDED, measure) - self._values(key, NONE, measure)

    def _effect(self, what: str, first: Tensor, second: Tensor, measure: str) -> Effect:
        return Effect.of(
            what, paired_bootstrap(first, second), measure=measure, margin=self._margin(measure)
        )

    def _noise_effect(self, key: str, measure: str) -> Effect:
        first, second = (self._values(key, scale, measure) for scale in (GUIDED, NONE))
        return self._effect(f"{_NOISE[measure]}, w = 5 less w = 1", first, second, measure)

    def _mean(self, key: str, scale: float, measure: str) -> str:
        return metric_of(measure).format(float(self._values(key, scale, measure).mean()))

    def _noisier(self, measure: str) -> Claim:
        effect = self._noise_effect("without", measure)
        return Claim(
            key=f"noise_{measure}",
            claim=f"Without dropout, w = 5 is noisier than w = 1: {_NOISE[measure]}",
            verdict=decide(effect),
            sentence=f"{self._mean('without', NONE, measure)} at w = 1, "
            f"{self._mean('without', GUIDED, measure)} at w = 5; real digits have "
            f"{metric_of(measure).format(self.real[measure].value)}.",
            effects=[effect],
            figure="findings.png",
        )

    def _more_than_with(self, measure: str) -> Effect:
        return self._effect(
            f"{_NOISE[measure]}: rise without dropout less rise with it",
            self._rise("without", measure),
            self._rise("with", measure),
            measure,
        )

    def _noisier_than_with_dropout(self, measure: str) -> Claim:
        key = f"dropout_{measure}"
        claim = f"Guidance adds more noise without dropout than with it: {_NOISE[measure]}"
        if not self._has("with"):
            return _undecided(key, claim, "No run with caption dropout was given.")
        effect = self._more_than_with(measure)
        return Claim(
            key=key,
            claim=claim,
            verdict=decide(effect),
            sentence=f"From w = 1 to 5: {self._mean('without', NONE, measure)} to "
            f"{self._mean('without', GUIDED, measure)} without dropout, "
            f"{self._mean('with', NONE, measure)} to {self._mean('with', GUIDED, measure)} with.",
            effects=[effect],
            figure="findings.png",
        )

    def _because_of_dropout(self) -> Claim:
        key = "because_of_dropout"
        claim = "The noise is there because the model was trained without dropout"
        noisier: dict[str, Verdict] = {
            measure: decide(self._noise_effect("without", measure)) for measure in _NOISE
        }
        # One measure that rises is noise enough; the cause is asked of those that may.
        rising = [name for name in _NOISE if noisier[name] != NOT_HELD]
        if not rising:
            return Claim(
                key=key,
                claim=claim,
                verdict=NOT_HELD,
                sentence="There is no such noise at w = 5 that could have a cause.",
            )
        if not self._has("with"):
            return _undecided(key, claim, "No run with caption dropout was given.")
        effects = [self._more_than_with(measure) for measure in rising]
        verdict = because(
            together([noisier[name] for name in rising]),
            together([decide(effect) for effect in effects]),
            also_differ=self.also_differ,
        )
        sentence = "The two runs differ in dropout alone."
        if self.also_differ:
            shown = "; ".join(self.also_differ[:4])
            more = len(self.also_differ) - 4
            sentence = (
                f"The two runs differ in {len(self.also_differ)} more settings ({shown}"
                + (f"; and {more} more" if more > 0 else "")
                + "), so that dropout alone can be neither blamed nor cleared: train two runs that "
                "differ in training.caption_dropout only."
            )
        sentence += f" Noise rises, or may, by {len(rising)} of {len(_NOISE)} measures."
        return Claim(key=key, claim=claim, verdict=verdict, sentence=sentence, effects=effects)

    def _post_processing(self, measure: str) -> Claim:
        key = f"post_processing_{measure}"
        claim = (
            "The picture's post-processing (x0 clipped to [-1, 1], then each image from its "
            f"minimum to its maximum) adds to that noise: {_NOISE[measure]}"
        )
        if not self._has("stretched"):
            low, high = self.value_range
            return _undecided(
                key,
                claim,
                f"This run's values lie in [{low:g}, {high:g}], which that clipping leaves alone.",
            )
        effect = self._effect(
            f"{_NOISE[measure]}: rise in the paper's pictures less rise in ours",
            self._rise("stretched", measure),
            self._rise("without", measure),
            measure,
        )
        ways = (("without", "ours"), ("clipped", "clipped"), ("stretched", "clipped and stretched"))
        values = "; ".join(
            f"{name} {self._mean(way, NONE, measure)} to {self._mean(way, GUIDED, measure)}"
            for way, name in ways
        )
        return Claim(
            key=key,
            claim=claim,
            verdict=decide(effect),
            sentence=f"From w = 1 to 5: {values}.",
            effects=[effect],
            figure="examples.png",
        )

    def _digits(self) -> list[Claim]:
        keys = ("digits_are_worse", "digits_improve")
        claims = (
            "Without guidance digits 4 and 5 are worse than the others",
            "Guidance at w = 5 improves digits 4 and 5",
        )
        if not self.digits:
            why = "These data have no classes 4 and 5."
            return [_undecided(*both, why) for both in zip(keys, claims, strict=True)]
        unguided, guided = (self._values("without", scale, ACCURACY) for scale in (NONE, GUIDED))
        chosen = torch.isin(self.labels, torch.tensor(self.digits))
        shares = [
            wilson(int(right.sum()), len(right)) for right in (unguided[~chosen], unguided[chosen])
        ]
        worse = difference_of_shares(*shares)
        improved = share_difference(guided[chosen], unguided[chosen])

        def share(right: Tensor) -> str:
            return f"{100 * float(right.double().mean()):.1f} % of {len(right)}"

        effects = (
            Effect.of(
                "class accuracy of the others less that of 4 and 5",
                worse,
                measure=ACCURACY,
                margin=ACCURACY_MARGIN,
            ),
            Effect.of(
                "class accuracy of 4 and 5, w = 5 less w = 1",
                improved,
                measure=ACCURACY,
                margin=ACCURACY_MARGIN,
            ),
        )
        sentences = (
            f"At w = 1 the classifier is right on {share(unguided[chosen])} digits 4 and 5, and on "
            f"{share(unguided[~chosen])} others.",
            f"Digits 4 and 5: {share(unguided[chosen])} at w = 1, "
            f"{share(guided[chosen])} at w = 5; the others "
            f"{share(unguided[~chosen])} and {share(guided[~chosen])}.",
        )
        return [
            Claim(key=k, claim=c, verdict=decide(e), sentence=s, effects=[e], figure=_JSON)
            for k, c, e, s in zip(keys, claims, effects, sentences, strict=True)
        ]

    def _longer(self) -> list[Claim]:
        """5 against 20 epochs: class accuracy at w = 1 and 5, noise at w = 5."""
        start = f"{LATE_EPOCHS} epochs give better digits than {EARLY_EPOCHS}"
        asked = {
            f"longer_accuracy_w{scale:g}": f"{start}: class accuracy at w = {scale:g}"
            for scale in (NONE, GUIDED)
        }
        asked["longer_noise"] = f"{start}: less border RMS at w = 5"
        if self.epochs is None:
            return [
                _undecided(key, claim, "The run keeps no older checkpoint.")
                for key, claim in asked.items()
            ]
        effects = [
            Effect.of(
                f"class accuracy at w = {scale:g}, later less earlier",
                share_difference(
                    self._values("without", scale, ACCURACY),
                    self._values("early", scale, ACCURACY),
                ),
                measure=ACCURACY,
                margin=ACCURACY_MARGIN,
            )
            for scale in (NONE, GUIDED)
        ]
        effects.append(
            self._effect(
                "border RMS at w = 5, earlier less later",
                self._values("early", GUIDED, "border_rms"),
                self._values("without", GUIDED, "border_rms"),
                "border_rms",
            )
        )
        early, late = self.epochs
        compared = f"Measured after {early:.1f} and {late:.1f} epochs"
        near = abs(early - EARLY_EPOCHS) <= 0.5 and abs(late - LATE_EPOCHS) <= 0.5

        def share(key: str, scale: float) -> str:
            return f"{100 * float(self._values(key, scale, ACCURACY).double().mean()):.1f} %"

        values = [f"{share('early', w)} and {share('without', w)}" for w in (NONE, GUIDED)] + [
            f"{self._mean('early', GUIDED, 'border_rms')} and "
            f"{self._mean('without', GUIDED, 'border_rms')}"
        ]
        return [
            Claim(
                key=key,
                claim=claim,
                verdict=decide(effect) if near else UNDECIDED,
                sentence=f"{compared}: {found}."
                + ("" if near else f" Of these epochs the claim is: {decide(effect)}."),
                effects=[effect],
                figure=_JSON,
            )
            for (key, claim), effect, found in zip(asked.items(), effects, values, strict=True)
        ]

    def _diversity(self, key: str) -> Claim:
        which = {"without": "without dropout", "with": "with dropout"}[key]
        claim = f"Diversity within a class falls from w = 1 to w = 5, {which}"
        if not self._has(key):
            return _undecided(f"diversity_{key}", claim, "No run with caption dropout was given.")
        first, second = (self._values(key, scale, DIVERSITY) for scale in (NONE, GUIDED))
        effect = Effect.of(
            "diversity at w = 1 less w = 5",
            diversity_difference(first, second, self.labels),
            measure=DIVERSITY,
            margin=self._margin(DIVERSITY),
        )
        values = ", ".join(
            f"{found.metrics[DIVERSITY].value:.2f} at w = {scale:g}"
            for (arm, scale), found in self.scores.items()
            if arm == key and scale >= NONE
        )
        return Claim(
            key=f"diversity_{key}",
            claim=claim,
            verdict=decide(effect),
            sentence=f"Mean distance of two images of a class: {values}; real digits "
            f"{self.real[DIVERSITY].value:.3g}.",
            effects=[effect],
            figure="findings.png",
        )

    def _loss(self) -> Claim:
        key, claim = "loss_plateaus", "The training loss comes to rest"
        if not self.losses:
            return _undecided(key, claim, "The run has no record of its loss yet.")
        try:
            found = plateau([record["loss"] for record in self.losses])
        except ValueError as error:
            return _undecided(key, claim, f"{error}.")
        effect = Effect.of(
            "fall of the loss from the third to the last quarter",
            found.fall,
            measure="loss",
            margin=LOSS,
        )
        verdict: Verdict = opposite(decide(effect))
        sentence = _loss_text(found)
        seen = self.losses[-1]["images"]
        if seen < 0.95 * self.total_images:
            sentence += (
                f" The run has only come to {seen:,} of {self.total_images:,} images; of these the "
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


_NOISE = {
    "border_rms": "RMS of the outer 4 pixels",
    "border_deviation": "RMS of the outer 4 pixels about their own mean",
    "edge_rms": "RMS of the outer 2 pixels",
    "high_frequency": "share of power above half Nyquist",
}
"""What noise is, by measure: the pixels that are blank in MNIST, with an even grey and without it,
and fine grain anywhere."""

_JSON = "findings.json"

assert set(_NOISE) < set(OF_PIXELS)


def _undecided(key: str, claim: str, why: str) -> Claim:
    return Claim(key=key, claim=claim, verdict=UNDECIDED, sentence=why)


def _loss_text(found: Plateau) -> str:
    return (
        f"Its mean is {found.first_tenth:.4f} in the first tenth of the records, "
        f"{found.third_quarter:.4f} in the third quarter and {found.last_quarter:.4f} in the last: "
        f"{100 * found.fall.value:.1f} % less (95 % interval {100 * found.fall.interval[0]:.1f} to "
        f"{100 * found.fall.interval[1]:.1f}); at rest is less than {100 * LOSS:g} %."
    )
