"""Classifiers that were never trained, as the paper measured with: a baseline of class accuracy."""

from collections.abc import Callable
from statistics import fmean

from torch import Tensor

from sfumato.config.sections import DataConfig
from sfumato.data.records import load_records
from sfumato.data.survey import resolve
from sfumato.evaluation.classifier import check_classes, logits_of, random_classifier
from sfumato.evaluation.metrics.intervals import Estimate, wilson

COUNT = 20


def accuracy_over_seeds(
    logits: Callable[[int], Tensor], labels: Tensor, *, classes: int, count: int = COUNT
) -> Estimate:
    """Accuracy of classifiers with random weights by their seeds 0, 1, ...: the mean, between the
    lowest and the highest, beside that of guessing (`details["chance"]`) and that of seed 0.

    `logits(seed)`: (N, classes) of images of the classes `labels` (N,).
    """
    found = [
        wilson(int((logits(seed).argmax(1) == labels).sum()), len(labels)) for seed in range(count)
    ]
    values = [accuracy.value for accuracy in found]
    (low, high) = found[0].interval
    return Estimate(
        value=fmean(values),
        low=min(values),
        high=max(values),
        count=count,
        percent=True,
        details={"chance": 1 / classes, "first": values[0], "first_low": low, "first_high": high},
    )


def untrained_accuracy(
    data: DataConfig, images: Tensor, labels: Tensor, *, count: int = COUNT
) -> Estimate:
    """What `count` networks with random weights, `untrained:0` and on, make of `images`.

    `images`: uint8 (N, C, H, W) of the classes of `data`, real or generated; `labels`: (N,).
    """
    reference = load_records(resolve(data), "reference")
    check_classes(reference, data)
    return accuracy_over_seeds(
        lambda seed: logits_of(random_classifier(reference, seed=seed), images),
        labels,
        classes=len(reference.class_names),
        count=count,
    )
