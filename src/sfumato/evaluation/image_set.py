"""`ImageSet`: images with prompts, labels and provenance; every metric takes two of them.

    prompts = PromptSet.of(load_records(data, "reference"), 500)
    samples = sampled_set(model, prompts, range(500), folder=Path("samples"))
    files = read_folder(Path("my-images"), data)           # PNG, JPEG, ...; data: a DataConfig
    files = read_npz(Path("samples.npz"), data)
    arrays = ImageSet.from_array(images, labels=labels)     # uint8 (N, C, H, W) or (N, H, W, C)
    real = ImageSet.real(data, "reference")

Images are made lazily, a part of a few at a time, and parts and features are kept in files: what is
there is not made again, after a kill or by another command. `features(extractor)` gives the
features of all images, computed once.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato.base.files import cache_folder
from sfumato.base.randomness import generator_for
from sfumato.config.sections import DataConfig
from sfumato.data.opening import source_identity
from sfumato.data.records import Split, load_records
from sfumato.evaluation.extractors.extractor import (
    FeatureExtractor,
    GivesLogits,
    ReadsCaptions,
)
from sfumato.evaluation.metrics.features import ImageFeatures, Tensors
from sfumato.evaluation.store import digest_of, kept

PART_IMAGES, REAL_PART_IMAGES = 64, 512
OnImages = Callable[[str, int, int], None]
"""Called with (what is being done, images done, images in all)."""
_REAL_FORMAT = 1
_REAL_SETTINGS = (
    "resolution",
    "channels",
    "fit",
    "split_seed",
    "test_share",
    "tuning_share",
    "max_damaged",
)


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSet:
    """Images by number, the same ones whenever they are asked for.

    `make(part)` gives `images` (uint8, (B, C, H, W)) of a range of numbers, and of sampled images
    `seconds`. `settings`: everything that the images depend on beside prompts and labels.
    """

    title: str
    count: int
    make: Callable[[range], Tensors]
    settings: Mapping[str, Any]
    labels: Tensor | None = None
    """(N,) int64, the class of each image, where that is known."""
    prompts: Sequence[str] | None = None
    name: str = ""
    """Of sampled images: that of their folder, which changes with the settings."""
    balanced: bool = False
    """Whether as many images of each class were asked for, instead of classes at random."""
    nfe: int | None = None
    """Network evaluations an image, where a model samples them."""
    folder: Path | None = None
    """Where features are kept; in memory alone without it."""
    keeps_images: bool = False
    """Whether the images are kept there too."""
    notes: Sequence[str] = ()
    """What is not known of the images, and why."""
    tensor: str = "images"
    """Which of the tensors of a part are the images."""
    part_images: int = PART_IMAGES
    part_key: Callable[[range], str] = lambda part: ""
    """Something that names the content of a part beside the folder."""
    size: int | None = None
    """Images that could be asked for: parts are the same for any `count`."""
    _features: dict[str, ImageFeatures] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.count

    # Images -----------------------------------------------------------------------------------

    @property
    def parts(self) -> list[range]:
        """The numbers of the images, a part at a time."""
        size = self.size or self.count
        return [
            range(start, min(start + self.part_images, size))
            for start in range(0, self.count, self.part_images)
        ]

    def part(self, part: range) -> Tensors:
        """`make(part)`, kept in a file where images are kept."""
        return kept(self._file("", part) if self.keeps_images else None, lambda: self.make(part))

    def missing(self) -> list[range]:
        """The parts that are not kept yet."""
        if not self.keeps_images:
            return []
        files = [(part, self._file("", part)) for part in self.parts]
        return [part for part, file in files if file is not None and not file.exists()]

    def images(self, rows: Iterable[int] | None = None) -> Tensor:
        """uint8 (K, C, H, W): all images, or those of the given numbers."""
        if rows is None:
            return torch.cat([self.part(part)[self.tensor] for part in self.parts])[: self.count]
        parts = self.parts
        loaded: dict[int, Tensor] = {}
        found = []
        for row in rows:
            place = row // self.part_images
            if place not in loaded:
                loaded[place] = self.part(parts[place])[self.tensor]
            found.append(loaded[place][row % self.part_images])
        return torch.stack(found)

    def per_image(self, measure: Callable[[Tensor], Tensor]) -> Tensor:
        """(N,) of a measure that maps images (B, C, H, W) to (B,)."""
        found = [measure(self.part(part)[self.tensor]) for part in self.parts]
        return torch.cat(found)[: self.count]

    @property
    def seconds(self) -> float | None:
        """Time of sampling."""
        if not self.keeps_images:
            return None
        return round(sum(float(self.part(part)["seconds"]) for part in self.parts), 2)

    @cached_property
    def key(self) -> str:
        """A digest that changes with anything that changes the images."""
        labels = None if self.labels is None else self.labels.tolist()
        known = {**self.settings, "prompts": list(self.prompts or ()), "labels": labels}
        return digest_of({**known, "count": self.count, "tensor": self.tensor})

    def first(self, count: int) -> "ImageSet":
        """The first images, at most `count`."""
        count = min(count, self.count)
        return replace(
            self,
            count=count,
            size=self.size or self.count,
            labels=None if self.labels is None else self.labels[:count],
            prompts=None if self.prompts is None else self.prompts[:count],
            _features={},
        )

    def select(self, rows: Tensor) -> "ImageSet":
        """Some of the images, by number, in memory."""
        numbers = rows.tolist()
        chosen = ImageSet.from_array(
            self.images(numbers),
            labels=None if self.labels is None else self.labels[rows],
            prompts=None if self.prompts is None else [str(self.prompts[row]) for row in numbers],
        )
        return replace(chosen, title=self.title, settings={**self.settings, "rows": numbers})

    def kept_in(self, folder: Path) -> "ImageSet":
        """The same sampled images, kept in a folder inside `folder`."""
        return replace(self, folder=folder / self.name, keeps_images=True, _features={})

    # Features ---------------------------------------------------------------------------------

    def features(
        self, extractor: FeatureExtractor, *, on_images: OnImages = lambda what, done, total: None
    ) -> ImageFeatures:
        """The features of all images on `extractor`: from their files, or computed once and kept
        there, a part at a time."""
        if extractor.name not in self._features:
            self._features[extractor.name] = self._compute(extractor, on_images)
        return self._features[extractor.name]

    def _compute(self, extractor: FeatureExtractor, on_images: OnImages) -> ImageFeatures:
        found = []
        for part in self.parts:
            computed = False

            def make(part: range = part) -> Tensors:
                nonlocal computed
                computed = True
                return {"features": extractor(self.part(part)[self.tensor])}

            file = self._file(digest_of([extractor.name, self.tensor]), part)
            found.append(kept(file, make)["features"])
            if computed:
                on_images(self.title, part.stop, self.parts[-1].stop)
        prompts = self.prompts
        texts = extractor.texts if isinstance(extractor, ReadsCaptions) else None
        return ImageFeatures(
            all_rows=torch.cat(found)[: self.count],
            labels=self.labels,
            balanced=self.balanced,
            head=extractor.logits if isinstance(extractor, GivesLogits) else None,
            embed_text=None
            if texts is None or prompts is None
            else lambda count: texts(prompts[:count]),
            # What is known of sampled images is quickly computed again, and large.
            kept=lambda name, make: kept(
                None if self.name else self.file(extractor, f"{name}.safetensors"), make
            ),
        )

    def file(self, extractor: FeatureExtractor, name: str) -> Path | None:
        """A file for what is known of these images by `extractor`."""
        if self.folder is None:
            return None
        return self.folder / digest_of([extractor.name, self.tensor]) / name

    def _file(self, of: str, part: range) -> Path | None:
        if self.folder is None:
            return None
        key = self.part_key(part)
        name = f"{part.start:08d}-{part.stop:08d}" + (f"-{key}" if key else "")
        return self.folder / of / f"{name}.safetensors"

    # How they are made ------------------------------------------------------------------------

    @classmethod
    def real(cls, data: DataConfig, split: Split) -> "ImageSet":
        """One split of a data set in a fixed random order: its first images are a fair sample.

        Features lie in the cache, under everything that they depend on. Raises as `load_records`.
        """
        records = load_records(data, split)
        order = torch.randperm(len(records), generator=generator_for("real images", len(records)))
        source = source_identity(data)
        settings = {
            "source": source,
            "split": split,
            "images": records.description,
            "count": len(records),
            "format": _REAL_FORMAT,
            **{name: getattr(data, name) for name in _REAL_SETTINGS},
            **({"left_out": (data.left_out, data.templates)} if data.left_out else {}),
        }
        captions = [records.captions[int(row)] for row in records.prompts[order, 0].tolist()]
        return cls(
            title=f"real images, {split}",
            count=len(records),
            make=lambda part: {"images": records.images[order[part.start : part.stop]]},
            settings=settings,
            labels=records.labels[order] if records.class_names else None,
            prompts=captions,
            folder=cache_folder() / "features" / f"{source}-{digest_of(settings)}",
            part_images=REAL_PART_IMAGES,
        )

    @classmethod
    def from_array(
        cls,
        images: Tensor | np.ndarray,
        *,
        labels: Tensor | np.ndarray | Sequence[int] | None = None,
        prompts: Sequence[str] | None = None,
        title: str = "images",
        digest: str | None = None,
    ) -> "ImageSet":
        """uint8 images (N, C, H, W), (N, H, W) or (N, H, W, 1 or 3), values 0 to 255."""
        pixels = torch.as_tensor(images)
        if pixels.ndim == 3:
            pixels = pixels[:, None]
        elif pixels.ndim == 4 and pixels.shape[1] not in (1, 3) and pixels.shape[3] in (1, 3):
            pixels = pixels.permute(0, 3, 1, 2)
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
            raise ValueError(
                f"images must be uint8 (N, C, H, W), got {images.dtype} {images.shape}"
            )
        if digest is None:
            digest = hashlib.sha256(pixels.contiguous().numpy().tobytes()).hexdigest()
        return cls(
            title=title,
            count=len(pixels),
            make=lambda part: {"images": pixels[part.start : part.stop]},
            settings={"files": digest},
            labels=None if labels is None else torch.as_tensor(labels).long(),
            prompts=prompts,
        )


def in_turn(labels: Tensor, count: int) -> list[tuple[Tensor, int]] | None:
    """The rows of each class that is there, and how many of them a balanced set of `count` holds;
    None where a class has not so many."""
    present = labels.unique().tolist()
    shares = [len(range(place, count, len(present))) for place in range(len(present))]
    rows = [(labels == label).nonzero().flatten() for label in present]
    if any(len(own) < share for own, share in zip(rows, shares, strict=True)):
        return None
    return list(zip(rows, shares, strict=True))
