"""Kernel distance (KID): unbiased squared maximum mean discrepancy (Binkowski et al. 2018)."""

from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import torch
from torch import Tensor

from sfumato.evaluation.metrics.checks import checked_pair
from sfumato.evaluation.metrics.distances import tiles
from sfumato.evaluation.metrics.features import ImageFeatures
from sfumato.evaluation.metrics.intervals import Estimate
from sfumato.evaluation.metrics.registry import Metric, Score


@dataclass(frozen=True, kw_only=True)
class SubsetKernelDistance(Estimate):
    """`value` is the mean over `subsets` draws of `subset_size` rows, `std` their deviation.

    `std` is what torch-fidelity and torchmetrics print; it is the spread at `subset_size` rows,
    not the error of `value`, which the interval holds.
    """

    std: float
    subsets: int
    subset_size: int


def kernel_distance(
    generated: Tensor,
    reference: Tensor,
    *,
    strata: Tensor | None = None,
    reference_sums: Tensor | None = None,
    confidence: float = 0.95,
) -> Estimate:
    """The estimate from all pairs, unbiased at any number of rows, so 0 on average for equal
    distributions and often below it: Binkowski et al. (2018, Eq. 4) with k(x, y) = (x.y / D + 1)^3.

    `generated` (N, D), `reference` (M, D), at least 2 rows each; N and M may differ. Time grows
    with (N + M)^2 D, memory does not. The interval is normal with the variance of the first-order
    projections (Sutherland et al. 2017, section 2), which is too wide rather than too narrow where
    both distributions agree.

    `strata` (N,) int64: the class of each generated row, where so many of each were drawn instead
    of by lot. Such rows hold too few pairs of one class, which would bias the value downward by
    about the classes' spread / N; pairs of one class are weighted up to their true share.
    `reference_sums`: `kernel_sums(reference)` where they are known.
    `ValueError` for too few rows (in a stratum as well), unequal D, NaN.
    """
    generated, reference = checked_pair(generated, reference, rows=2)
    if strata is not None and int(strata.unique(return_counts=True)[1].min()) < 2:
        raise ValueError("a class has 1 row; pairs within a class need at least 2")
    found = _mmd(generated, reference, strata=strata, within_y=reference_sums)
    error = sqrt(found.variance / len(generated) + found.reference_variance / len(reference))
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * error
    return Estimate(
        value=found.value,
        low=found.value - half,
        high=found.value + half,
        count=len(generated),
    )


def kernel_distance_subsets(
    generated: Tensor,
    reference: Tensor,
    *,
    generator: torch.Generator,
    subsets: int = 100,
    subset_size: int = 1000,
    confidence: float = 0.95,
) -> SubsetKernelDistance:
    """Mean over random subsets, as torch-fidelity and torchmetrics: cheap for many rows.

    Each subset holds `subset_size` different rows of `generated` (N, D) and of `reference` (M, D),
    drawn by `generator` (of the CPU). The interval adds to the error of few subsets,
    std / sqrt(subsets), that of the rows themselves, estimated inside the subsets: subsets of the
    same rows are no independent draws. `ValueError` unless 2 <= `subset_size` <= N and M.
    """
    if subset_size < 2 or subsets < 2:
        raise ValueError(f"at least 2 subsets of 2 rows are needed, got {subsets} of {subset_size}")
    generated, reference = checked_pair(generated, reference, rows=subset_size)
    found = []
    for _ in range(subsets):
        theirs = torch.randperm(len(reference), generator=generator)[:subset_size]
        ours = torch.randperm(len(generated), generator=generator)[:subset_size]
        found.append(
            _mmd(generated[ours.to(generated.device)], reference[theirs.to(reference.device)])
        )
    values = torch.tensor([subset.value for subset in found], dtype=torch.float64)
    variance = sum(subset.variance for subset in found) / subsets
    reference_variance = sum(subset.reference_variance for subset in found) / subsets
    error = sqrt(
        variance / len(generated)
        + reference_variance / len(reference)
        + float(values.var()) / subsets
    )
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * error
    return SubsetKernelDistance(
        value=float(values.mean()),
        low=float(values.mean()) - half,
        high=float(values.mean()) + half,
        count=len(generated),
        std=float(values.std(unbiased=False)),
        subsets=subsets,
        subset_size=subset_size,
    )


@dataclass(frozen=True, kw_only=True)
class _Discrepancy:
    """`variance / N + reference_variance / M` is the variance of `value`, to first order."""

    value: float
    variance: float
    reference_variance: float


def kernel_sums(features: Tensor) -> Tensor:
    """(N,): the kernel of each row of `features` (N, D) with all others, summed; float64."""
    return _kernel_sums(features, features, same=True)[0]


def _mmd(
    x: Tensor, y: Tensor, *, strata: Tensor | None = None, within_y: Tensor | None = None
) -> _Discrepancy:
    within_x = kernel_sums(x)
    within_y = kernel_sums(y) if within_y is None else within_y
    across_x, across_y = _kernel_sums(x, y, same=False)
    mean_within_x = within_x / (len(x) - 1) if strata is None else _stratified(x, within_x, strata)
    pull_x = mean_within_x - across_x / len(y)
    pull_y = within_y / (len(y) - 1) - across_y / len(x)
    return _Discrepancy(
        value=float(pull_x.mean() + pull_y.mean()),
        variance=4 * float(pull_x.var()),
        reference_variance=4 * float(pull_y.var()),
    )


def _stratified(x: Tensor, within: Tensor, strata: Tensor) -> Tensor:
    """(N,): `within` over N, the n - 1 pairs in a row's own stratum of n counted n / (n - 1)."""
    sums = within.clone()
    for stratum in strata.unique():
        rows = (strata == stratum).nonzero().flatten().to(x.device)
        sums[rows] += kernel_sums(x[rows]) / (len(rows) - 1)
    return sums / len(x)


def _kernel_sums(x: Tensor, y: Tensor, *, same: bool) -> tuple[Tensor, Tensor]:
    """Sums of the kernel over the other set: (N,) for x, (M,) for y; without i = j for `same`."""
    of_x = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    of_y = torch.zeros(len(y), dtype=torch.float64, device=x.device)
    for tile in tiles(x, y):
        kernel = (tile.a @ tile.b.T).div_(x.shape[1]).add_(1).pow_(3)
        if same:
            tile.fill_diagonal(kernel, 0.0)
        of_x[tile.rows] += kernel.sum(dim=1)
        of_y[tile.columns] += kernel.sum(dim=0)
    return of_x, of_y


def kernel_score(generated: ImageFeatures, reference: ImageFeatures) -> Score:
    """KID; where classes were asked for in turn, pairs of one class count at their true share."""
    found = kernel_distance(
        generated.rows,
        reference.rows,
        strata=generated.row_labels if generated.balanced else None,
        reference_sums=reference.once("kernel sums", lambda: kernel_sums(reference.rows)),
    )
    return Score(estimate=found)


KERNEL = Metric(
    name="kernel",
    title="1000 KID",
    needs="features",
    compute=kernel_score,
    better="lower",
    factor=1000,
    digits=2,
    baseline=True,
    order=210,
)
