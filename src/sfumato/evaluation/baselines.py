"""What real images score: real sets against the reference, and slightly changed real images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Literal

import torch
from torch import Tensor

from sfumato.base.errors import DamagedDataError
from sfumato.base.files import read_json, write_json
from sfumato.base.randomness import generator_for
from sfumato.evaluation.card import Baseline, PerturbationBaseline, Spread
from sfumato.evaluation.image_set import in_turn
from sfumato.evaluation.metrics.features import ImageFeatures
from sfumato.evaluation.metrics.frechet import frechet_to
from sfumato.evaluation.metrics.moments import feature_statistics
from sfumato.evaluation.metrics.pixels import PERTURBATIONS
from sfumato.evaluation.metrics.registry import Metric, all_metrics
from sfumato.evaluation.reference import Reference, balanced_images
from sfumato.evaluation.store import digest_of

FORMAT = 5
"""Counts how metrics are computed: a card of another number answers no request."""


@dataclass(frozen=True, kw_only=True)
class RealPairs:
    """Rows of real images: `sets[i]` of the training images against `references[i]`.

    `balanced`: the sets hold as many images of each class, as the generated ones do.
    """

    sets: list[Tensor]
    references: list[Tensor]
    disjoint: Literal["both", "sets", "none"]
    balanced: bool = False


def real_pairs(
    *,
    count: int,
    reference_count: int,
    pairs: int,
    training: int,
    reference: int,
    labels: Tensor | None = None,
) -> RealPairs | None:
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
        every = torch.arange(training)
        sets, apart = [_random_rows(every, count, pair) for pair in range(pairs)], False
    if pairs * reference_count <= reference:
        references = list(torch.arange(pairs * reference_count).split(reference_count))
    else:
        references = [torch.arange(reference_count)] * pairs
    both = apart and pairs * reference_count <= reference
    return RealPairs(
        sets=sets,
        references=references,
        disjoint="both" if both else "sets" if apart else "none",
        balanced=by_class is not None,
    )


def _balanced_sets(by_class: list[tuple[Tensor, int]], pairs: int) -> tuple[list[Tensor], bool]:
    """Sets with each class's share, and whether they share no row."""
    apart = all(len(rows) >= pairs * share for rows, share in by_class)
    return [
        torch.cat(
            [
                rows[pair * share : (pair + 1) * share]
                if apart
                else _random_rows(rows, share, pair)
                for rows, share in by_class
            ]
        )
        for pair in range(pairs)
    ], apart


def _random_rows(rows: Tensor, count: int, pair: int) -> Tensor:
    """`count` of `rows` at random, the same for the same pair."""
    order = torch.randperm(len(rows), generator=generator_for("real against real", pair))
    return rows[order[:count]]


def _read(path: Path) -> Baseline | None:
    """What is in the cache; None, and nothing there any more, where it is damaged or of another
    version."""
    if not path.exists():
        return None
    try:
        return Baseline.model_validate(read_json(path))
    except (DamagedDataError, ValueError):
        path.unlink()
        return None


def real_baseline(
    reference: Reference, key: str, *, count: int, pairs: int, balanced: bool
) -> Baseline | None:
    """Real sets of `count` images against the reference on the extractor `key`; from the cache, or
    put there. None where there are not so many."""
    real, training = reference.images, reference.training
    sets = real_pairs(
        count=count,
        reference_count=real.count,
        pairs=pairs,
        training=training.count,
        reference=reference.split.count,
        labels=training.labels if balanced else None,
    )
    if sets is None:
        return None
    measured = [metric for metric in all_metrics().values() if metric.baseline]
    request = [FORMAT, digest_of(training.settings), count, real.count, pairs, sets.balanced]
    digest = digest_of([*request, [metric.name for metric in measured]])
    path = real.file(reference.extractors[key], f"baseline-{digest}.json")
    assert path is not None
    if (known := _read(path)) is not None:
        return known
    found = _measured(reference, key, sets, measured)
    baseline = Baseline(
        count=len(sets.sets[0]),
        reference_count=len(sets.references[0]),
        pairs=pairs,
        disjoint=sets.disjoint,
        balanced=sets.balanced,
        metrics={
            name: Spread(
                mean=fmean(one[name] for one in found), std=stdev(one[name] for one in found)
            )
            for name in found[0]
            if all(name in one for one in found)
        },
    )
    write_json(path, baseline.model_dump(mode="json"))
    return baseline


def _measured(
    reference: Reference, key: str, pairs: RealPairs, metrics: list[Metric]
) -> list[dict[str, float]]:
    """The metrics of each pair."""
    used = max(int(rows.max()) for rows in pairs.sets) + 1
    samples = reference.features_of(reference.training.first(used), key)
    used = max(int(rows.max()) for rows in pairs.references) + 1
    others = reference.features_of(reference.split.first(used), key)
    found: list[dict[str, float]] = []
    for rows, other in zip(pairs.sets, pairs.references, strict=True):
        own = samples.select(rows, balanced=pairs.balanced)
        against = others.select(other) if pairs.disjoint == "both" else reference.features(key)
        found.append(_scores(metrics, own, against))
        reference.on_images(f"real against real ({key})", len(found), len(pairs.sets))
    return found


def _scores(
    metrics: list[Metric], generated: ImageFeatures, reference: ImageFeatures
) -> dict[str, float]:
    """Those that the numbers of images allow."""
    found = {}
    for metric in metrics:
        assert metric.compute is not None
        try:
            score = metric.compute(generated, reference)
        except ValueError:
            continue
        if score is not None:
            found[metric.name] = score.estimate.value
    return found


def can_balance(reference: Reference, count: int) -> bool:
    """Whether `count` images, as many of each class, are among the training images, and among the
    test images where there are so many: both baselines are of balanced sets, or neither is."""
    test = reference.tuning or reference.split
    sides = [reference.training, *([test] if test.count >= count else [])]
    return all(one.labels is not None and in_turn(one.labels, count) for one in sides)


def perturbation_baselines(
    reference: Reference, key: str, *, count: int, balanced: bool
) -> list[PerturbationBaseline]:
    """Slightly changed real test images, as many as are measured, against the reference; from the
    cache, or put there. Empty where there are not so many."""
    images = reference.tuning or reference.split
    if count > images.count:
        return []
    even = balanced and balanced_images(images, count) is not None
    request = [FORMAT, digest_of(images.settings), count, reference.images.count, even]
    extractor = reference.extractors[key]
    path = reference.images.file(extractor, f"perturbations-{digest_of(request)}.json")
    assert path is not None
    if path.exists():
        try:
            return [PerturbationBaseline.model_validate(one) for one in read_json(path)]
        except (DamagedDataError, ValueError):
            path.unlink()  # damaged, or of another version: it is made again
    changes = {one.title: one.apply for one in PERTURBATIONS.values()}
    found = changed_baselines(reference, key, changes, count=count, balanced=balanced)
    write_json(path, [one.model_dump(mode="json") for one in found])
    return found


def changed_baselines(
    reference: Reference,
    key: str,
    changes: Mapping[str, Callable[[Tensor], Tensor]],
    *,
    count: int,
    balanced: bool,
) -> list[PerturbationBaseline]:
    """Real test images, as many as are measured, after each of the `changes` of uint8 (N, C, H, W),
    by title, against the reference. Empty where there are not so many."""
    images = reference.tuning or reference.split
    if count > images.count:
        return []
    rows = balanced_images(images, count) if balanced else None
    pixels = images.images(range(count) if rows is None else rows.tolist())
    against = reference.features(key)
    found = []
    for title, change in changes.items():
        own = feature_statistics(reference.extractors[key](change(pixels)))
        distance = frechet_to(own, against.statistics, root=against.covariance_root)
        found.append(
            PerturbationBaseline(
                title=title,
                frechet=max(0.0, distance),
                count=count,
                of_reference=reference.tuning is None,
            )
        )
    return found
