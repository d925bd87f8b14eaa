"""Features of a set of images on one extractor, and the checks that every metric makes of them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sfumato.evaluation.metrics.frechet import FeatureStatistics

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
        from sfumato.evaluation.metrics.frechet import FeatureStatistics, feature_statistics

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
        from sfumato.evaluation.metrics.frechet import covariance_root

        return self.kept(f"root-{len(self)}", lambda: {"root": covariance_root(self.statistics)})[
            "root"
        ]


def checked_features(features: Tensor, *, name: str = "features", rows: int = 1) -> Tensor:
    """`features` (N, D), where they are a finite matrix of at least `rows` rows; `ValueError` else.

    A device without float64 (MPS) gives its features to the CPU.
    """
    if features.ndim != 2 or features.shape[1] == 0:
        raise ValueError(f"{name} must be (N, D), got {tuple(features.shape)}")
    if len(features) < rows:
        raise ValueError(f"{name} has {len(features)} rows; at least {rows} are needed")
    if features.is_complex():
        raise ValueError(f"{name} must be real numbers, got {features.dtype}")
    if features.device.type == "mps":
        features = features.cpu()
    unusable = len(features) - int(features.isfinite().all(dim=1).sum())
    if unusable:
        raise ValueError(f"{name} holds NaN or infinity in {unusable} of {len(features)} rows")
    return features


def check_same_width(first: Tensor, second: Tensor) -> None:
    """`ValueError` unless both (N, D) and (M, D) have the same D."""
    if first.shape[-1] != second.shape[-1]:
        raise ValueError(
            f"features of two kinds: D = {first.shape[-1]} against D = {second.shape[-1]}; "
            "both sets must come from the same extractor"
        )


def checked_pair(generated: Tensor, reference: Tensor, *, rows: int) -> tuple[Tensor, Tensor]:
    """Both sets, (N, D) and (M, D), checked, of the same D and at least `rows` rows each."""
    generated = checked_features(generated, name="generated", rows=rows)
    reference = checked_features(reference, name="reference", rows=rows)
    check_same_width(generated, reference)
    return generated, reference


def checked_values(values: Tensor, *, name: str = "values") -> Tensor:
    """`values` (N,) as float64 on the CPU, N >= 1 and finite; `ValueError` else."""
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"{name} must be (N,) with N >= 1, got {tuple(values.shape)}")
    values = values.detach().cpu().double()
    if not bool(values.isfinite().all()):
        raise ValueError(f"{name} hold NaN or infinity")
    return values
