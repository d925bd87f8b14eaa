"""Calibration: how far a classifier's probabilities can be believed."""

import torch.nn.functional as F
from torch import Tensor

LEAST, MOST = 0.01, 100.0
"""Temperatures lie between these: where every label is right, none is low enough."""


def negative_log_likelihood(logits: Tensor, labels: Tensor, *, temperature: float = 1.0) -> float:
    """Mean of -log p(label), in nats: `logits` (N, K), `labels` (N,) int64."""
    return float(F.cross_entropy(logits.double() / temperature, labels))


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The T whose softmax(logits / T) gives `labels` the highest likelihood (Guo et al. 2017).

    `logits`: (N, K); `labels`: (N,) int64. The likelihood is concave in 1 / T, so that the zero of
    its derivative is found by halving.
    """
    logits = logits.double()
    at_labels = logits.gather(1, labels[:, None])[:, 0].mean()
    low, high = 1 / MOST, 1 / LEAST
    for _ in range(60):
        middle = (low * high) ** 0.5
        expected = ((logits * middle).softmax(1) * logits).sum(1).mean()
        low, high = (middle, high) if bool(expected < at_labels) else (low, middle)
    return (low * high) ** -0.5
