"""The `evaluation` section: what is measured when nothing else is asked for."""

from typing import Literal

from pydantic import Field, field_validator

from sfumato.base.section import GuidanceScale, Section
from sfumato.features.config import FeaturesConfig

FEWEST_IMAGES = 10


class EvaluationConfig(Section):
    """What is measured when nothing else is asked for."""

    guidance_scales: tuple[GuidanceScale, ...] = (1, 2, 3, 5)
    """The guidance scales of a table."""
    count: int = 100
    """Images drawn for each guidance scale."""
    quick_count: int = 200
    """Images of a quick evaluation during training (`training.agreement_every_images`)."""
    quick_scales: tuple[GuidanceScale, ...] = (1,)
    """Guidance scales of a quick evaluation."""
    labels: Literal["balanced", "random"] = "balanced"
    """Classes asked for: in turn, as many of each, or drawn by lot."""
    judge: str = "auto"
    """Who reads the classes: auto (trained once and kept), a run of `sfumato train classifier`, an
    image classifier of transformers (a folder or Hub name), untrained or untrained:SEED."""
    extractors: tuple[str, ...] = ("inception", "clip", "dinov2", "small-clip", "judge")
    """Networks whose features are measured; those whose weights are not at hand say so."""
    features: FeaturesConfig = FeaturesConfig()
    """Where the weights of the extractors come from."""
    reference_count: int | None = None
    """Real images on the other side: the first so many of the reference split; null for all."""
    floor_pairs: int = Field(default=10, ge=2)
    """Real sets that are measured like a generated one, for the floor."""

    @field_validator("count", "quick_count")
    @classmethod
    def _enough(cls, value: int) -> int:
        if value < FEWEST_IMAGES:
            raise ValueError(f"{value} images are too few to measure: {FEWEST_IMAGES} or more")
        return value

    @field_validator("extractors", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return tuple(value.split(",")) if isinstance(value, str) else value

    @field_validator("guidance_scales", "quick_scales", "extractors")
    @classmethod
    def _each_once(cls, value: tuple[object, ...]) -> tuple[object, ...]:
        if not value:
            raise ValueError("give at least one")
        if len(set(value)) < len(value):
            raise ValueError("one is given twice")
        return value

    @field_validator("reference_count")
    @classmethod
    def _enough_real(cls, value: int | None) -> int | None:
        if value is not None and value < FEWEST_IMAGES:
            raise ValueError(f"{value} images are too few: {FEWEST_IMAGES} or more, null for all")
        return value
