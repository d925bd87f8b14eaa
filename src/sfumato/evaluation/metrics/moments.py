"""Mean and covariance of features, in float64."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.evaluation.metrics.checks import check_same_width, checked_features


@dataclass(frozen=True, kw_only=True)
class FeatureStatistics:
    """`mean`: (D,), `covariance`: (D, D), both float64, of `count` >= 2 rows.

    `ValueError` for other shapes, less rows, NaN or infinity.
    """

    mean: Tensor
    covariance: Tensor
    count: int

    def __post_init__(self) -> None:
        dim = self.mean.numel()
        if self.mean.shape != (dim,) or self.covariance.shape != (dim, dim):
            raise ValueError(
                "mean and covariance must be (D,) and (D, D), got "
                f"{tuple(self.mean.shape)} and {tuple(self.covariance.shape)}"
            )
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 rows, there are {self.count}")
        if not bool(self.mean.isfinite().all() & self.covariance.isfinite().all()):
            raise ValueError("mean or covariance holds NaN or infinity")

    def to(self, device: torch.device) -> "FeatureStatistics":
        return FeatureStatistics(
            mean=self.mean.to(device), covariance=self.covariance.to(device), count=self.count
        )


class FeatureMoments:
    """Count, mean and centred second moment of all rows given to `update`.

    Memory is one (D, D) matrix, however many rows come. Rows are folded in blocks of
    `block_rows` counted from the first row, so the result is bit for bit the same for any batch
    size, and for a run that was stopped, saved (`state_dict`) and continued. Blocks are combined
    by the update of Chan, Golub and LeVeque (1983), which does not cancel for a large mean.
    """

    def __init__(
        self, dim: int, *, block_rows: int = 512, device: torch.device | str = "cpu"
    ) -> None:
        if dim < 1 or block_rows < 1:
            raise ValueError(f"dim and block_rows must be positive, got {dim}, {block_rows}")
        self._count = 0
        self._mean = torch.zeros(dim, dtype=torch.float64, device=device)
        self._scatter = torch.zeros(dim, dim, dtype=torch.float64, device=device)
        self._pending = torch.zeros(block_rows, dim, dtype=torch.float64, device=device)
        self._waiting = 0

    @property
    def count(self) -> int:
        """Rows given so far."""
        return self._count + self._waiting

    @property
    def dim(self) -> int:
        return len(self._mean)

    @property
    def device(self) -> torch.device:
        return self._mean.device

    def update(self, features: Tensor) -> None:
        """Add `features` (B, D), any B >= 0; `ValueError`, and nothing added, if not finite."""
        features = checked_features(features, rows=0)
        check_same_width(features, self._mean)
        start = 0
        while start < len(features):
            taken = min(len(self._pending) - self._waiting, len(features) - start)
            self._pending[self._waiting : self._waiting + taken] = features[start : start + taken]
            self._waiting += taken
            start += taken
            if self._waiting == len(self._pending):
                self._fold()

    def merge(self, other: "FeatureMoments") -> None:
        """Add all rows of `other`, which is left as it is: those of another process, or part."""
        check_same_width(other._mean, self._mean)
        settled = other._settled() if other._waiting else other
        self._fold()
        self._combine(settled._count, settled._mean, settled._scatter)

    def statistics(self) -> FeatureStatistics:
        """Mean and unbiased covariance of the rows so far; `ValueError` for less than 2."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 rows, there are {self.count}")
        settled = self._settled()
        return FeatureStatistics(
            mean=settled._mean,
            covariance=settled._scatter / (settled._count - 1),
            count=settled._count,
        )

    def state_dict(self) -> dict[str, Tensor]:
        """All that `load_state_dict` needs to go on, as plain arrays (copies)."""
        return {
            "count": torch.tensor(self._count),
            "mean": self._mean.clone(),
            "scatter": self._scatter.clone(),
            "pending": self._pending[: self._waiting].clone(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Tensor], /) -> None:
        """Go on from `state_dict()`; `ValueError` for another D or a smaller block."""
        pending = state_dict["pending"]
        check_same_width(state_dict["mean"], self._mean)
        if len(pending) >= len(self._pending):
            raise ValueError(f"{len(pending)} rows wait, block_rows is {len(self._pending)}")
        self._count = int(state_dict["count"])
        self._mean.copy_(state_dict["mean"])
        self._scatter.copy_(state_dict["scatter"])
        self._waiting = len(pending)
        self._pending[: self._waiting] = pending

    def _settled(self) -> "FeatureMoments":
        """A copy with nothing waiting."""
        copy = FeatureMoments(
            len(self._mean), block_rows=len(self._pending), device=self._mean.device
        )
        copy.load_state_dict(self.state_dict())
        copy._fold()
        return copy

    def _fold(self) -> None:
        rows = self._pending[: self._waiting]
        if len(rows):
            mean = rows.mean(dim=0)
            centred = rows - mean
            self._scatter.addmm_(centred.T, centred)
            self._combine(len(rows), mean, None)
        self._waiting = 0

    def _combine(self, count: int, mean: Tensor, scatter: Tensor | None) -> None:
        if count == 0:
            return
        total = self._count + count
        step = mean.to(self._mean.device) - self._mean
        if scatter is not None:
            self._scatter += scatter.to(self._mean.device)
        self._scatter.addr_(step, step, alpha=self._count * count / total)
        self._mean += step * (count / total)
        self._count = total


def feature_statistics(features: Tensor) -> FeatureStatistics:
    """Mean and unbiased covariance of `features` (N, D), N >= 2; `ValueError` if not finite."""
    features = checked_features(features, rows=2)
    moments = FeatureMoments(features.shape[1], device=features.device)
    moments.update(features)
    return moments.statistics()


def covariance_root(statistics: FeatureStatistics) -> Tensor:
    """F (D, R) with F F^T = covariance, R its rank: at most count - 1, so small for few rows."""
    values, vectors = torch.linalg.eigh(statistics.covariance)
    kept = _above_rounding(values)
    return vectors[:, kept] * values[kept].sqrt()


def _above_rounding(eigenvalues: Tensor) -> Tensor:
    """Which of `eigenvalues` (D,), ascending and D >= 0, are more than rounding of the largest."""
    rounding = eigenvalues[-1:] * len(eigenvalues) * torch.finfo(torch.float64).eps
    return eigenvalues > rounding.clamp(min=0)
