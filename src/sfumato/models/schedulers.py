"""Samplers: diffusers schedulers by name, configured to take x0 and to leave clipping to us."""

import inspect
from dataclasses import dataclass, field
from typing import Any, Literal

from sfumato.base.errors import ConfigError, InputError, nearest
from sfumato.base.section import Section
from sfumato.diffusion.guidance import GuidanceConfig
from sfumato.diffusion.schedule import DiffusionConfig

ZERO_SNR_FLAG = "rescale_betas_zero_snr"
"""What diffusers calls `diffusion.rescale_zero_terminal_snr`; not every scheduler has it."""

TimestepSpacing = Literal["trailing", "leading", "linspace"]


class SamplingConfig(Section):
    """How a trained model draws, unless a command says otherwise."""

    scheduler: str = "DPMSolver++"
    """Sampler: DDPM, DDIM or DPMSolver++."""
    steps: int = 20
    """Denoising steps. A guided step costs two network calls an image."""
    guidance_scale: float = 3.0
    """w of Eq. 1: 0 is unconditional, 1 conditional without guidance."""
    guidance: GuidanceConfig = GuidanceConfig()
    """Form of guidance, short (`apg:eta=0`) or as a section."""
    timestep_spacing: TimestepSpacing = "trailing"
    """Which timesteps are visited: `trailing` starts at the noisiest (T - 1)."""


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """One diffusers scheduler class: its settings, and whether `step` draws noise."""

    scheduler_class: str
    settings: dict[str, Any] = field(default_factory=dict)
    draws_noise: bool = False


SAMPLERS: dict[str, Sampler] = {
    "DDPM": Sampler(
        scheduler_class="DDPMScheduler", settings={"clip_sample": False}, draws_noise=True
    ),
    "DDIM": Sampler(scheduler_class="DDIMScheduler", settings={"clip_sample": False}),
    "DPMSolver++": Sampler(
        scheduler_class="DPMSolverMultistepScheduler",
        settings={"algorithm_type": "dpmsolver++", "solver_order": 2, "final_sigmas_type": "zero"},
    ),
}


def sampler_name(name: str) -> str:
    """The registered spelling of `name` (any case); `InputError` with the nearest match."""
    for known in SAMPLERS:
        if known.lower() == name.lower():
            return known
    raise InputError(f"No sampler named '{name}'.", mend=nearest(name, list(SAMPLERS)))


def build_scheduler(
    name: str, diffusion: DiffusionConfig, *, timestep_spacing: TimestepSpacing = "trailing"
) -> Any:
    """A diffusers scheduler of the model's own prediction type, as an export carries it."""
    import diffusers

    sampler = SAMPLERS[sampler_name(name)]
    scheduler_class = getattr(diffusers, sampler.scheduler_class)
    settings = dict(sampler.settings)
    if diffusion.rescale_zero_terminal_snr:
        if ZERO_SNR_FLAG not in inspect.signature(scheduler_class.__init__).parameters:
            raise ConfigError(
                f"The sampler {name} cannot start at zero terminal SNR: "
                f"{sampler.scheduler_class} has no {ZERO_SNR_FLAG}.",
                mend="Use another sampler, or train with "
                "diffusion.rescale_zero_terminal_snr=false.",
            )
        settings[ZERO_SNR_FLAG] = True
    return scheduler_class(
        num_train_timesteps=diffusion.num_train_timesteps,
        beta_schedule=diffusion.beta_schedule,
        beta_start=diffusion.beta_start,
        beta_end=diffusion.beta_end,
        prediction_type=diffusion.prediction_type,
        timestep_spacing=timestep_spacing,
        **settings,
    )


def taking_x0(scheduler: Any) -> Any:
    """A copy of a diffusers scheduler that takes x0 as the network's output and never clips it."""
    overrides: dict[str, Any] = {"prediction_type": "sample"}
    for flag in ("clip_sample", "thresholding"):
        if flag in scheduler.config:
            overrides[flag] = False
    return type(scheduler).from_config(scheduler.config, **overrides)


def sampler_of(scheduler: Any) -> tuple[str, Sampler]:
    """The registered sampler of a diffusers scheduler object; `InputError` if there is none."""
    for name, sampler in SAMPLERS.items():
        if sampler.scheduler_class == type(scheduler).__name__:
            return name, sampler
    known = ", ".join(sampler.scheduler_class for sampler in SAMPLERS.values())
    raise InputError(
        f"{type(scheduler).__name__} is not a scheduler that sfumato has checked.",
        mend=f"Use one of {known}.",
    )


def diffusion_of(scheduler: Any) -> DiffusionConfig:
    """The forward process that a diffusers scheduler was configured for."""
    config = scheduler.config
    return DiffusionConfig(
        beta_schedule=config["beta_schedule"],
        num_train_timesteps=config["num_train_timesteps"],
        beta_start=config["beta_start"],
        beta_end=config["beta_end"],
        prediction_type=config["prediction_type"],
        rescale_zero_terminal_snr=config.get(ZERO_SNR_FLAG, False),
    )
