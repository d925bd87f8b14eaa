"""The `data` section of an experiment."""

from typing import Literal

from pydantic import field_validator

from sfumato.base.section import Section, Share, ValueRange
from sfumato.data.decode import Fit

Auto = Literal["auto"]
Loading = Literal["memory", "stream"]
AUTO_CAPTION = ("auto",)


class DataConfig(Section):
    """Which images, at which size, with which captions.

    What is `auto` is found in the images and made concrete before a run begins; its
    experiment.yaml holds what was found.
    """

    source: str = ""
    """`digits`, a Hub name OWNER/NAME, or a folder (docs/data.md); `--data` on the command line."""
    resolution: int | Auto = "auto"
    """Height and width in pixels that images are brought to; auto: by their median short side."""
    channels: Literal[1, 3] | Auto = "auto"
    """1 for greyscale, 3 for RGB; auto: 1 where all images are greyscale."""
    fit: Fit = "crop"
    """How images that are not square become so: crop (the centre) or squash (the paper)."""
    caption: tuple[str, ...] = AUTO_CAPTION
    """Caption templates with {caption}, the image's own, {class_name}, {word} or {label}; a step
    draws one for each image. auto: {caption} where there are captions."""
    held_out: tuple[str, ...] = ()
    """Caption templates that are never trained on; `sfumato evaluate --held-out` asks for them."""
    value_range: ValueRange = (-1.0, 1.0)
    """Range of pixel values inside the network; sampled images are clamped to it."""
    split_seed: int = 0
    """Seed of the split into train, judge and test, where a source has none of its own."""
    test_share: Share = 0.1
    """Share of the images held out for test, where a source has no test part of its own."""
    tuning_share: Share = 0.0
    """Share of the test images that a judge may be tuned on; figures come from the others."""
    max_damaged: Share = 0.01
    """Largest share of damaged rows that are skipped; more of them end the run."""
    loading: Loading | Auto = "auto"
    """How training reads: memory holds all decoded images, stream a window of them (Parquet only,
    docs/data-engine.md); auto: memory where they take less than 2 GiB."""
    workers: int | Auto = "auto"
    """Processes that decode a stream, 0 for none beside the training; auto: one a core, at most
    8. The order of the images is the same for any number."""
    image_column: str = "auto"
    """Parquet: the column of images; auto finds it by its type."""
    label_column: str = "auto"
    """Parquet: the column of classes; auto finds it by its type, none does without."""
    caption_column: str = "auto"
    """Parquet: the column of captions; auto finds it by its type, none does without."""

    @property
    def is_resolved(self) -> bool:
        return "auto" not in (self.resolution, self.channels) and self.caption != AUTO_CAPTION

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

    @field_validator("resolution", mode="before")
    @classmethod
    def _size(cls, value: object) -> object:
        if value == "auto" or (type(value) is int and 1 <= value <= 4096):
            return value
        raise ValueError("a resolution is auto, or lies between 1 and 4096 pixels")

    @field_validator("channels", mode="before")
    @classmethod
    def _channels(cls, value: object) -> object:
        if value in (1, 3, "auto") and not isinstance(value, bool):
            return value
        raise ValueError("channels are 1, 3 or auto")

    @field_validator("workers", mode="before")
    @classmethod
    def _processes(cls, value: object) -> object:
        if value == "auto" or (type(value) is int and 0 <= value <= 256):
            return value
        raise ValueError("workers are auto, or between 0 and 256")
