"""Euclidean distances between two sets of features, tile by tile: memory does not grow with N."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.evaluation.metrics.checks import check_same_width, checked_features
from sfumato.evaluation.metrics.features import ImageFeatures
from sfumato.evaluation.metrics.registry import Metric, Score

BELOW_RESOLUTION = 1e-13
"""Squared distances below this share of |a|^2 + |b|^2 count as 0: a distance of 3e-7 |a| is less
than float32 features can hold, and a^2 + b^2 - 2 ab leaves as much of equal rows."""


@dataclass(frozen=True, kw_only=True)
class Tile:
    """Rows `rows` of one set and `columns` of the other: `a` (R, D), `b` (C, D), float64."""

    rows: slice
    columns: slice
    a: Tensor
    b: Tensor

    def fill_diagonal(self, values: Tensor, filling: float) -> Tensor:
        """`values` (R, C) of a set against itself, with `filling` where row and column agree."""
        row = torch.arange(self.rows.start, self.rows.stop, device=values.device)
        column = torch.arange(self.columns.start, self.columns.stop, device=values.device)
        return values.masked_fill_(row[:, None] == column[None, :], filling)


def tiles(a: Tensor, b: Tensor, *, rows: int = 1024, columns: int = 4096) -> Iterator[Tile]:
    """All pairs of rows of `a` (N, D) and `b` (M, D), row after row of tiles."""
    for start in range(0, len(a), rows):
        row = slice(start, min(start + rows, len(a)))
        block = a[row].double()
        for first in range(0, len(b), columns):
            column = slice(first, min(first + columns, len(b)))
            yield Tile(rows=row, columns=column, a=block, b=b[column].double())


def distance_tiles(a: Tensor, b: Tensor) -> Iterator[tuple[Tile, Tensor]]:
    """Each tile with its squared distances (R, C), float64, equal rows at exactly 0.

    Both sets are moved by the mean of `b`, or a large mean would drown small distances.
    """
    centre = b.mean(dim=0, dtype=torch.float64)
    for tile in tiles(a, b):
        yield tile, _squared(tile.a - centre, tile.b - centre)


def _squared(a: Tensor, b: Tensor) -> Tensor:
    norms = a.square().sum(dim=1)[:, None] + b.square().sum(dim=1)[None, :]
    squared = torch.addmm(norms, a, b.T, alpha=-2)
    return squared.masked_fill_(squared < BELOW_RESOLUTION * norms, 0.0)


def neighbour_radii(features: Tensor, *, neighbours: int, name: str = "features") -> Tensor:
    """Squared distance of each row of `features` (N, D) to its k-th nearest other row: (N,).

    `ValueError` for N <= `neighbours` or NaN.
    """
    if neighbours < 1:
        raise ValueError(f"neighbours must be at least 1, got {neighbours}")
    features = checked_features(features, name=name, rows=neighbours + 1)
    nearest = torch.full(
        (len(features), neighbours), torch.inf, dtype=torch.float64, device=features.device
    )
    for tile, squared in distance_tiles(features, features):
        tile.fill_diagonal(squared, torch.inf)
        known = torch.cat([nearest[tile.rows], squared], dim=1)
        nearest[tile.rows] = known.topk(neighbours, dim=1, largest=False).values
    return nearest.amax(dim=1)


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """For each row its nearest reference row: `distances` (N,) float64, `indices` (N,) int64."""

    distances: Tensor
    indices: Tensor


def nearest_rows(features: Tensor, reference: Tensor, *, name: str = "features") -> Nearest:
    """The row of `reference` (M, D) nearest to each of `features` (N, D); the first of equals.

    `ValueError` for unequal D, no rows, NaN.
    """
    features = checked_features(features, name=name)
    reference = checked_features(reference, name="reference")
    check_same_width(features, reference)
    squared = torch.full((len(features),), torch.inf, dtype=torch.float64, device=features.device)
    indices = torch.zeros(len(features), dtype=torch.int64, device=features.device)
    for tile, to_reference in distance_tiles(features, reference):
        least, column = to_reference.min(dim=1)
        closer = least < squared[tile.rows]
        squared[tile.rows] = torch.where(closer, least, squared[tile.rows])
        found = column + tile.columns.start
        indices[tile.rows] = torch.where(closer, found, indices[tile.rows])
    return Nearest(distances=squared.sqrt(), indices=indices)


def nearest_score(generated: ImageFeatures, reference: ImageFeatures) -> Score:
    """The distance of each image to the nearest reference image."""
    found = nearest_rows(generated.rows, reference.rows, name="generated")
    return NEAREST_REAL.score(found.distances)


NEAREST_REAL = Metric(
    name="nearest_real",
    title="nearest real",
    needs="features",
    compute=nearest_score,
    better="lower",
    shown=("compare",),
    order=205,
    about="nearest real: an image's distance to the nearest real one",
)
