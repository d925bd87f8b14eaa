"""How different from each other are images of one class?"""

from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import torch
from torch import Tensor

from sfumato.evaluation.metrics.checks import checked_features
from sfumato.evaluation.metrics.distances import distance_tiles
from sfumato.evaluation.metrics.features import ImageFeatures
from sfumato.evaluation.metrics.intervals import Estimate
from sfumato.evaluation.metrics.registry import Metric, Score


@dataclass(frozen=True, kw_only=True)
class Diversity(Estimate):
    """`value`: the mean over classes of `classes[label]`, the mean distance of two of its rows.

    In the features' own units, 0 for a class that is one image: it is read beside the same figure
    of real images. Classes weigh the same, however many images they have. `rows` (N,): each
    row's mean distance to its class mates.
    """

    classes: dict[int, float]
    counts: dict[int, int]
    rows: Tensor

    @property
    def values(self) -> Tensor:
        """(N,) pseudo-values: their mean is the diversity, and each row counts in two distances."""
        return self.value + 2 * (self.rows - self.rows.mean())


def diversity_within_classes(
    features: Tensor, labels: Tensor, *, confidence: float = 0.95
) -> Diversity:
    """Mean Euclidean distance of two different rows of the same class.

    `features` (N, D), `labels` (N,) integer. The measure of Zhu et al. (2017, section 5.2) on any
    features; unbiased in N, unlike Vendi's. The interval is the normal one of a U-statistic
    (Hoeffding 1948): each row's mean distance to its class mates, varied over rows.
    `ValueError` for a class of less than 2 rows, for NaN, for labels that do not fit.
    """
    features = checked_features(features, rows=2)
    if labels.shape != features.shape[:1] or labels.is_floating_point():
        raise ValueError(
            f"labels must be ({len(features)},) integers, got {tuple(labels.shape)} {labels.dtype}"
        )
    classes, counts, variance = {}, {}, 0.0
    to_mates = torch.zeros(len(features), dtype=torch.float64)
    for label in labels.unique().tolist():
        members = labels.to(features.device) == label
        rows = features[members]
        if len(rows) < 2:
            raise ValueError(f"class {label} has 1 row; at least 2 are needed for a distance")
        means = _mean_distances(rows)
        to_mates[members.cpu()] = means.cpu()
        classes[label], counts[label] = float(means.mean()), len(rows)
        variance += 4 * float(means.var()) / len(rows)
    value = sum(classes.values()) / len(classes)
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * sqrt(variance) / len(classes)
    return Diversity(
        value=value,
        low=max(0.0, value - half),
        high=value + half,
        count=len(features),
        classes=classes,
        counts=counts,
        rows=to_mates,
    )


def diversity_difference(
    first: Tensor, second: Tensor, labels: Tensor, *, confidence: float = 0.95
) -> Estimate:
    """first - second of two sets whose row i has the same seed and class `labels` (N,).

    `first`, `second`: (N,) each, the `Diversity.values`.

    The normal interval with the jackknife's variance (Arvesen 1969, of U-statistics) over pairs of
    rows. A bootstrap of the rows' mean distances would be half as wide: a distance belongs to two
    rows. `ValueError` for sets of other sizes, or a class of less than 3 rows.
    """
    if not first.shape == second.shape == labels.shape:
        raise ValueError(
            f"{len(first)} and {len(second)} rows of {len(labels)} labels are not pairs"
        )
    classes, counts = labels.cpu().unique(return_counts=True)
    if int(counts.min()) < 3:
        raise ValueError("a class has 2 rows; at least 3 are needed for the jackknife")
    apart = (first - second) / 2
    variance = sum(
        4 * float(apart[labels.cpu() == label].var()) / n * ((n - 1) / (n - 2)) ** 2
        for label, n in zip(classes.tolist(), counts.tolist(), strict=True)
    )
    value = float(first.mean() - second.mean())
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * sqrt(variance) / len(classes)
    return Estimate(value=value, low=value - half, high=value + half, count=len(apart))


def _mean_distances(rows: Tensor) -> Tensor:
    """(N, D) => (N,): each row's mean distance to the others."""
    sums = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    for tile, squared in distance_tiles(rows, rows):
        sums[tile.rows] += squared.sqrt().sum(dim=1)
    return sums / (len(rows) - 1)


def diversity_score(generated: ImageFeatures, reference: ImageFeatures) -> Score | None:
    """None without classes of two images each."""
    labels = generated.row_labels
    if labels is None or int(labels.unique(return_counts=True)[1].min()) < 2:
        return None
    found = generated.once("diversity", lambda: diversity_within_classes(generated.rows, labels))
    estimate = Estimate(value=found.value, low=found.low, high=found.high, count=found.count)
    return Score(estimate=estimate, values=found.values)


DIVERSITY = Metric(
    name="diversity",
    title="diversity",
    needs="features",
    compute=diversity_score,
    shown=("compare",),
    real=True,
    order=260,
    about="diversity: the distance of two images of a class",
)
