"""The Frechet distance between two Gaussians fitted to features (Heusel et al. 2017, Eq. 6)."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from sfumato.evaluation.metrics.features import (
    ImageFeatures,
    check_same_width,
    checked_features,
)
from sfumato.evaluation.metrics.intervals import Estimate
from sfumato.evaluation.metrics.registry import Metric, Score

NORMAL_95 = 1.959964


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


# The distance ------------------------------------------------------------------------------------


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """|mu_a - mu_b|^2 + tr(A + B - 2 (A B)^(1/2)) in float64: never negative, never NaN.

    Its expectation over N rows lies above that of all rows by about a constant / N, so it is
    compared at equal N only, or extrapolated (`frechet_infinity`). `ValueError` for unequal D.
    """
    check_same_width(a.mean, b.mean)
    if a.count > b.count:
        a, b = b, a
    return max(0.0, frechet_to(b.to(a.mean.device), a, root=covariance_root(a)))


def covariance_root(statistics: FeatureStatistics) -> Tensor:
    """F (D, R) with F F^T = covariance, R its rank: at most count - 1, so small for few rows."""
    values, vectors = torch.linalg.eigh(statistics.covariance)
    kept = _above_rounding(values)
    return vectors[:, kept] * values[kept].sqrt()


def _above_rounding(eigenvalues: Tensor) -> Tensor:
    """Which of `eigenvalues` (D,), ascending and D >= 0, are more than rounding of the largest."""
    rounding = eigenvalues[-1:] * len(eigenvalues) * torch.finfo(torch.float64).eps
    return eigenvalues > rounding.clamp(min=0)


def frechet_to(
    generated: FeatureStatistics, reference: FeatureStatistics, *, root: Tensor
) -> float:
    """The distance with `root` = `covariance_root(reference)` already known; may round below 0.

    With A = F F^T, the trace of (A B)^(1/2) is the sum of the square roots of the eigenvalues of
    the symmetric F^T B F. Of these, count - 1 can differ from 0; the others, whose square roots
    would turn rounding of 1e-16 into 1e-8, are left out.
    """
    inner = root.T @ generated.covariance @ root
    eigenvalues = torch.linalg.eigvalsh((inner + inner.T) / 2).flip(0)[: generated.count - 1]
    distance = (
        (generated.mean - reference.mean).square().sum()
        + generated.covariance.trace()
        + reference.covariance.trace()
        - 2 * eigenvalues.clamp(min=0).sqrt().sum()
    )
    return float(distance)


def frechet_influence(
    features: Tensor, reference: FeatureStatistics, *, root: Tensor | None = None
) -> Tensor:
    """How each row of `features` (N, D) moves its distance from `reference`: (N,), mean 0.

    Rippl, Munk and Sturm (2016, Theorem 2.2), one-sample case. With B the covariance of the
    features, A = F F^T the reference's and T = F (F^T B F)^(-1/2) F^T the transport from B to A,
    one more row at x moves the distance by 2 (mu - mu_A).(x - mu) + (x - mu)^T (I - T) (x - mu)
    less its mean, times 1 / N. Their deviation over sqrt(N) is the distance's standard error to
    first order, 0 where both sets have the same distribution.

    `root`: `covariance_root(reference)` where it is known.
    """
    own = feature_statistics(features)
    root = covariance_root(reference) if root is None else root
    inner = root.T @ own.covariance @ root
    values, vectors = torch.linalg.eigh((inner + inner.T) / 2)
    kept = _above_rounding(values)
    half_transport = root @ vectors[:, kept] * values[kept].pow(-0.25)
    moves = []
    for rows in features.split(4096):
        centred = rows.double() - own.mean
        moves.append(
            2 * centred @ (own.mean - reference.mean)
            + centred.square().sum(dim=1)
            - (centred @ half_transport).square().sum(dim=1)
        )
    joined = torch.cat(moves)
    return joined - joined.mean()


def frechet_sampling_error(features: Tensor, reference: FeatureStatistics) -> float:
    """Standard error of the distance of `features` (N, D), to first order (`frechet_influence`)."""
    return float(frechet_influence(features, reference).std()) / sqrt(len(features))


def frechet_score(generated: ImageFeatures, reference: ImageFeatures) -> Score:
    """The distance with its interval, which holds the error of the images sampled and not the bias
    of few of them."""
    root = reference.covariance_root
    distance = max(0.0, frechet_to(generated.statistics, reference.statistics, root=root))
    moves = frechet_influence(generated.rows, reference.statistics, root=root)
    half = NORMAL_95 * float(moves.std()) / len(generated) ** 0.5
    estimate = Estimate(
        value=distance, low=max(0.0, distance - half), high=distance + half, count=len(generated)
    )
    return Score(estimate=estimate, values=distance + moves)


FRECHET = Metric(
    name="frechet",
    title="Frechet",
    needs="features",
    compute=frechet_score,
    better="lower",
    baseline=True,
    order=200,
)
