"""Do images keep away from known styles and known images? Beside real test images."""

from math import log

from torch import Tensor

from sfumato.evaluation.metrics.checks import checked_features
from sfumato.evaluation.metrics.features import ImageFeatures
from sfumato.evaluation.metrics.intervals import bootstrap_mean
from sfumato.evaluation.metrics.memorisation import memorisation_of
from sfumato.evaluation.metrics.registry import Metric, Score


def style_ambiguity(logits: Tensor) -> Tensor:
    """(N, K) => (N,) float64: the entropy of softmax over log K. 0 is certain of one style, 1 finds
    all equally likely. `ValueError` for less than two styles, NaN.
    """
    log_p = checked_features(logits, name="logits").double().log_softmax(1)
    if log_p.shape[1] < 2:
        raise ValueError("one style cannot be ambiguous; two or more are needed")
    return -(log_p.exp() * log_p).sum(1) / log(log_p.shape[1])


def _ambiguity_score(generated: ImageFeatures, reference: ImageFeatures) -> Score:
    logits = generated.logits
    if reference.labels is not None:  # a class that no image has is none to be undecided between
        logits = logits[:, reference.labels.unique().to(logits.device)]
    values = style_ambiguity(logits).cpu()
    return Score(estimate=bootstrap_mean(values), values=values)


def _novelty_score(generated: ImageFeatures, reference: ImageFeatures) -> Score:
    """Differs from the memorised share: a mean over all images, not a share of the closest."""
    found = memorisation_of(generated, reference)
    values = (found.distances.double() / found.test_distances.double().mean()).cpu()
    return Score(estimate=bootstrap_mean(values), values=values)


STYLE_AMBIGUITY = Metric(
    name="style_ambiguity",
    title="style ambiguity",
    needs="classifier",
    compute=_ambiguity_score,
    shown=("compare",),
    default=False,
    real=True,
    order=300,
    about="style ambiguity: entropy of the classifier over the log of the number of classes there",
)
NOVELTY = Metric(
    name="novelty",
    title="novelty",
    needs="training",
    compute=_novelty_score,
    shown=("compare",),
    default=False,
    order=310,
    about="novelty: distance to the nearest training image, where 1 is that of real test images",
)
