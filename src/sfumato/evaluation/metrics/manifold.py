"""Fidelity and variety apart: precision, recall, density, coverage, by balls around features.

A set's manifold is the union of balls around its rows, each out to its k-th nearest other row.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.evaluation.metrics.checks import checked_pair
from sfumato.evaluation.metrics.distances import distance_tiles, neighbour_radii
from sfumato.evaluation.metrics.intervals import Estimate, Proportion, bootstrap_mean, wilson

EDGE = 1 + 1e-9
"""A ball holds its own edge, whichever way its radius is rounded."""


@dataclass(frozen=True, kw_only=True)
class PrecisionRecall:
    """`precision`: of generated rows inside the reference's manifold; `recall`: the other way."""

    precision: Proportion
    recall: Proportion
    neighbours: int


@dataclass(frozen=True, kw_only=True)
class DensityCoverage:
    """`density`: how many reference balls hold a generated row, over k: in [0, M / k], about 1 for
    equal distributions. `coverage`: of reference balls that hold any generated row, in [0, 1]."""

    density: Estimate
    coverage: Proportion
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
