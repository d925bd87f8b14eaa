"""CLIP score: does an image fit its caption? (Hessel et al. 2021)"""

import torch
from torch import Tensor

from sfumato.evaluation.metrics.checks import check_same_width, checked_features
from sfumato.evaluation.metrics.intervals import Estimate, bootstrap_mean

CONVENTION = "100 max(cos, 0) of each pair, then the mean"
"""Hessel et al. write 2.5 max(cos, 0): ours / 40. torchmetrics scales by 100 too, but clamps the
mean instead of each pair, which differs only where pairs have a negative cosine."""


def clip_scores(images: Tensor, texts: Tensor) -> Tensor:
    """100 max(cos, 0) of each pair: `images` (N, D), `texts` (N, D) => (N,) float64 in [0, 100].

    Hessel et al. (2021, Eq. 1) with w = 100. Rows are brought to unit length here.
    `ValueError` for unequal shapes, no rows, rows of length 0, NaN.
    """
    images = checked_features(images, name="images")
    texts = checked_features(texts, name="texts")
    check_same_width(images, texts)
    if len(images) != len(texts):
        raise ValueError(f"{len(images)} images and {len(texts)} texts are no pairs")
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
