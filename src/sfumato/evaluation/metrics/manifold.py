"""Fidelity and variety apart: precision, recall, density, coverage, by balls around features.

A set's manifold is the union of balls around its rows, each out to its k-th nearest other row.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.evaluation.metrics.checks import checked_pair
from sfumato.evaluation.metrics.distances import distance_tiles, neighbour_radii
from sfumato.evaluation.metrics.features import ImageFeatures
from sfumato.evaluation.metrics.intervals import Estimate, bootstrap_mean, wilson
from sfumato.evaluation.metrics.registry import Metric, Score

EDGE = 1 + 1e-9
"""A ball holds its own edge, whichever way its radius is rounded."""


@dataclass(frozen=True, kw_only=True)
class PrecisionRecall:
    """`precision`: of generated rows inside the reference's manifold; `recall`: the other way."""

    precision: Estimate
    recall: Estimate
    neighbours: int


@dataclass(frozen=True, kw_only=True)
class DensityCoverage:
    """`density`: how many reference balls hold a generated row, over k: in [0, M / k], about 1 for
    equal distributions. `coverage`: of reference balls that hold any generated row, in [0, 1]."""

    density: Estimate
    coverage: Estimate
    neighbours: int


def precision_recall(
    generated: Tensor,
    reference: Tensor,
    *,
    neighbours: int = 3,
    reference_radii: Tensor | None = None,
    confidence: float = 0.95,
) -> PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al. 2019, Eq. 1 and 2), k = 3 as there.

    `generated` (N, D), `reference` (M, D). Both depend on N and M: compare at equal numbers.
    Intervals are Wilson's, of the rows judged, with the other side's manifold held fixed.
    `reference_radii`: `neighbour_radii(reference)` for that k where they are known.
    `ValueError` unless N > k and M > k, for unequal D, for NaN.
    """
    generated, reference = checked_pair(generated, reference, rows=neighbours + 1)
    if reference_radii is None:
        reference_radii = neighbour_radii(reference, neighbours=neighbours)
    reach = reference_radii * EDGE
    own_reach = neighbour_radii(generated, neighbours=neighbours) * EDGE
    precise = torch.zeros(len(generated), dtype=torch.bool, device=generated.device)
    recalled = torch.zeros(len(reference), dtype=torch.bool, device=generated.device)
    for tile, squared in distance_tiles(generated, reference):
        precise[tile.rows] |= (squared <= reach[None, tile.columns]).any(dim=1)
        recalled[tile.columns] |= (squared <= own_reach[tile.rows, None]).any(dim=0)
    return PrecisionRecall(
        precision=wilson(int(precise.sum()), len(generated), confidence=confidence),
        recall=wilson(int(recalled.sum()), len(reference), confidence=confidence),
        neighbours=neighbours,
    )


def density_coverage(
    generated: Tensor,
    reference: Tensor,
    *,
    neighbours: int = 5,
    reference_radii: Tensor | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> DensityCoverage:
    """Density and coverage (Naeem et al. 2020, Eq. 3 and 4), k = 5 as there.

    `generated` (N, D), `reference` (M, D). Differs from their code: a ball holds its edge, so that
    a copy of a row that the reference holds twice (radius 0) is inside. Intervals hold the balls
    fixed: density's is a bootstrap of generated rows by `seed`, coverage's is Wilson's.
    `reference_radii`: `neighbour_radii(reference)` for that k where they are known.
    `ValueError` unless M > k, for no generated rows, unequal D, NaN.
    """
    generated, reference = checked_pair(generated, reference, rows=1)
    if reference_radii is None:
        reference_radii = neighbour_radii(reference, neighbours=neighbours, name="reference")
    reach = reference_radii * EDGE
    inside = torch.zeros(len(generated), dtype=torch.float64, device=generated.device)
    covered = torch.zeros(len(reference), dtype=torch.bool, device=generated.device)
    for tile, squared in distance_tiles(generated, reference):
        within = squared <= reach[None, tile.columns]
        inside[tile.rows] += within.sum(dim=1)
        covered[tile.columns] |= within.any(dim=0)
    return DensityCoverage(
        density=bootstrap_mean(inside / neighbours, confidence=confidence, seed=seed),
        coverage=wilson(int(covered.sum()), len(reference), confidence=confidence),
        neighbours=neighbours,
    )


def _manifold(name: str) -> Callable[[ImageFeatures, ImageFeatures], Score]:
    """The score `name` of the pair of scores that it is computed with, once for both."""
    of_both, neighbours = (
        (precision_recall, 3) if name in ("precision", "recall") else (density_coverage, 5)
    )

    def compute(generated: ImageFeatures, reference: ImageFeatures) -> Score:
        radii = reference.once(
            ("radii", neighbours),
            lambda: neighbour_radii(reference.rows, neighbours=neighbours, name="reference"),
        )
        both = generated.once(
            (of_both, id(reference)),
            lambda: of_both(
                generated.rows, reference.rows, neighbours=neighbours, reference_radii=radii
            ),
        )
        return Score(estimate=getattr(both, name))

    return compute


def _entry(name: str, order: int, *, interval: bool) -> Metric:
    return Metric(
        name=name,
        title=name,
        needs="features",
        compute=_manifold(name),
        better="higher",
        factor=1 if name == "density" else 100,
        digits=2 if name == "density" else 0,
        interval=interval,
        baseline=True,
        order=order,
        about="precision, recall and coverage in per cent" if name == "precision" else "",
    )


PRECISION = _entry("precision", 220, interval=True)
RECALL = _entry("recall", 230, interval=True)
DENSITY = _entry("density", 240, interval=False)
COVERAGE = _entry("coverage", 250, interval=False)
