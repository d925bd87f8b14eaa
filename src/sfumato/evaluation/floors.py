"""What real images score: the reference, real sets as a floor, altered ones as yardsticks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.base.errors import DamagedDataError
from sfumato.base.files import read_json, write_json
from sfumato.config.sections import DataConfig
from sfumato.evaluation.card import FeatureFloor, Yardstick
from sfumato.evaluation.extractors.extractor import FeatureExtractor
from sfumato.evaluation.figures import (
    MOST_ROWS,
    ReferenceFeatures,
    feature_floor,
    floor_sets,
    in_turn,
)
from sfumato.evaluation.metrics.alterations import ALTERATIONS
from sfumato.evaluation.metrics.frechet import feature_statistics, frechet_to
from sfumato.evaluation.real import OnImages, RealImages, digest_of

FIGURES = 3
"""Counts how figures are made: a card of another number is no answer to the same request."""
MOST_TRAINING = 50_000


@dataclass(frozen=True, kw_only=True)
class RealSets:
    """The real images of a data set, split by split."""

    reference: RealImages
    training: RealImages
    tuning: RealImages | None
    """The other part of the test images, where there is one."""
    reference_count: int | None = None

    @classmethod
    def load(cls, data: DataConfig, *, reference_count: int | None = None) -> "RealSets":
        """Raises as `load_records`."""
        return cls(
            reference=RealImages.load(data, "reference"),
            training=RealImages.load(data, "train"),
            tuning=RealImages.load(data, "tuning") if data.tuning_share else None,
            reference_count=reference_count,
        )

    @property
    def count(self) -> int:
        """Reference images that are used."""
        return min(self.reference_count or len(self.reference), len(self.reference))

    @property
    def labels(self) -> Tensor:
        """(count,) classes of the reference images."""
        return self.reference.labels(self.count)

    def first(self, count: int) -> Tensor:
        """The first reference images, uint8 (count, C, H, W)."""
        return self.reference.at(slice(count))

    @property
    def training_count(self) -> int:
        return min(MOST_TRAINING, len(self.training))


def reference_features(
    real: RealSets, extractor: FeatureExtractor, on_images: OnImages
) -> ReferenceFeatures:
    """Of the reference images that are used, from the cache or put there."""
    features = real.reference.features(extractor, real.count, on_images=on_images)
    statistics, root = real.reference.statistics(extractor, features)
    labels = real.reference.labels(real.count) if real.reference.records.class_names else None
    return ReferenceFeatures(
        statistics=statistics,
        rows=features[:MOST_ROWS],
        labels=None if labels is None else labels[:MOST_ROWS],
        root=root,
    )


def floor_of(
    real: RealSets,
    extractor: FeatureExtractor,
    reference: ReferenceFeatures,
    count: int,
    pairs: int,
    on_images: OnImages,
    *,
    balanced: bool,
) -> FeatureFloor | None:
    """Real sets of `count` images against the reference; None where there are not so many."""
    has_classes = bool(real.training.records.class_names)
    labels = real.training.labels(real.training_count) if has_classes else None
    sets = floor_sets(
        count=count,
        reference_count=real.count,
        pairs=pairs,
        training=real.training_count,
        reference=len(real.reference),
        labels=labels if balanced else None,
    )
    if sets is None:
        return None
    key = [FIGURES, real.training.digest, count, real.count, pairs, sets.balanced]
    path = real.reference.folder(extractor) / f"floor-{digest_of(key)}.json"
    if path.exists():
        try:
            return FeatureFloor.model_validate(read_json(path))
        except (DamagedDataError, ValueError):
            path.unlink()  # damaged, or of another version: it is made again
    used = max(int(rows.max()) for rows in sets.sets) + 1
    training = real.training.features(extractor, used, on_images=on_images)
    used = max(int(rows.max()) for rows in sets.references) + 1
    rows = real.reference.features(extractor, used, on_images=on_images)
    floor = feature_floor(
        sets,
        training,
        rows,
        reference,
        labels=labels,
        on_pair=lambda done: on_images("real against real", done, pairs),
    )
    write_json(path, floor.model_dump(mode="json"))
    return floor


def yardsticks_of(
    real: RealSets,
    extractor: FeatureExtractor,
    reference: ReferenceFeatures,
    count: int,
    *,
    balanced: bool,
) -> list[Yardstick]:
    """Altered real test images, as many as are measured, against the reference; from the cache, or
    put there. None where there are not so many."""
    images = real.tuning or real.reference
    rows = torch.arange(count)
    if balanced and images.records.class_names:
        by_class = in_turn(images.labels(len(images)), count)
        balanced = by_class is not None
        if by_class is not None:
            rows = torch.cat([own[:share] for own, share in by_class])
    if count > len(images):
        return []
    key = [FIGURES, images.digest, count, real.count, balanced]
    path = real.reference.folder(extractor) / f"yardsticks-{digest_of(key)}.json"
    if path.exists():
        try:
            return [Yardstick.model_validate(one) for one in read_json(path)]
        except (DamagedDataError, ValueError):
            path.unlink()  # damaged, or of another version: it is made again
    pictures = images.at(rows)
    found = []
    for alteration in ALTERATIONS.values():
        altered = feature_statistics(extractor(alteration.alter(pictures)))
        distance = frechet_to(altered, reference.statistics, root=reference.root)
        found.append(
            Yardstick(
                title=alteration.title,
                frechet=max(0.0, distance),
                count=count,
                of_reference=real.tuning is None,
            )
        )
    write_json(path, [one.model_dump(mode="json") for one in found])
    return found
