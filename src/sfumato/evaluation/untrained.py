"""Classifiers that were never trained, as the paper measured with: a baseline of class accuracy."""

from collections.abc import Callable, Sequence
from statistics import fmean

from torch import Tensor

from sfumato.config.sections import DataConfig
from sfumato.data.records import load_records
from sfumato.data.survey import resolve
from sfumato.evaluation.classifier import random_classifier
from sfumato.evaluation.classifier_training import check_classes, logits_of
from sfumato.evaluation.metrics.intervals import Estimate, wilson

COUNT = 20


def accuracies_by_seed(
    logits: Callable[[int], Tensor], labels: Tensor, *, count: int = COUNT
) -> list[Estimate]:
    """Accuracy of classifiers with random weights, by their seeds 0, 1, ...

    `logits(seed)`: (N, classes) of images of the classes `labels` (N,).
    """
    return [
        wilson(int((logits(seed).argmax(1) == labels).sum()), len(labels)) for seed in range(count)
    ]


def over_seeds(accuracies: Sequence[Estimate], *, classes: int) -> Estimate:
    """Their mean, between the lowest and the highest, and `details["chance"]`, that of guessing."""
    values = [accuracy.value for accuracy in accuracies]
    return Estimate(
        value=fmean(values),
        low=min(values),
        high=max(values),
        count=len(values),
        percent=True,
        details={"chance": 1 / classes},
    )


def untrained_accuracies(
    data: DataConfig, images: Tensor, labels: Tensor, *, count: int = COUNT
) -> list[Estimate]:
    """What `count` networks with random weights, `untrained:0` and on, make of `images`.

    `images`: uint8 (N, C, H, W) of the classes of `data`, real or generated; `labels`: (N,).
    """
    reference = load_records(resolve(data), "reference")
    check_classes(reference, data)
    return accuracies_by_seed(
        lambda seed: logits_of(random_classifier(reference, seed=seed), images),
        labels,
        count=count,
    )
