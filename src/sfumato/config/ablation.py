"""Ablations: what is compared, read from a preset or a YAML file."""

import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from sfumato.base.errors import ConfigError
from sfumato.base.section import Section, validate
from sfumato.config.overrides import read_named
from sfumato.config.schema import DiffusionExperiment, load_experiment


class VariantConfig(Section):
    """A preset with the `section.key=value` in which the variant differs from it."""

    preset: str
    settings: tuple[str, ...] = ()


class Ablation(Section):
    """What is compared: variants by name."""

    name: str
    about: str = ""
    settings: tuple[str, ...] = ()
    """`section.key=value` of every variant."""
    variants: dict[str, VariantConfig]
    base: str
    """The variant that the others are compared with."""
    seeds: tuple[int, ...] = (0, 1, 2)
    levels: tuple[float, ...] = (0.95, 0.98)
    """Class accuracies; for each, the images seen until a run reaches it are reported."""
    stop_at: Annotated[float, Field(gt=0, le=1)] | None = None
    """A run stops once it reaches this accuracy at every scale; null for equal images."""

    @field_validator("variants")
    @classmethod
    def _own_folders(cls, values: dict[str, VariantConfig]) -> dict[str, VariantConfig]:
        names: dict[str, str] = {}
        for variant in values:
            folder = folder_name(variant)
            if not folder:
                raise ValueError(
                    f"no letter or digit of '{variant}' can name its folder: rename it"
                )
            if (other := names.setdefault(folder, variant)) != variant:
                raise ValueError(
                    f"'{other}' and '{variant}' would have the same folder, {folder}: rename one"
                )
        return values

    @field_validator("seeds")
    @classmethod
    def _some(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        if not values:
            raise ValueError("give at least one")
        return values

    @field_validator("levels")
    @classmethod
    def _shares(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < value <= 1 for value in values):
            raise ValueError("a level is a share above 0, up to 1")
        return values

    @model_validator(mode="after")
    def _has_base(self) -> "Ablation":
        if self.base not in self.variants:
            variants = ", ".join(self.variants)
            raise ValueError(f"base '{self.base}' is not one of the variants: {variants}")
        return self

    def experiment(
        self, variant: str, seed: int, overrides: Sequence[str] = ()
    ) -> DiffusionExperiment:
        """The run of one variant and seed. `ConfigError` as `load_experiment`, or without quick
        evaluations."""
        own = self.variants[variant]
        settings = [*self.settings, *own.settings, *overrides, f"seed={seed}"]
        experiment = load_experiment(own.preset, settings, schema=DiffusionExperiment)
        if experiment.training.accuracy_every_images is None:
            raise ConfigError(
                f"ablation '{self.name}', variant '{variant}': without quick evaluations there is "
                "nothing to compare.",
                hint="Add training.accuracy_every_images=N to its settings.",
            )
        return experiment


def folder_name(variant: str) -> str:
    """The name of a variant's folder: that of "8 groups, eps" is 8-groups-eps."""
    return re.sub(r"[^\w.]+", "-", variant.lower()).strip("-.")


def ablation_names() -> list[str]:
    """The ablations that come with sfumato."""
    folder = files("sfumato.config.presets") / "ablations"
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir())


def load_ablation(name: str) -> Ablation:
    """An ablation by name or from a YAML file. `ConfigError` with the nearest match."""
    values, source = read_named(
        name,
        kind="ablation",
        folder=files("sfumato.config.presets") / "ablations",
        names=ablation_names(),
        hint="One of your own is given by its YAML file.",
    )
    return validate(Ablation, values, source=source)
