"""Where images come from: a registry of sources that all give the same records."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import field_validator
from torch import Tensor

from sfumato.base.errors import ConfigError, nearest
from sfumato.base.images import resize
from sfumato.base.section import Section, ValueRange
from sfumato.data.captions import captions_from_templates

Split = Literal["train", "judge", "test"]


class DataConfig(Section):
    """Which images, at which size, with which captions."""

    source: str
    """Name of a data source: digits."""
    resolution: int
    """Height and width in pixels that images are brought to."""
    channels: Literal[1, 3] = 3
    """1 for greyscale, 3 for RGB."""
    caption: tuple[str, ...]
    """Caption templates with {label}, {class_name} or {word}; a step draws one for each image."""
    value_range: ValueRange = (-1.0, 1.0)
    """Range of pixel values inside the network; sampled images are clamped to it."""
    split_seed: int = 0
    """Seed of the split into train, judge and test, where a source has none of its own."""

    @field_validator("caption", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("caption")
    @classmethod
    def _some(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("give at least one caption template")
        return value

    @field_validator("value_range")
    @classmethod
    def _rising(cls, value: ValueRange) -> ValueRange:
        if value[0] >= value[1]:
            raise ValueError("the low end must be below the high end")
        return value

    @field_validator("resolution")
    @classmethod
    def _positive(cls, value: int) -> int:
        if not 1 <= value <= 4096:
            raise ValueError("a resolution lies between 1 and 4096 pixels")
        return value


@dataclass(frozen=True, kw_only=True)
class Records:
    """Images of one split.

    `images`: (N, C, H, W) uint8; `labels`: (N,) int64 into `class_names`; `prompts`: (N, T) int64
    into `captions`, the distinct captions: an image has T of them, and a step draws one.
    """

    images: Tensor
    labels: Tensor
    class_names: Sequence[str]
    prompts: Tensor
    captions: Sequence[str]
    description: str

    def __len__(self) -> int:
        return len(self.images)

    @property
    def class_captions(self) -> list[str]:
        """The first template's caption of each class."""
        return list(self.captions[: len(self.class_names)])


def templated_prompts(labels: Tensor, config: DataConfig, class_names: Sequence[str]) -> Tensor:
    """(N, T) rows of `captions_from_templates` for `labels` (N,)."""
    return labels[:, None] + len(class_names) * torch.arange(len(config.caption))


def load_records(config: DataConfig, split: Split) -> Records:
    """The images of `split`; `ConfigError` for an unknown source."""
    if config.source not in SOURCES:
        raise ConfigError(
            f"data.source: no source named '{config.source}'.",
            mend=nearest(config.source, sorted(SOURCES)),
        )
    return SOURCES[config.source](config, split)


DIGITS_SPLIT: dict[Split, tuple[int, int]] = {
    "train": (0, 897),
    "judge": (897, 1497),
    "test": (1497, 1797),
}


def digits(config: DataConfig, split: Split) -> Records:
    """The 1,797 handwritten digits that scikit-learn carries (UCI, Alpaydin and Kaynak 1998).

    8x8 pixels with 17 grey levels, stretched to 0..255 and brought to the resolution by bilinear
    interpolation; split at random by `split_seed` into 897 for the generator, 600 for the judge
    and 300 for test and reference.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = np.random.default_rng(config.split_seed).permutation(len(bunch.target))
    start, stop = DIGITS_SPLIT[split]
    chosen = order[start:stop]
    grey = np.rint(bunch.images[chosen] * (255 / 16)).astype(np.uint8)
    images = np.stack([resize(image, config.resolution) for image in grey])[:, None]
    labels = torch.from_numpy(bunch.target[chosen].astype(np.int64))
    class_names = [str(digit) for digit in range(10)]
    return Records(
        images=torch.from_numpy(images).repeat(1, config.channels, 1, 1),
        labels=labels,
        class_names=class_names,
        prompts=templated_prompts(labels, config, class_names),
        captions=captions_from_templates(config.caption, class_names),
        description=f"scikit-learn digits, {split} split ({len(chosen)} of 1,797), 8x8 brought to "
        f"{config.resolution}x{config.resolution} (bilinear), split seed {config.split_seed}",
    )


SOURCES: dict[str, Callable[[DataConfig, Split], Records]] = {"digits": digits}
