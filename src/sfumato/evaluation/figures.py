"""From features to figures: a set of images against the reference, and real sets for the floor."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, stdev
from typing import Literal, TypeVar

import torch
from torch import Tensor

from sfumato.base.randomness import generator_for
from sfumato.evaluation.card import FeatureFigures, FeatureFloor, Figure, Spread, figure
from sfumato.evaluation.metrics.distances import nearest_rows, neighbour_radii
from sfumato.evaluation.metrics.diversity import Diversity, diversity_within_classes
from sfumato.evaluation.metrics.frechet import (
    FeatureMoments,
    FeatureStatistics,
    covariance_root,
    frechet_influence,
    frechet_to,
)
from sfumato.evaluation.metrics.frechet_infinity import frechet_infinity_of_both
from sfumato.evaluation.metrics.kernel import kernel_distance, kernel_sums
from sfumato.evaluation.metrics.manifold import density_coverage, precision_recall

MOST_ROWS = 10_000
"""Rows that distances of pairs are taken of; mean and covariance are of all rows."""
_PARTS = 5
_PRECISION_NEIGHBOURS, _DENSITY_NEIGHBOURS = 3, 5  # those of the papers
_NORMAL_95 = 1.959964
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Features:
    """One set's features on one extractor: `statistics` of all, the first rows themselves, and the
    classes of those rows."""

    statistics: FeatureStatistics
    rows: Tensor
    labels: Tensor | None

    @classmethod
    def gathered(cls, parts: Iterable[Tensor], labels: Tensor | None) -> "Features":
        """Streamed from parts (B, D): memory does not grow beyond `MOST_ROWS`."""
        moments: FeatureMoments | None = None
        kept: list[Tensor] = []
        for part in parts:
            moments = moments or FeatureMoments(part.shape[1])
            held = moments.count
            moments.update(part)
            if held < MOST_ROWS:
                kept.append(part[: MOST_ROWS - held])
        assert moments is not None
        rows = torch.cat(kept)
        return cls(
            statistics=moments.statistics(),
            rows=rows,
            labels=None if labels is None else labels[: len(rows)],
        )


@dataclass(frozen=True, kw_only=True)
class ReferenceFeatures(Features):
    """The reference's features, with the root of their covariance; what depends on them alone is
    found once."""

    root: Tensor

    @cached_property
    def kernel_sums(self) -> Tensor:
        return kernel_sums(self.rows)

    def radii(self, neighbours: int) -> Tensor:
        """`neighbour_radii` of the rows; `ValueError` where they are too few."""
        if neighbours not in self._radii:
            self._radii[neighbours] = neighbour_radii(
                self.rows, neighbours=neighbours, name="reference"
            )
        return self._radii[neighbours]

    @cached_property
    def _radii(self) -> dict[int, Tensor]:
        return {}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The figures of one set on one extractor, a note for each that is missing, and pseudo-values.

    `values[name]` (N,) has the figure as its mean and the figure's standard error as its deviation
    over sqrt(N) (the infinitesimal jackknife, Efron 1982, section 6): what a paired test needs.
    `nearest` is the distance of each image to the nearest reference image.
    """

    figures: FeatureFigures
    notes: list[str]
    values: dict[str, Tensor]


def feature_figures(
    generated: Features, reference: ReferenceFeatures, *, balanced: bool
) -> Measured:
    """All figures that the numbers of images allow."""
    notes: list[str] = []
    frechet = max(0.0, frechet_to(generated.statistics, reference.statistics, root=reference.root))
    moves = frechet_influence(generated.rows, reference.statistics, root=reference.root)
    half = _NORMAL_95 * float(moves.std()) / generated.statistics.count**0.5
    values = {
        "frechet": frechet + moves,
        "nearest": nearest_rows(generated.rows, reference.rows, name="generated").distances,
    }
    near = _noted(
        "precision and recall",
        lambda: precision_recall(
            generated.rows,
            reference.rows,
            neighbours=_PRECISION_NEIGHBOURS,
            reference_radii=reference.radii(_PRECISION_NEIGHBOURS),
        ),
        notes,
    )
    dense = _noted(
        "density and coverage",
        lambda: density_coverage(
            generated.rows,
            reference.rows,
            neighbours=_DENSITY_NEIGHBOURS,
            reference_radii=reference.radii(_DENSITY_NEIGHBOURS),
        ),
        notes,
    )
    strata = generated.labels if balanced else None
    kernel = _noted(
        "KID",
        lambda: kernel_distance(
            generated.rows, reference.rows, strata=strata, reference_sums=reference.kernel_sums
        ),
        notes,
    )
    diversity = diversity_of(generated)
    if diversity is not None:
        moves = 2 * (diversity.rows - diversity.rows.mean())
        values["diversity"] = diversity.value + moves
    figures = FeatureFigures(
        frechet=Figure(value=frechet, low=max(0.0, frechet - half), high=frechet + half),
        frechet_infinity=_infinity(generated.rows, reference.rows),
        kernel=figure(kernel) if kernel else None,
        precision=figure(near.precision) if near else None,
        recall=figure(near.recall) if near else None,
        density=figure(dense.density) if dense else None,
        coverage=figure(dense.coverage) if dense else None,
        diversity=figure(diversity) if diversity else None,
    )
    return Measured(figures=figures, notes=notes, values=values)


def diversity_of(features: Features) -> Diversity | None:
    """Mean distance of two images of one class; None without classes of two images each."""
    labels = features.labels
    if labels is None or int(labels.unique(return_counts=True)[1].min()) < 2:
        return None
    return diversity_within_classes(features.rows, labels)


def _infinity(generated: Tensor, reference: Tensor) -> Figure | None:
    """None where the smallest part would have less rows than features: no line in 1 / N."""
    if min(len(generated), len(reference)) < _PARTS * generated.shape[1]:
        return None
    return figure(
        frechet_infinity_of_both(
            generated, reference, generator=generator_for("frechet infinity"), parts=_PARTS
        )
    )


def _noted(what: str, measure: Callable[[], T], notes: list[str]) -> T | None:
    """What is measured; where the images are too few, None and a note."""
    try:
        return measure()
    except ValueError as error:
        notes.append(f"{what}: {error}")
        return None


@dataclass(frozen=True, kw_only=True)
class FloorSets:
    """Rows of real images for each pair of a floor: `sets[i]` against `references[i]`.

    `balanced`: the sets hold as many images of each class, as the generated ones do.
    """

    sets: list[Tensor]
    references: list[Tensor]
    disjoint: Literal["both", "sets", "none"]
    balanced: bool = False


def floor_sets(
    *,
    count: int,
    reference_count: int,
    pairs: int,
    training: int,
    reference: int,
    labels: Tensor | None = None,
) -> FloorSets | None:
    """`pairs` sets of `count` rows of `training`, disjoint where they suffice, each against
    `reference_count` rows of `reference`, disjoint where they suffice, else always the first.

    `labels` (training,) int64: the sets hold as many rows of each class, where the classes have so
    many. None where there are less than `count` training rows.
    """
    if count > training:
        return None
    by_class = None if labels is None else in_turn(labels, count)
    if by_class is not None:
        sets, apart = _balanced_sets(by_class, pairs)
    elif pairs * count <= training:
        sets, apart = list(torch.arange(pairs * count).split(count)), True
    else:
        sets, apart = [_drawn(torch.arange(training), count, pair) for pair in range(pairs)], False
    if pairs * reference_count <= reference:
        references = list(torch.arange(pairs * reference_count).split(reference_count))
    else:
        references = [torch.arange(reference_count)] * pairs
    both = apart and pairs * reference_count <= reference
    return FloorSets(
        sets=sets,
        references=references,
        disjoint="both" if both else "sets" if apart else "none",
        balanced=by_class is not None,
    )


def in_turn(labels: Tensor, count: int) -> list[tuple[Tensor, int]] | None:
    """The rows of each class, and how many of them a set of `count` in turn holds; None where a
    class has not so many."""
    classes = int(labels.max()) + 1
    shares = [len(range(label, count, classes)) for label in range(classes)]
    rows = [(labels == label).nonzero().flatten() for label in range(classes)]
    if any(len(own) < share for own, share in zip(rows, shares, strict=True)):
        return None
    return list(zip(rows, shares, strict=True))


def _balanced_sets(by_class: list[tuple[Tensor, int]], pairs: int) -> tuple[list[Tensor], bool]:
    """Sets with each class's share, and whether they share no row."""
    apart = all(len(rows) >= pairs * share for rows, share in by_class)
    return [
        torch.cat(
            [
                rows[pair * share : (pair + 1) * share] if apart else _drawn(rows, share, pair)
                for rows, share in by_class
            ]
        )
        for pair in range(pairs)
    ], apart


def _drawn(rows: Tensor, count: int, pair: int) -> Tensor:
    """`count` of `rows` by lot, the same for the same pair."""
    order = torch.randperm(len(rows), generator=generator_for("real against real", pair))
    return rows[order[:count]]


def feature_floor(
    sets: FloorSets,
    training: Tensor,
    reference_rows: Tensor,
    reference: ReferenceFeatures,
    *,
    labels: Tensor | None = None,
    on_pair: Callable[[int], None] = lambda done: None,
) -> FeatureFloor:
    """Each real set measured as a generated one is. `training` and `reference_rows` (N, D);
    `labels` (N,): the classes of the training rows."""
    found = []
    for rows, others in zip(sets.sets, sets.references, strict=True):
        own = Features.gathered([training[rows]], None if labels is None else labels[rows])
        both = sets.disjoint == "both"
        other = reference_of(reference_rows[others]) if both else reference
        found.append(feature_figures(own, other, balanced=sets.balanced).figures)
        on_pair(len(found))

    def spread(name: str) -> Spread | None:
        values = [value for figures in found if (value := getattr(figures, name)) is not None]
        if len(values) < len(found):
            return None
        return Spread(
            mean=fmean(value.value for value in values), std=stdev(value.value for value in values)
        )

    return FeatureFloor(
        count=len(sets.sets[0]),
        reference_count=len(sets.references[0]),
        pairs=len(sets.sets),
        disjoint=sets.disjoint,
        balanced=sets.balanced,
        **{
            name: spread(name)
            for name in ("frechet", "kernel", "precision", "recall", "density", "coverage")
        },
        diversity=figure(diversity) if (diversity := diversity_of(reference)) else None,
    )


def reference_of(rows: Tensor, labels: Tensor | None = None) -> ReferenceFeatures:
    """A reference from its rows alone."""
    own = Features.gathered([rows], labels)
    return ReferenceFeatures(
        statistics=own.statistics,
        rows=own.rows,
        labels=own.labels,
        root=covariance_root(own.statistics),
    )
