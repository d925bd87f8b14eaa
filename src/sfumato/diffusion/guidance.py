"""Guidance: how conditional and unconditional predictions become one.

Convention of Eq. 1, written into every result: `uncond + w (cond - uncond)`, so w = 0 is
unconditional and w = 1 is conditional without guidance; at these two every form makes one network
call and, but for dynamic thresholding, draws the same. All forms act on x0. A new form is a class
here and a line in `GUIDANCE_FORMS`; the fields that it adds are its parameters.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from sfumato.base.errors import InputError, nearest
from sfumato.base.images import ValueRange

if TYPE_CHECKING:
    from torch import Tensor

Branch = Literal["cond", "uncond", "weak"]
"""The caption; the null prompt; the caption, but by the weaker network of autoguidance."""

CONVENTION = "uncond + w (cond - uncond)"


class Guidance(Protocol):
    """One form of guidance: which network calls it needs at a step, and how it joins them."""

    def branches(self, sigma: float) -> tuple[Branch, ...]:
        """The predictions needed; each is one network evaluation an image.

        `sigma`: the step's noise level, `NoiseSchedule.sigma`.
        """
        ...

    def combine(self, x0: "Mapping[Branch, Tensor]", memory: "dict[str, Tensor]") -> "Tensor":
        """One x0 (B, C, H, W) from those of the branches, each (B, C, H, W).

        `memory`: what the form keeps from step to step; empty at the start of a sampling run, and
        of that run alone.
        """
        ...


@dataclass(frozen=True)
class ClassifierFreeGuidance:
    """Plain classifier-free guidance, Eq. 1 of the paper (Ho and Salimans 2022).

    At a fixed x_t, eps is an affine function of x0 and the two weights add up to one, so Eq. 1
    holds for x0 as it does for eps. `value_range` is that of x0.
    """

    scale: float
    value_range: ValueRange = (-1.0, 1.0)

    away_from: ClassVar[Branch] = "uncond"
    """The branch that guidance leads away from."""
    folded: ClassVar[bool] = False
    """Whether it is in the weights of the network: no other form can take its place."""
    needs_range: ClassVar[bool] = False
    """Whether it is for values with a range, pixels, and not for latents."""

    def branches(self, sigma: float) -> tuple[Branch, ...]:
        if self.scale == 0:
            return (self.away_from,)
        if self.scale == 1:
            return ("cond",)
        return ("cond", self.away_from)

    def combine(self, x0: "Mapping[Branch, Tensor]", memory: "dict[str, Tensor]") -> "Tensor":
        if len(x0) == 1:
            return next(iter(x0.values()))
        return self.guided(x0["cond"], x0[self.away_from], memory)

    def guided(self, cond: "Tensor", uncond: "Tensor", memory: "dict[str, Tensor]") -> "Tensor":
        """Eq. 1 for two predictions (B, C, H, W)."""
        return uncond + self.scale * (cond - uncond)

    @property
    def centre(self) -> float:
        return sum(self.value_range) / 2


@dataclass(frozen=True)
class IntervalGuidance(ClassifierFreeGuidance):
    """Guidance at noise levels low < sigma <= high only, w = 1 elsewhere.

    Kynkäänniemi et al. 2024. One call a step outside of the interval. The defaults are the paper's
    for EDM2-S on ImageNet-512. w = 0 is unconditional at every level.
    """

    low: float = 0.28
    high: float = 2.9

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high:
            raise ValueError("low and high are noise levels with 0 <= low < high")

    def branches(self, sigma: float) -> tuple[Branch, ...]:
        if self.scale == 0 or self.low < sigma <= self.high:
            return super().branches(sigma)
        return ("cond",)


@dataclass(frozen=True)
class RescaledGuidance(ClassifierFreeGuidance):
    """Guidance brought back to the contrast of the conditional prediction, by the share `phi`.

    Lin et al. 2023, Eq. 15 and 16, on x0 and about the centre of the value range, so that
    [0, 1] and [-1, 1] give the same pictures.
    """

    phi: float = 0.7

    def __post_init__(self) -> None:
        if not 0 <= self.phi <= 1:
            raise ValueError("phi is a share: 0 (plain) to 1 (all of the rescaled prediction)")

    def guided(self, cond: "Tensor", uncond: "Tensor", memory: "dict[str, Tensor]") -> "Tensor":
        plain = super().guided(cond, uncond, memory)
        factor = _per_image_std(cond) / _per_image_std(plain).clamp_min(1e-12)
        factor = self.phi * factor + (1 - self.phi)
        return self.centre + (plain - self.centre) * factor.to(plain.dtype)


@dataclass(frozen=True)
class DynamicThresholding(ClassifierFreeGuidance):
    """Each x0 clipped at its own percentile and shrunk into the value range.

    Imagen, Saharia et al. 2022, Section 2.3: s is the `percentile` (a share) of the absolute
    values about the range's centre, at least half the range's width; x0 is clipped to s and
    divided by it. It acts at w = 0 and 1 as well.
    """

    percentile: float = 0.995

    needs_range: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.percentile <= 1:
            raise ValueError("percentile must be a share above 0, up to 1")

    def combine(self, x0: "Mapping[Branch, Tensor]", memory: "dict[str, Tensor]") -> "Tensor":
        plain = super().combine(x0, memory)
        half = (self.value_range[1] - self.value_range[0]) / 2
        from_centre = plain - self.centre
        import torch

        # Row by row: torch.quantile takes at most 2^24 numbers at once.
        rows = from_centre.abs().flatten(1)
        limits = torch.stack([row.quantile(self.percentile) for row in rows]).clamp_min(half)
        limits = limits[:, None, None, None]
        return self.centre + from_centre.clamp(-limits, limits) * (half / limits)


@dataclass(frozen=True)
class ChannelThresholding(ClassifierFreeGuidance):
    """Each channel of each x0 clipped at its own percentile and shrunk to `limit`: dynamic
    thresholding of latents, whose channels have no common range.

    s is the `percentile` (a share) of a channel's absolute values about the centre, at least
    `limit`; the channel is clipped to s and multiplied by limit / s. Latents have deviation 1. It
    acts at w = 0 and 1 as well.
    """

    percentile: float = 0.995
    limit: float = 3.0

    def __post_init__(self) -> None:
        if not 0 < self.percentile <= 1:
            raise ValueError("percentile must be a share above 0, up to 1")
        if self.limit <= 0:
            raise ValueError("limit must be above 0")

    def combine(self, x0: "Mapping[Branch, Tensor]", memory: "dict[str, Tensor]") -> "Tensor":
        from_centre = super().combine(x0, memory) - self.centre
        found = from_centre.abs().flatten(2).quantile(self.percentile, dim=2)
        limits = found.clamp_min(self.limit)[:, :, None, None]
        return self.centre + from_centre.clamp(-limits, limits) * (self.limit / limits)


@dataclass(frozen=True)
class AdaptiveProjectedGuidance(ClassifierFreeGuidance):
    """APG: the guidance direction with momentum, of limited norm, its part along cond weakened.

    Sadat et al. 2024, Algorithm 1, on x0 about the centre of the value range. The part parallel
    to cond is what oversaturates. `eta`: weight of it; `momentum`: beta, negative; `norm`: r, the
    largest L2 norm of the direction, 0 for no limit (it grows with the number of pixels).
    """

    eta: float = 0.0
    momentum: float = -0.5
    norm: float = 0.0

    def __post_init__(self) -> None:
        if not -1 < self.momentum < 1:
            raise ValueError("momentum must be above -1 and below 1")
        if self.norm < 0:
            raise ValueError("norm must be 0 or more (0: no limit)")

    def guided(self, cond: "Tensor", uncond: "Tensor", memory: "dict[str, Tensor]") -> "Tensor":
        direction = cond - uncond
        if "direction" in memory:
            direction = direction + self.momentum * memory["direction"]
        memory["direction"] = direction
        direction = direction.double()  # the projection is a difference of large sums
        if self.norm > 0:
            length = _per_image_norm(direction).clamp_min(1e-12)
            direction = direction * (self.norm / length).clamp(max=1)
        along = cond.double() - self.centre
        along = along / _per_image_norm(along).clamp_min(1e-12)
        parallel = (direction * along).sum((1, 2, 3), keepdim=True) * along
        update = (direction - parallel) + self.eta * parallel
        return cond + (self.scale - 1) * update.to(cond.dtype)


@dataclass(frozen=True)
class AutoGuidance(ClassifierFreeGuidance):
    """Guidance away from a weaker network given the same caption: weak + w (cond - weak).

    Karras et al. 2024, "Guiding a diffusion model with a bad version of itself". `images`: the
    weaker network is the checkpoint of the same run after so many images; 0 is the oldest kept.
    """

    images: int = 0

    away_from: ClassVar[Branch] = "weak"

    def __post_init__(self) -> None:
        if self.images < 0 or self.images != int(self.images):
            raise ValueError(
                "images must be the number of images that the weaker checkpoint has seen"
            )


@dataclass(frozen=True)
class FoldedGuidance(ClassifierFreeGuidance):
    """Guidance that is in the weights already: those of a distilled student (Meng et al. 2023).

    One call a step. The student takes `nfe` steps of DDIM, at the levels it was trained on, and
    scales from `low` to `high`; `Sampling` refuses others.
    """

    nfe: int = 1
    low: float = 1.0
    high: float = 1.0

    folded: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.nfe < 1 or self.nfe != int(self.nfe):
            raise ValueError("nfe is the number of steps, 1 or more")
        if not 0 <= self.low <= self.high:
            raise ValueError("low and high are guidance scales with 0 <= low <= high")

    def branches(self, sigma: float) -> tuple[Branch, ...]:
        return ("cond",)


GUIDANCE_FORMS: dict[str, type[ClassifierFreeGuidance]] = {
    "cfg": ClassifierFreeGuidance,
    "interval": IntervalGuidance,
    "rescaled": RescaledGuidance,
    "dynamic_thresholding": DynamicThresholding,
    "channel_thresholding": ChannelThresholding,
    "apg": AdaptiveProjectedGuidance,
    "autoguidance": AutoGuidance,
    "folded": FoldedGuidance,
}
FREE_FORMS = [name for name, form in GUIDANCE_FORMS.items() if not form.folded]
"""Those that a model can be sampled with whatever it was trained for."""


def form_parameters(form: str) -> dict[str, float]:
    """The parameters of a registered form with their defaults."""
    shared = {field.name for field in fields(ClassifierFreeGuidance)}
    own = [field.name for field in fields(GUIDANCE_FORMS[form]) if field.name not in shared]
    return {name: getattr(GUIDANCE_FORMS[form], name) for name in own}


@dataclass(frozen=True)
class GuidanceForm:
    """A form of guidance and all its parameters, without the scale.

    Written as text it is `apg:eta=0,momentum=-0.5`: in YAML, on the command line, in a saved model
    and in a PNG.
    """

    form: str
    parameters: tuple[tuple[str, float], ...]

    def build(
        self, *, scale: float, value_range: ValueRange | None = (-1.0, 1.0)
    ) -> ClassifierFreeGuidance:
        """The guidance at `scale`. `value_range`: of x0; None for latents, whose centre is 0.

        `ValueError` for a parameter out of range, `InputError` for a form that latents do not have.
        """
        if value_range is None:
            if self.needs_range:
                raise InputError(
                    f"{self.form} clips x0 to the range of pixels, and this model samples latents, "
                    "which have no range.",
                    hint="Use channel_thresholding, which clips each channel by itself.",
                )
            value_range = (-1.0, 1.0)
        return GUIDANCE_FORMS[self.form](scale, value_range, **dict(self.parameters))

    @property
    def needs_weak_network(self) -> bool:
        return GUIDANCE_FORMS[self.form].away_from == "weak"

    @property
    def needs_range(self) -> bool:
        return GUIDANCE_FORMS[self.form].needs_range

    @property
    def folded(self) -> bool:
        return GUIDANCE_FORMS[self.form].folded

    def __str__(self) -> str:
        """The text with every parameter: enough to sample again."""
        values = (
            f"{name}={int(value) if float(value).is_integer() else value!r}"
            for name, value in self.parameters
        )
        return ":".join(filter(None, (self.form, ",".join(values))))

    @property
    def label(self) -> str:
        """The text with the parameters that differ from their defaults."""
        defaults = form_parameters(self.form)
        changed = tuple((k, v) for k, v in self.parameters if v != defaults[k])
        return str(GuidanceForm(self.form, changed))


@cache
def parse_form(text: str) -> GuidanceForm:
    """A form from its text, parameters that are not given at their defaults.

    `ValueError` with the nearest form or parameter; `parse_guidance` is for what a user typed.
    """
    form, _, rest = text.partition(":")
    form = form.strip()
    if form not in GUIDANCE_FORMS:
        near = nearest(form, FREE_FORMS)
        raise ValueError(f"no form of guidance is named '{form}'. {near}")
    parameters = form_parameters(form)
    for part in filter(None, rest.split(",")):
        name, separator, number = part.partition("=")
        name = name.strip()
        try:
            value = float(number)
        except ValueError as error:
            expected = "is not a number" if separator else "has no value"
            raise ValueError(f"{part} {expected}; write {form}:name=number") from error
        if name not in parameters:
            near = nearest(name, list(parameters)) or "It has no parameters."
            raise ValueError(f"{form} has no parameter '{name}'. {near}")
        if not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number")
        parameters[name] = value
    found = GuidanceForm(form, tuple(parameters.items()))
    found.build(scale=2.0)  # the form's own checks of its parameters
    return found


def parse_guidance(text: str) -> GuidanceForm:
    """A form from its text; `InputError` that lists the forms and their parameters."""
    try:
        return parse_form(text)
    except ValueError as error:
        sentence = str(error)
        forms = "; ".join(str(parse_form(form)) for form in FREE_FORMS)
        raise InputError(
            f"Guidance '{text}': {sentence}" + ("" if sentence.endswith(("?", ".")) else "."),
            hint=f"Forms and their parameters: {forms}.",
        ) from error


def scale_embedding(scales: "Tensor", width: int) -> "Tensor":
    """(B, `width`) float32 of guidance scales (B,): sines and cosines, as diffusers' latent
    consistency models take it (Luo et al. 2023), of w - 1."""
    import torch

    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=scales.device) / max(half - 1, 1)
    angles = 1000 * (scales.float() - 1)[:, None] * torch.exp(-math.log(10_000) * steps)
    return torch.nn.functional.pad(torch.cat([angles.sin(), angles.cos()], 1), (0, width % 2))


def _per_image_std(x0: "Tensor") -> "Tensor":
    """(B, 1, 1, 1) float64 standard deviation over channels and pixels."""
    return x0.double().std((1, 2, 3), keepdim=True)


def _per_image_norm(x0: "Tensor") -> "Tensor":
    """(B, 1, 1, 1) L2 norm over channels and pixels."""
    return x0.square().sum((1, 2, 3), keepdim=True).sqrt()
