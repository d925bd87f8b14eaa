"""The claims of the paper on guidance scales (section 3.3.7), decided on plain guidance.

Quality is best at w = 2, adherence at w = 10; diversity falls and brightness rises with w.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from sfumato.evaluation.metrics.diversity import diversity_difference
from sfumato.evaluation.metrics.intervals import Estimate
from sfumato.evaluation.metrics.paired import paired_bootstrap, share_difference
from sfumato.evaluation.metrics.registry import metric_of, title_of
from sfumato.evaluation.reference import Scores
from sfumato.studies.study import ACCURACY, DIVERSITY, FRECHET
from sfumato.studies.verdicts import (
    ACCURACY as ACCURACY_MARGIN,
)
from sfumato.studies.verdicts import (
    SHARE_OF_REAL,
    UNDECIDED,
    Claim,
    Effect,
    decide,
    together,
)

SCALES = (0.0, 2.0, 5.0, 10.0)
"""The paper's, by the convention of Eq. 1: w = 0 is unconditional."""
BEST_QUALITY, BEST_ADHERENCE = 2.0, 10.0
GREY_LEVELS = 2.55 / 255
"""Smallest difference of a mean brightness that matters: one part in a hundred."""
SATURATED = 0.01
"""Smallest difference of a share of saturated values that matters."""
_FIGURE = "guidance.png"


@dataclass(frozen=True, kw_only=True)
class ScaleEvidence:
    """`scores` by guidance scale, of images of the same seeds and of the classes `labels` (N,);
    `real`: what real images score."""

    scores: Mapping[float, Scores]
    labels: Tensor
    real: Mapping[str, Estimate]

    def claims(self) -> list[Claim]:
        """None where no scale of the paper was sampled; what lacks one is not decidable here."""
        if len([scale for scale in SCALES if scale in self.scores]) < 2:
            return []
        return [
            self._best_quality(),
            self._best_adherence(),
            self._diversity(),
            self._rises("brightness", "Brightness", GREY_LEVELS),
            self._rises("saturated", "The share of saturated values", SATURATED),
        ]

    def _values(self, scale: float, key: str) -> Tensor:
        return self.scores[scale].values[key]

    def _claim(
        self,
        key: str,
        claim: str,
        measure: str,
        scales: Sequence[float],
        effects: Callable[[], list[Effect]],
    ) -> Claim:
        """Decided of all effects together, where every one of `scales` was sampled."""
        lacking = [f"{scale:g}" for scale in scales if scale not in self.scores]
        if lacking:
            why = f"Nothing was sampled at w = {', '.join(lacking)}."
            return Claim(key=key, claim=claim, verdict=UNDECIDED, sentence=why)
        found = effects()
        return Claim(
            key=key,
            claim=claim,
            verdict=together([decide(effect) for effect in found]),
            sentence=self._sentence(measure),
            effects=found,
            figure=_FIGURE,
        )

    def _sentence(self, key: str) -> str:
        """`Frechet: 0.21 at w = 0, ...; real images 0.2`"""
        of = metric_of(key)
        values = ", ".join(
            f"{of.format(float(one.values[key].double().mean()))} at w = {scale:g}"
            for scale, one in self.scores.items()
        )
        real = f"; real images {of.format(self.real[key].value)}" if key in self.real else ""
        title = title_of(key)
        return f"{title[0].upper()}{title[1:]}: {values}{real}."

    def _best_quality(self) -> Claim:
        def effects() -> list[Effect]:
            best = self._values(BEST_QUALITY, FRECHET)
            return [
                Effect.of(
                    f"Frechet distance at w = {scale:g} less w = {BEST_QUALITY:g}",
                    paired_bootstrap(self._values(scale, FRECHET), best),
                    measure=FRECHET,
                    margin=SHARE_OF_REAL * float(best.mean()),
                )
                for scale in SCALES
                if scale != BEST_QUALITY
            ]

        claim = "w = 2 has the best quality: the smallest Frechet distance of w = 0, 2, 5, 10"
        return self._claim("quality_best_at_2", claim, FRECHET, SCALES, effects)

    def _best_adherence(self) -> Claim:
        def effects() -> list[Effect]:
            best = self._values(BEST_ADHERENCE, ACCURACY)
            return [
                Effect.of(
                    f"class accuracy at w = {BEST_ADHERENCE:g} less w = {scale:g}",
                    share_difference(best, self._values(scale, ACCURACY)),
                    measure=ACCURACY,
                    margin=ACCURACY_MARGIN,
                )
                for scale in SCALES
                if scale != BEST_ADHERENCE
            ]

        claim = "w = 10 has the best adherence: the highest class accuracy of w = 0, 2, 5, 10"
        return self._claim("adherence_best_at_10", claim, ACCURACY, SCALES, effects)

    def _diversity(self) -> Claim:
        def effects() -> list[Effect]:
            return [
                Effect.of(
                    f"diversity at w = {low:g} less w = {high:g}",
                    diversity_difference(
                        self._values(low, DIVERSITY), self._values(high, DIVERSITY), self.labels
                    ),
                    measure=DIVERSITY,
                    margin=SHARE_OF_REAL * self.real[DIVERSITY].value,
                )
                for low, high in ((2.0, 5.0), (5.0, 10.0))
            ]

        claim = "Diversity within a class falls from w = 2 to 5 and from 5 to 10"
        return self._claim("diversity_falls", claim, DIVERSITY, (2.0, 5.0, 10.0), effects)

    def _rises(self, measure: str, name: str, margin: float) -> Claim:
        def effects() -> list[Effect]:
            first, second = (self._values(scale, measure) for scale in (10.0, 2.0))
            what = f"{name[0].lower()}{name[1:]} at w = 10 less w = 2"
            found = paired_bootstrap(first, second)
            return [Effect.of(what, found, measure=measure, margin=margin)]

        claim = f"{name} rises from w = 2 to w = 10"
        return self._claim(f"{measure}_rises", claim, measure, (2.0, 10.0), effects)
