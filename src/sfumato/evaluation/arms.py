"""Images of a model at several guidance scales, drawn once and kept, and what they measure.

Image i has seed `first_seed` + i and the same caption in every arm, so that arms are compared pair
by pair.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.base.environment import environment
from sfumato.base.images import ValueRange, to_uint8
from sfumato.base.section import Section
from sfumato.diffusion.guidance import CONVENTION, GuidanceConfig
from sfumato.diffusion.schedule import NoiseSchedule
from sfumato.diffusion.solvers.schedulers import build_solver, diffusion_of, sampler_of
from sfumato.evaluation.card import Figure, figure
from sfumato.evaluation.classifier import Judge
from sfumato.evaluation.metrics.diversity import Diversity, diversity_within_classes
from sfumato.evaluation.metrics.intervals import bootstrap_mean, wilson
from sfumato.evaluation.metrics.pixels import (
    border_deviation,
    border_rms,
    brightness,
    high_frequency_shares,
    saturated_shares,
)
from sfumato.evaluation.parts import Parts
from sfumato.evaluation.real import digest_of
from sfumato.evaluation.subjects import Asked
from sfumato.generation.model import ImageGenerator
from sfumato.generation.pipeline import generators_from_seeds

OnCalls = Callable[[int, int], None]
"""Told (network calls done, network calls in all)."""

PART_IMAGES = 64
BORDER_PX = 4
EDGE_PX = 2
CLIPPED: ValueRange = (-1.0, 1.0)
"""What diffusers' DDPMScheduler clips x0 to unless told otherwise."""

PIXELS: dict[str, Callable[[Tensor], Tensor]] = {
    "border_rms": lambda images: border_rms(images, _border(images, BORDER_PX)),
    "border_deviation": lambda images: border_deviation(images, _border(images, BORDER_PX)),
    "edge_rms": lambda images: border_rms(images, _border(images, EDGE_PX)),
    "high_frequency": high_frequency_shares,
    "saturated": saturated_shares,
    "brightness": brightness,
}
"""Measures of single images (N, C, H, W) => (N,)."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """How a figure is called and written."""

    title: str
    percent: bool = False

    @property
    def factor(self) -> float:
        return 100 if self.percent else 1

    def told(self, value: float) -> str:
        """With its unit, three digits or as many as an interval of hundreds of images needs."""
        if self.percent:
            return f"{100 * value:.1f} %"
        return f"{value:.4f}" if abs(value) < 1 else f"{value:.2f}"


MEASURES = {
    "border_rms": Measure(title="RMS of the outer 4 pixels (white is 1)"),
    "border_deviation": Measure(title="RMS of the outer 4 pixels about their mean"),
    "edge_rms": Measure(title="RMS of the outer 2 pixels (white is 1)"),
    "high_frequency": Measure(title="power above half Nyquist, %", percent=True),
    "saturated": Measure(title="saturated values (0 or 255)", percent=True),
    "brightness": Measure(title="brightness (white is 1)"),
    "agreement": Measure(title="agreement", percent=True),
    "agreement_4_5": Measure(title="agreement, 4 and 5", percent=True),
    "agreement_others": Measure(title="agreement, other digits", percent=True),
    "frechet": Measure(title="Frechet distance (judge's features)"),
    "diversity": Measure(title="diversity within a class (judge's features)"),
    "loss": Measure(title="training loss", percent=True),
}
"""Every figure that an effect or a row may have, in the order of a table."""


def _border(images: Tensor, border_px: int) -> int:
    """`border_px` of MNIST's 28 pixels; of smaller images as much as leaves a middle."""
    return min(border_px, (min(images.shape[-2:]) - 1) // 2)


class ScaleFigures(Section):
    """What an arm scores at one guidance scale."""

    guidance_scale: float
    calls: int
    """Network evaluations an image; a guided step takes two."""
    seconds: float
    """Time of drawing them."""
    drawn: str
    """The folder of the images."""
    figures: dict[str, Figure]


class ArmFigures(Section):
    """One model and one way from its samples to pixels, at each guidance scale."""

    key: str
    title: str
    settings: dict[str, Any]
    scales: list[ScaleFigures]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What is known of one set of images, image by image: of one (arm, scale), or real ones.

    `pixels`: (N,) by name; `right` (N,) bool: the judge sees the class asked for; `labels` (N,);
    `features` (N, D): the judge's.
    """

    images: Tensor
    labels: Tensor
    pixels: Mapping[str, Tensor]
    right: Tensor
    features: Tensor
    diversity: Diversity

    @classmethod
    def of(cls, images: Tensor, labels: Tensor, judge: Judge) -> "Measured":
        """Every measure of uint8 `images` (N, C, H, W), at least three of each class."""
        seen, features = judge(images)
        return cls(
            images=images,
            labels=labels,
            pixels={name: measure(images) for name, measure in PIXELS.items()},
            right=seen.cpu() == labels,
            features=features.cpu(),
            diversity=diversity_within_classes(features.cpu(), labels),
        )

    def figures(self, digits: Sequence[int]) -> dict[str, Figure]:
        """Every measure with its interval; `digits`: the classes that are told apart from the
        others, none where the data have no such."""
        found = {name: figure(bootstrap_mean(values)) for name, values in self.pixels.items()}
        shares = {"agreement": self.right}
        if digits:
            chosen = torch.isin(self.labels, torch.tensor(digits))
            shares |= {"agreement_4_5": self.right[chosen], "agreement_others": self.right[~chosen]}
        for name, right in shares.items():
            if len(right):
                found[name] = figure(wilson(int(right.sum()), len(right)))
        found["diversity"] = figure(self.diversity)
        return found


@dataclass(frozen=True, kw_only=True)
class Draws:
    """One model at one guidance scale, with x0 clamped to one range: images kept in files.

    `clipped`: x0 is clamped to [-1, 1] at every step, as the paper's scheduler does, and each
    image is kept twice: `images`, clamped to the value range at the end, and `stretched` from its
    lowest to its highest value.
    """

    generator: ImageGenerator
    asked: Asked
    guidance_scale: float
    first_seed: int
    store: Path
    clipped: bool = False
    guidance: GuidanceConfig | None = None
    """Another form than the generator's own."""

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Everything that an image depends on beside its number."""
        pipeline = self.generator.pipeline
        form = self._form
        # A weaker network that is loaded for other draws changes none of these.
        model = {
            name: value
            for name, value in self.generator.provenance.items()
            if name != "weak" or form.needs_weak_network
        }
        return {
            "guidance_scale": float(self.guidance_scale),
            "guidance": str(form),
            "guidance_convention": CONVENTION,
            "scheduler": sampler_of(pipeline.scheduler)[0],
            "timestep_spacing": pipeline.scheduler.config["timestep_spacing"],
            "steps": pipeline.config["num_inference_steps"],
            "x0_range": list(CLIPPED if self.clipped else pipeline.config["value_range"]),
            "first_seed": self.first_seed,
            "captions": list(dict.fromkeys(self.asked.prompts)),
            "model": model,
            "device": pipeline.device.type,
            "environment": environment(),
        }

    @cached_property
    def _form(self) -> GuidanceConfig:
        return self.generator.with_weak_network(self.guidance or self.generator.guidance)

    @cached_property
    def parts(self) -> Parts:
        return Parts(
            self.store / digest_of({**self.settings, "kept twice": self.clipped}),
            count=len(self.asked.prompts),
            rows=PART_IMAGES,
        )

    @cached_property
    def calls(self) -> int:
        """Network evaluations an image will take."""
        pipeline = self.generator.pipeline
        solver = build_solver(
            pipeline.scheduler, steps=pipeline.config["num_inference_steps"], generators=[]
        )
        schedule = NoiseSchedule.from_config(diffusion_of(pipeline.scheduler))
        form = self._form.build(scale=self.guidance_scale)
        return sum(len(form.branches(s)) for s in schedule.sigma[solver.timesteps].tolist())

    def calls_left(self) -> int:
        """Network evaluations of all images that are not there yet."""
        return self.calls * sum(len(part) for part in self.parts if not self.parts.has(part))

    def take(self, on_calls: Callable[[int], None]) -> dict[str, Tensor]:
        """All images, uint8 (N, C, H, W), drawn where they are not there; `on_calls` is told of
        the network evaluations of each part that was drawn."""
        found = []
        for part in self.parts:
            there = self.parts.has(part)
            found.append(self.parts.get(part, self._make))
            if not there:
                on_calls(self.calls * len(part))
        names = ["images", "stretched"] if self.clipped else ["images"]
        taken = {name: torch.cat([tensors[name] for tensors in found]) for name in names}
        return taken | {"seconds": torch.stack([tensors["seconds"] for tensors in found]).sum()}

    def _make(self, part: range) -> dict[str, Tensor]:
        started = time.perf_counter()
        pipeline = self.generator.pipeline
        drawn_by = self.generator.provenance.get("weights_sha256")
        assert drawn_by == self.settings["model"].get("weights_sha256"), "other weights by now"
        sampled = pipeline.sample(
            self.asked.prompts[part.start : part.stop],
            generators=generators_from_seeds(
                range(self.first_seed + part.start, self.first_seed + part.stop)
            ),
            guidance_scale=self.guidance_scale,
            guidance=str(self._form),
            x0_range=CLIPPED if self.clipped else None,
        )
        assert sampled.calls == self.calls, "the calls were counted before"
        low, high = pipeline.config["value_range"]
        tensors = {"images": to_uint8(sampled.x0, (low, high)).cpu()}
        if self.clipped:
            tensors["stretched"] = stretched(sampled.x0).cpu()
        return tensors | {"seconds": torch.tensor(time.perf_counter() - started)}


class CallsDone:
    """Tells `on_calls` (network evaluations done, in all) of `draws`, from now on at each part."""

    def __init__(self, draws: Iterable[Draws], on_calls: OnCalls) -> None:
        each = list(draws)
        self._total = sum(one.calls * len(one.asked.prompts) for one in each)
        self._done = self._total - sum(one.calls_left() for one in each)
        self._tell = on_calls
        self._tell(self._done, self._total)

    def __call__(self, calls: int) -> None:
        self._done += calls
        self._tell(self._done, self._total)


def stretched(x0: Tensor) -> Tensor:
    """Each image of float (N, C, H, W) from its lowest value to its highest, as uint8 0 to 255.

    What "normalise to [0, 255]" means to plotting tools. An even image becomes black.
    """
    low, high = x0.amin(dim=(1, 2, 3), keepdim=True), x0.amax(dim=(1, 2, 3), keepdim=True)
    return to_uint8((x0 - low) / (high - low).clamp_min(1e-12), (0.0, 1.0))
