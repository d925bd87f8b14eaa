"""Do images show what their captions ask for? Class accuracy and CLIP score."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.evaluation.metrics.checks import check_same_width, checked_features
from sfumato.evaluation.metrics.features import ImageFeatures
from sfumato.evaluation.metrics.intervals import Estimate, bootstrap_mean, wilson
from sfumato.evaluation.metrics.registry import Metric, Score

CONVENTION = "100 max(cos, 0) of each pair, then the mean"
"""Hessel et al. write 2.5 max(cos, 0): ours / 40. torchmetrics scales by 100 too, but clamps the
mean instead of each pair, which differs only where pairs have a negative cosine."""


@dataclass(frozen=True, kw_only=True)
class ClassAccuracy:
    """`overall`; `classes[k]`, None where class k was never asked for; `confusion` (K, K) int64.

    `confusion[label, predicted]` counts images of the class `label` that are classified as
    `predicted`.
    """

    overall: Estimate
    classes: tuple[Estimate | None, ...]
    confusion: Tensor


def confusion_matrix(labels: Tensor, predicted: Tensor, *, classes: int) -> Tensor:
    """Counts (K, K) int64, on the CPU, row = `labels` (N,), column = `predicted` (N,), in [0, K).

    `ValueError` for unequal lengths, other shapes, labels out of range. Matrices of parts add up.
    """
    for name, given in (("labels", labels), ("predicted", predicted)):
        if given.ndim != 1 or given.is_floating_point():
            raise ValueError(
                f"{name} must be (N,) integers, got {tuple(given.shape)} {given.dtype}"
            )
        if len(given) and not 0 <= int(given.min()) <= int(given.max()) < classes:
            raise ValueError(
                f"{name} has labels from {int(given.min())} to {int(given.max())}; "
                f"{classes} classes are 0 to {classes - 1}"
            )
    if len(labels) != len(predicted):
        raise ValueError(f"{len(labels)} labels and {len(predicted)} predictions are not pairs")
    cells = labels.cpu().long() * classes + predicted.cpu().long()
    return torch.bincount(cells, minlength=classes**2).reshape(classes, classes)


def class_accuracy(confusion: Tensor, *, confidence: float = 0.95) -> ClassAccuracy:
    """Shares on the diagonal of `confusion` (K, K), with Wilson's intervals.

    `ValueError` for a matrix that is not square or holds nothing.
    """
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1] or not confusion.sum():
        raise ValueError(
            f"confusion must be (K, K) with at least 1 image, got {tuple(confusion.shape)} "
            f"with {int(confusion.sum())}"
        )
    right, asked = confusion.diagonal().tolist(), confusion.sum(dim=1).tolist()
    return ClassAccuracy(
        overall=wilson(sum(right), sum(asked), confidence=confidence),
        classes=tuple(
            wilson(k, n, confidence=confidence) if n else None
            for k, n in zip(right, asked, strict=True)
        ),
        confusion=confusion,
    )


def clip_scores(images: Tensor, texts: Tensor) -> Tensor:
    """100 max(cos, 0) of each pair: `images` (N, D), `texts` (N, D) => (N,) float64 in [0, 100].

    Hessel et al. (2021, Eq. 1) with w = 100. Rows are brought to unit length here.
    `ValueError` for unequal shapes, no rows, rows of length 0, NaN.
    """
    images = checked_features(images, name="images")
    texts = checked_features(texts, name="texts")
    check_same_width(images, texts)
    if len(images) != len(texts):
        raise ValueError(f"{len(images)} images and {len(texts)} texts are not pairs")
    scores = []
    for a, b in zip(images.split(4096), texts.split(4096), strict=True):
        a, b = a.double(), b.double()
        lengths = a.norm(dim=1) * b.norm(dim=1)
        if bool((lengths == 0).any()):
            raise ValueError("an image or text feature has length 0: it has no direction")
        scores += ((a * b).sum(dim=1) / lengths).clamp(0, 1).mul(100).tolist()
    return images.new_tensor(scores, dtype=torch.float64)


def clip_score(
    images: Tensor, texts: Tensor, *, confidence: float = 0.95, seed: int = 0
) -> Estimate:
    """The mean of `clip_scores`, with a bootstrap interval over pairs by `seed`."""
    return bootstrap_mean(clip_scores(images, texts), confidence=confidence, seed=seed)


def class_accuracy_of(generated: ImageFeatures) -> ClassAccuracy | None:
    """By the classifier whose features these are; None where the classes are not known."""
    if generated.labels is None:
        return None
    logits, labels = generated.logits, generated.labels
    return generated.once(
        "class accuracy",
        lambda: class_accuracy(confusion_matrix(labels, logits.argmax(1), classes=logits.shape[1])),
    )


def class_accuracy_score(generated: ImageFeatures, reference: ImageFeatures) -> Score | None:
    found = class_accuracy_of(generated)
    if found is None or generated.labels is None:
        return None
    return Score(estimate=found.overall, values=generated.logits.argmax(1) == generated.labels)


CLASS_ACCURACY = Metric(
    name="class_accuracy",
    title="class accuracy",
    needs="classifier",
    compute=class_accuracy_score,
    better="higher",
    percent=True,
    digits=1,
    real=True,
    order=10,
    about="class accuracy: share of images in which the classifier sees the class of the caption, "
    "Wilson's interval",
)
CLIP_SCORE = Metric(
    name="clip_score",
    title="CLIP score",
    needs="text",
    compute=lambda generated, reference: CLIP_SCORE.score(
        clip_scores(generated.rows, generated.text)
    ),
    better="higher",
    digits=2,
    real=True,
    order=20,
    about="CLIP score: 100 max(cos, 0) between image and caption",
)
