"""The claims of the paper on guidance scales (section 3.3.7), decided on plain guidance.

Quality is best at w = 2, adherence at w = 10; diversity falls and brightness rises with w.
"""

from sfumato.evaluation.metrics.registry import metric_of, title_of
from sfumato.studies.study import ACCURACY, DIVERSITY, FRECHET
from sfumato.studies.verdicts import Claim, Evidence

PLAIN = "cfg"
SCALES = (0.0, 2.0, 5.0, 10.0)
"""The paper's, by the convention of Eq. 1: w = 0 is unconditional."""
_CLAIMS = (
    (
        "quality_best_at_2",
        "w = 2 has the best quality: the smallest Frechet distance of w = 0, 2, 5, 10",
        FRECHET,
        ((0.0, 2.0), (5.0, 2.0), (10.0, 2.0)),
    ),
    (
        "adherence_best_at_10",
        "w = 10 has the best adherence: the highest class accuracy of w = 0, 2, 5, 10",
        ACCURACY,
        ((10.0, 0.0), (10.0, 2.0), (10.0, 5.0)),
    ),
    (
        "diversity_falls",
        "Diversity within a class falls from w = 2 to 5 and from 5 to 10",
        DIVERSITY,
        ((2.0, 5.0), (5.0, 10.0)),
    ),
    (
        "brightness_rises",
        "Brightness rises from w = 2 to w = 10",
        "brightness",
        ((10.0, 2.0),),
    ),
    (
        "saturated_rises",
        "The share of saturated values rises from w = 2 to w = 10",
        "saturated",
        ((10.0, 2.0),),
    ),
)
"""Key, claim, metric, and pairs of scales of which the first has more."""


def scale_claims(evidence: Evidence) -> list[Claim]:
    """None where less than two of the paper's scales were sampled; a claim on a scale that was not
    sampled is not decidable."""
    sampled = [scale for variant, scale in evidence.scores if variant == PLAIN]
    if len({*SCALES} & {*sampled}) < 2:
        return []
    claims = []
    for key, claim, measure, pairs in _CLAIMS:
        lacking = sorted({scale for pair in pairs for scale in pair} - {*sampled})
        if lacking:
            missing = ", ".join(f"{scale:g}" for scale in lacking)
            claims.append(Claim.undecided(key, claim, f"Nothing was sampled at w = {missing}."))
            continue
        effects = [
            evidence.effect(
                f"{title_of(measure)} at w = {high:g} less w = {low:g}",
                measure,
                evidence.values(PLAIN, high, measure),
                evidence.values(PLAIN, low, measure),
            )
            for high, low in pairs
        ]
        values = [f"{evidence.mean(PLAIN, w, measure)} at w = {w:g}" for w in sampled]
        real = evidence.real.get(measure)
        real_text = f"; real images {metric_of(measure).format(real.value)}" if real else ""
        sentence = f"{title_of(measure).capitalize()}: {', '.join(values)}{real_text}."
        claims.append(Claim.decided(key, claim, effects, sentence=sentence, figure="guidance.png"))
    return claims
