"""The claims of the paper on guidance scales (section 3.3.7), decided on plain guidance.

Quality is best at w = 2, adherence at w = 10; diversity falls and brightness rises with w.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from sfumato.evaluation.arms import MEASURES, Measured
from sfumato.evaluation.card import Figure
from sfumato.evaluation.metrics.diversity import diversity_difference
from sfumato.evaluation.metrics.paired import paired_bootstrap, share_difference
from sfumato.studies.verdicts import (
    AGREEMENT,
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
    """`measured` and `distances` by guidance scale, images of the same seeds at all; `distances`
    (N,): pseudo-values of the Frechet distance, whose mean it is."""

    measured: Mapping[float, Measured]
    distances: Mapping[float, Tensor]
    real: Mapping[str, Figure]

    def claims(self) -> list[Claim]:
        """None where no scale of the paper was drawn; what lacks one is not decidable here."""
        if len([scale for scale in SCALES if scale in self.measured]) < 2:
            return []
        return [
            self._best_quality(),
            self._best_adherence(),
            self._diversity(),
            self._rises("brightness", "Brightness", GREY_LEVELS),
            self._rises("saturated", "The share of saturated values", SATURATED),
        ]

    def _missing(self, *scales: float) -> str:
        lacking = [f"{scale:g}" for scale in scales if scale not in self.measured]
        return f"Nothing was drawn at w = {', '.join(lacking)}." if lacking else ""

    def _told(self, measure: str, values: Mapping[float, float]) -> str:
        """`0.21 at w = 0, ...; real images 0.2`."""
        of = MEASURES[measure]
        told = ", ".join(f"{of.told(value)} at w = {scale:g}" for scale, value in values.items())
        real = f"; real images {of.told(self.real[measure].value)}" if measure in self.real else ""
        return f"{of.title}: {told}{real}."

    def _best_quality(self) -> Claim:
        key = "quality_best_at_2"
        claim = "w = 2 has the best quality: the smallest Frechet distance of w = 0, 2, 5, 10"
        if why := self._missing(*SCALES):
            return Claim(key=key, claim=claim, verdict=UNDECIDED, sentence=why)
        best = self.distances[BEST_QUALITY]
        margin = SHARE_OF_REAL * float(best.mean())
        effects = [
            Effect.of(
                f"Frechet distance at w = {scale:g} less w = {BEST_QUALITY:g}",
                paired_bootstrap(self.distances[scale], best),
                measure="frechet",
                margin=margin,
            )
            for scale in SCALES
            if scale != BEST_QUALITY
        ]
        return Claim(
            key=key,
            claim=claim,
            verdict=together([decide(effect) for effect in effects]),
            sentence=self._told("frechet", {s: float(d.mean()) for s, d in self.distances.items()}),
            effects=effects,
            figure=_FIGURE,
        )

    def _best_adherence(self) -> Claim:
        key = "adherence_best_at_10"
        claim = "w = 10 has the best adherence: the highest agreement of w = 0, 2, 5, 10"
        if why := self._missing(*SCALES):
            return Claim(key=key, claim=claim, verdict=UNDECIDED, sentence=why)
        effects = [
            Effect.of(
                f"agreement at w = {BEST_ADHERENCE:g} less w = {scale:g}",
                share_difference(self.measured[BEST_ADHERENCE].right, self.measured[scale].right),
                measure="agreement",
                margin=AGREEMENT,
            )
            for scale in SCALES
            if scale != BEST_ADHERENCE
        ]
        shares = {s: float(m.right.double().mean()) for s, m in self.measured.items()}
        return Claim(
            key=key,
            claim=claim,
            verdict=together([decide(effect) for effect in effects]),
            sentence=self._told("agreement", shares),
            effects=effects,
            figure=_FIGURE,
        )

    def _diversity(self) -> Claim:
        key = "diversity_falls"
        claim = "Diversity within a class falls from w = 2 to 5 and from 5 to 10"
        if why := self._missing(2.0, 5.0, 10.0):
            return Claim(key=key, claim=claim, verdict=UNDECIDED, sentence=why)
        effects = [
            Effect.of(
                f"diversity at w = {low:g} less w = {high:g}",
                diversity_difference(
                    self.measured[low].diversity,
                    self.measured[high].diversity,
                    self.measured[low].labels,
                ),
                measure="diversity",
                margin=SHARE_OF_REAL * self.real["diversity"].value,
            )
            for low, high in ((2.0, 5.0), (5.0, 10.0))
        ]
        values = {scale: m.diversity.value for scale, m in self.measured.items()}
        return Claim(
            key=key,
            claim=claim,
            verdict=together([decide(effect) for effect in effects]),
            sentence=self._told("diversity", values),
            effects=effects,
            figure=_FIGURE,
        )

    def _rises(self, measure: str, name: str, margin: float) -> Claim:
        key = f"{measure}_rises"
        claim = f"{name} rises from w = 2 to w = 10"
        if why := self._missing(2.0, 10.0):
            return Claim(key=key, claim=claim, verdict=UNDECIDED, sentence=why)
        first, second = (self.measured[scale].pixels[measure] for scale in (10.0, 2.0))
        effect = Effect.of(
            f"{name[0].lower()}{name[1:]} at w = 10 less w = 2",
            paired_bootstrap(first, second),
            measure=measure,
            margin=margin,
        )
        values = {scale: float(m.pixels[measure].mean()) for scale, m in self.measured.items()}
        return Claim(
            key=key,
            claim=claim,
            verdict=decide(effect),
            sentence=self._told(measure, values),
            effects=[effect],
            figure=_FIGURE,
        )
