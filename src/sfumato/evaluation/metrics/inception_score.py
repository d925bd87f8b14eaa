"""Inception score: sharp and varied predictions of a classifier (Salimans et al. 2016)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.base.randomness import generator_for
from sfumato.evaluation.metrics.checks import checked_features
from sfumato.evaluation.metrics.features import ImageFeatures
from sfumato.evaluation.metrics.intervals import Estimate
from sfumato.evaluation.metrics.registry import Metric, Score

FEWEST_IMAGES = 500
"""Ten parts of less than 50 images have no inception score worth the name."""
SUM_TOLERANCE = 1e-3
"""By how much a row of probabilities may miss 1: half precision does by 5e-4."""


@dataclass(frozen=True, kw_only=True)
class InceptionScore:
    """`value`: the mean over `splits` parts, `std` their deviation (of a sample); in [1, K].

    `whole` is the score of all `count` rows as one part, which no shuffle changes. It depends on
    the classifier and on the rows a part has: compare at equal numbers.
    """

    value: float
    std: float
    whole: float
    splits: int
    count: int


def inception_score(
    probabilities: Tensor, *, generator: torch.Generator, splits: int = 10
) -> InceptionScore:
    """exp of the mean KL(p(y | x) || p(y)) (Salimans et al. 2016, section 4).

    `probabilities` (N, K): each row sums to 1. Rows are shuffled by `generator` (of the CPU)
    before they are split, since images often come class by class. With one split, `std` is 0.
    `ValueError` for N < `splits`, NaN, or rows that are no probabilities.
    """
    if splits < 1:
        raise ValueError(f"splits must be at least 1, got {splits}")
    values = checked_features(probabilities, name="probabilities", rows=splits).double()
    sums = values.sum(dim=1)
    if bool((values < 0).any()) or bool(((sums - 1).abs() > SUM_TOLERANCE).any()):
        raise ValueError(
            "rows of probabilities must be >= 0 and sum to 1, "
            f"got sums of {float(sums.min()):.4g} to {float(sums.max()):.4g}; "
            "give logits to inception_score_of_logits"
        )
    values = values / sums[:, None]
    order = torch.randperm(len(values), generator=generator).to(values.device)
    scores = torch.stack([_score(part) for part in values[order].tensor_split(splits)])
    return InceptionScore(
        value=float(scores.mean()),
        std=float(scores.std()) if splits > 1 else 0.0,
        whole=float(_score(values)),
        splits=splits,
        count=len(values),
    )


def inception_score_of_logits(
    logits: Tensor, *, generator: torch.Generator, splits: int = 10
) -> InceptionScore:
    """The score of softmax(`logits`), (N, K) of any real values; errors as `inception_score`."""
    checked = checked_features(logits, name="logits", rows=splits)
    return inception_score(checked.double().softmax(dim=1), generator=generator, splits=splits)


def _score(probabilities: Tensor) -> Tensor:
    """(N, K) => scalar. KL = mean sum p log p - sum q log q, with q the mean row, 0 log 0 = 0."""
    marginal = probabilities.mean(dim=0)
    own = torch.special.xlogy(probabilities, probabilities).sum(dim=1).mean()
    return (own - torch.special.xlogy(marginal, marginal).sum()).clamp(min=0).exp()


def inception_score_score(generated: ImageFeatures, reference: ImageFeatures) -> Score | None:
    """None for less than `FEWEST_IMAGES`."""
    logits = generated.logits[: len(generated.rows)]
    if len(logits) < FEWEST_IMAGES:
        return None
    found = inception_score_of_logits(logits, generator=generator_for("inception score"))
    details = {"std": found.std, "whole": found.whole}
    return Score(estimate=Estimate(value=found.value, count=found.count, details=details))


INCEPTION_SCORE = Metric(
    name="inception_score",
    title="IS",
    needs="logits",
    compute=inception_score_score,
    better="higher",
    digits=2,
    interval=False,
    real=True,
    order=295,
)
