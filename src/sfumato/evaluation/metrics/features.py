"""Features of a set of images on one extractor, and the checks that every metric makes of them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from sfumato.evaluation.metrics.moments import (
    FeatureStatistics,
    covariance_root,
    feature_statistics,
)

MOST_ROWS = 10_000
"""Rows that distances of pairs are taken of; mean and covariance are of all rows."""
T = TypeVar("T")
Tensors = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageFeatures:
    """`all_rows` (N, D) and what metrics derive from them, each once.

    `labels` (N,): the classes of the images, where they are known; `balanced`: whether as many
    images of each class were asked for, instead of classes at random. `head` maps features to
    logits and `embed_text` gives the features of the captions, where the extractor has such.
    `kept(name, make)`: tensors from disk, or made and put there.
    """

    all_rows: Tensor
    labels: Tensor | None = None
    balanced: bool = False
    head: Callable[[Tensor], Tensor] | None = None
    embed_text: Callable[[int], Tensor] | None = None
    kept: Callable[[str, Callable[[], Tensors]], Tensors] = lambda name, make: make()
    find_training: "Callable[[], ImageFeatures] | None" = None
    _memo: dict[Any, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.all_rows)

    @property
    def rows(self) -> Tensor:
        """The first rows, at most `MOST_ROWS`."""
        return self.all_rows[:MOST_ROWS]

    @property
    def row_labels(self) -> Tensor | None:
        """The classes of `rows`."""
        return None if self.labels is None else self.labels[:MOST_ROWS]

    def once(self, key: object, make: Callable[[], T]) -> T:
        """`make()`, the first time that it is asked for by `key`."""
        if key not in self._memo:
            self._memo[key] = make()
        return self._memo[key]

    def select(self, rows: Tensor, *, balanced: bool = False) -> "ImageFeatures":
        """The features of some of the images, by number."""
        labels = None if self.labels is None else self.labels[rows]
        return ImageFeatures(all_rows=self.all_rows[rows], labels=labels, balanced=balanced)

    @cached_property
    def training(self) -> "ImageFeatures":
        """Of reference images: the features of the training images."""
        assert self.find_training is not None
        return self.find_training()

    @cached_property
    def logits(self) -> Tensor:
        """(N, K); there must be a `head`."""
        assert self.head is not None
        return torch.cat([self.head(part) for part in self.all_rows.split(4096)])

    @cached_property
    def text(self) -> Tensor:
        """The features of the captions of `rows`; there must be `embed_text`."""
        assert self.embed_text is not None
        return self.embed_text(len(self.rows))

    @cached_property
    def statistics(self) -> "FeatureStatistics":
        """Mean and covariance of all rows."""

        def make() -> Tensors:
            own = feature_statistics(self.all_rows)
            return {"mean": own.mean, "covariance": own.covariance}

        found = self.kept(f"statistics-{len(self)}", make)
        return FeatureStatistics(
            mean=found["mean"], covariance=found["covariance"], count=len(self)
        )

    @cached_property
    def covariance_root(self) -> Tensor:
        """`frechet.covariance_root` of the statistics."""
        return self.kept(f"root-{len(self)}", lambda: {"root": covariance_root(self.statistics)})[
            "root"
        ]
