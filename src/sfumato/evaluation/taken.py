"""One set of images made and put through every extractor once, kept in files as it goes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from sfumato.evaluation.extractors.extractor import FeatureExtractor
from sfumato.evaluation.metrics.pixels import saturated_shares
from sfumato.evaluation.parts import Parts
from sfumato.evaluation.real import digest_of
from sfumato.evaluation.subjects import Subject, file_name

PART_IMAGES = 64


def images_folder(folder: Path, title: str) -> Path:
    """Where an evaluation keeps the images of a row that it drew."""
    return folder / "images" / file_name(title)


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A subject's images and features, in their files; `saturated` (N,) of each image."""

    subject: Subject
    images: Callable[[range], dict[str, Tensor]]
    parts: Sequence[range]
    features: Mapping[str, Callable[[range], Tensor]]
    saturated: Tensor
    calls: int | None
    seconds: float | None

    @property
    def labels(self) -> Tensor | None:
        """(N,) classes asked for."""
        return self.subject.labels

    def first(self, count: int) -> Tensor:
        """The first images, uint8 (count, C, H, W) at most."""
        parts = [part for part in self.parts if part.start < count]
        return torch.cat([self.images(part)["images"] for part in parts])[:count]

    def at(self, rows: Sequence[int]) -> Tensor:
        """Images by number."""
        return torch.stack(
            [
                self.images(self.parts[row // PART_IMAGES])["images"][row % PART_IMAGES]
                for row in rows
            ]
        )

    def of(self, key: str) -> Iterator[Tensor]:
        """The features of one extractor, a part (B, D) at a time."""
        return map(self.features[key], self.parts)


def take(
    subject: Subject,
    extractors: Mapping[str, FeatureExtractor],
    folder: Path,
    *,
    on_done: Callable[[int], None],
) -> Taken:
    """Make every image and take all its features; what lies in `folder` is not made again."""
    kept = Parts(images_folder(folder, subject.title), count=subject.count, rows=PART_IMAGES)
    stores = {
        key: Parts(
            folder / "features" / digest_of(extractor.name) / file_name(subject.title),
            count=subject.count,
            rows=PART_IMAGES,
        )
        for key, extractor in extractors.items()
    }

    def images(part: range) -> dict[str, Tensor]:
        return kept.get(part, subject.make) if subject.drawn else subject.make(part)

    def features(key: str, part: range, pictures: Tensor | None = None) -> Tensor:
        def make(part: range) -> dict[str, Tensor]:
            seen = images(part)["images"] if pictures is None else pictures
            return {"features": extractors[key](seen)}

        return stores[key].get(part, make)["features"]

    saturated, seconds, calls = [], 0.0, None
    for part in kept:
        made = images(part)
        saturated.append(saturated_shares(made["images"]))
        if subject.drawn:
            seconds += float(made["seconds"])
            calls = int(made["calls"])
        for key in extractors:
            features(key, part, made["images"])
        on_done(part.stop)
    return Taken(
        subject=subject,
        images=images,
        parts=list(kept),
        features={key: partial(features, key) for key in extractors},
        saturated=torch.cat(saturated),
        calls=calls,
        seconds=round(seconds, 2) if subject.drawn else None,
    )
