"""Real images and their features, kept between evaluations under everything they depend on."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from sfumato.base.files import cache_folder, write_json
from sfumato.base.randomness import generator_for
from sfumato.config.sections import DataConfig
from sfumato.data.records import Records, Split, load_records, source_identity
from sfumato.evaluation.extractors.extractor import FeatureExtractor
from sfumato.evaluation.metrics.frechet import covariance_root
from sfumato.evaluation.metrics.moments import FeatureMoments, FeatureStatistics
from sfumato.evaluation.parts import Parts, write_tensors

FORMAT = 1
_ROWS = 512
_DEPENDS_ON = (
    "resolution",
    "channels",
    "fit",
    "split_seed",
    "test_share",
    "tuning_share",
    "max_damaged",
)

OnImages = Callable[[str, int, int], None]
"""Told (what is being done, images done, images in all)."""


def digest_of(values: object) -> str:
    """A short digest of plain values."""
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class RealImages:
    """One split of a data set in an order drawn once, so that its first rows are a fair sample."""

    records: Records
    split: Split
    digest: str
    """Changes with the data, the split and how its images are read."""
    about: dict[str, object]

    @classmethod
    def load(cls, data: DataConfig, split: Split) -> "RealImages":
        """Raises as `load_records`."""
        records = load_records(data, split)
        about = {
            "source": source_identity(data),
            "split": split,
            "images": records.description,
            "count": len(records),
            "format": FORMAT,
            **{name: getattr(data, name) for name in _DEPENDS_ON},
        }
        return cls(records=records, split=split, digest=digest_of(about), about=about)

    def __len__(self) -> int:
        return len(self.records)

    @cached_property
    def order(self) -> Tensor:
        """(N,) int64: the place in `records` of each row."""
        return torch.randperm(len(self), generator=generator_for("real images", len(self)))

    def at(self, rows: slice | Tensor) -> Tensor:
        """uint8 (K, C, H, W) of rows (K,)."""
        return self.records.images[self.order[rows]]

    def labels(self, count: int) -> Tensor:
        return self.records.labels[self.order[:count]]

    def captions(self, count: int) -> list[str]:
        """The first caption of each of the first `count` rows."""
        first = self.records.prompts[self.order[:count], 0].tolist()
        return [self.records.captions[int(row)] for row in first]

    def features(
        self, extractor: FeatureExtractor, count: int | None = None, *, on_images: OnImages
    ) -> Tensor:
        """(count, D) float32 of the first `count` rows (all without it): from the cache, else taken
        and put there, a part at a time."""
        count = len(self) if count is None else min(count, len(self))
        whole = min(-(-count // _ROWS) * _ROWS, len(self))  # parts are the same for any count
        parts = Parts(self.folder(extractor), count=whole, rows=_ROWS)
        taken, found = 0, []

        def take(part: range) -> dict[str, Tensor]:
            nonlocal taken
            features = extractor(self.at(slice(part.start, part.stop)))
            taken += len(part)
            return {"features": features}

        for part in parts:
            before = taken
            found.append(parts.get(part, take)["features"])
            if taken > before:
                on_images(f"real images, {self.split}", part.stop, whole)
        return torch.cat(found)[:count]

    def statistics(
        self, extractor: FeatureExtractor, features: Tensor
    ) -> tuple[FeatureStatistics, Tensor]:
        """Mean, covariance and its root of `features`, the first rows; from the cache, or put
        there."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self.folder(extractor) / f"statistics-{len(features)}.safetensors"
        if path.exists():
            try:
                kept = load_file(path)
                found = FeatureStatistics(
                    mean=kept["mean"], covariance=kept["covariance"], count=len(features)
                )
            except (SafetensorError, KeyError, ValueError):
                path.unlink()  # damaged: it is made again
            else:
                return found, kept["root"]
        moments = FeatureMoments(features.shape[1])
        for part in features.split(_ROWS):
            moments.update(part)
        found = moments.statistics()
        root = covariance_root(found)
        kept = {"mean": found.mean, "covariance": found.covariance, "root": root}
        write_tensors(path, kept)
        return found, root

    def folder(self, extractor: FeatureExtractor) -> Path:
        """Where what is known of these images by `extractor` is kept."""
        folder = cache_folder() / "features" / f"{self.about['source']}-{self.digest}"
        folder /= digest_of(extractor.name)
        if not (folder / "about.json").exists():
            write_json(folder / "about.json", {**self.about, "extractor": extractor.name})
        return folder
