"""Agreement of a judge's predictions with what was asked for: in all, by class, and confused."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.evaluation.metrics.intervals import Proportion, wilson


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """`overall`; `classes[k]`, None where class k was never asked for; `confusion` (K, K) int64.

    `confusion[asked, seen]` counts images asked to be `asked` and judged to be `seen`.
    """

    overall: Proportion
    classes: tuple[Proportion | None, ...]
    confusion: Tensor


def confusion_matrix(asked: Tensor, seen: Tensor, *, classes: int) -> Tensor:
    """Counts (K, K) int64, on the CPU, row = `asked` (N,), column = `seen` (N,), both in [0, K).

    `ValueError` for unequal lengths, other shapes, labels out of range. Matrices of parts add up.
    """
    for name, labels in (("asked", asked), ("seen", seen)):
        if labels.ndim != 1 or labels.is_floating_point():
            raise ValueError(
                f"{name} must be (N,) integers, got {tuple(labels.shape)} {labels.dtype}"
            )
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise ValueError(
                f"{name} has labels from {int(labels.min())} to {int(labels.max())}; "
                f"{classes} classes are 0 to {classes - 1}"
            )
    if len(asked) != len(seen):
        raise ValueError(f"{len(asked)} labels asked for and {len(seen)} seen are no pairs")
    cells = asked.cpu().long() * classes + seen.cpu().long()
    return torch.bincount(cells, minlength=classes**2).reshape(classes, classes)


def agreement(confusion: Tensor, *, confidence: float = 0.95) -> Agreement:
    """Shares on the diagonal of `confusion` (K, K), with Wilson's intervals.

    `ValueError` for a matrix that is not square or holds nothing.
    """
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1] or not confusion.sum():
        raise ValueError(
            f"confusion must be (K, K) with at least 1 image, got {tuple(confusion.shape)} "
            f"with {int(confusion.sum())}"
        )
    right, asked = confusion.diagonal().tolist(), confusion.sum(dim=1).tolist()
    return Agreement(
        overall=wilson(sum(right), sum(asked), confidence=confidence),
        classes=tuple(
            wilson(k, n, confidence=confidence) if n else None
            for k, n in zip(right, asked, strict=True)
        ),
        confusion=confusion,
    )
