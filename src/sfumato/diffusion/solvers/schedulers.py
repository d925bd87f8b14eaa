"""Samplers: diffusers schedulers by name, run over noise levels of our choice, fed with x0."""

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sfumato.base.errors import ConfigError, InputError, nearest
from sfumato.diffusion.schedule import BETA_SCHEDULES, DiffusionConfig, NoiseSchedule
from sfumato.diffusion.spacing import TimestepSpacing, spaced_timesteps
from sfumato.diffusion.targets import PREDICTIONS

ZERO_SNR_FLAG = "rescale_betas_zero_snr"
"""What diffusers calls `diffusion.rescale_zero_terminal_snr`; not every scheduler has it."""

PLACED_BY_US = (
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_lu_lambdas",
    "use_flow_sigmas",
)
"""Settings of diffusers schedulers that place noise levels; `timestep_spacing` does so here."""

MAX_SIGMA = 80.0
"""Where samplers in sigma start at most (Karras et al. 2022, Table 1).

The last level of squaredcos_cap_v2 has sigma 20,291 and a usual step ends near 10. Heun's second
evaluation multiplies the change of x0 over a step by half the ratio of the two, so that a trained
model drew noise; from 80 it draws as the other samplers do.
"""


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """One diffusers scheduler class: its settings and its habits."""

    scheduler_class: str
    settings: dict[str, Any] = field(default_factory=dict)
    draws_noise: bool = False
    """Whether `step` draws noise (and takes generators)."""
    in_sigma: bool = False
    """Whether it steps x0 + sigma eps, not sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps."""
    max_sigma: float = math.inf
    """Sampling starts at the noisiest level with no more noise than this."""


SAMPLERS: dict[str, Sampler] = {
    "DDPM": Sampler(
        scheduler_class="DDPMScheduler", settings={"clip_sample": False}, draws_noise=True
    ),
    "DDIM": Sampler(scheduler_class="DDIMScheduler", settings={"clip_sample": False}),
    "DPMSolver++": Sampler(
        scheduler_class="DPMSolverMultistepScheduler",
        settings={"algorithm_type": "dpmsolver++", "solver_order": 2, "final_sigmas_type": "zero"},
    ),
    "UniPC": Sampler(
        scheduler_class="UniPCMultistepScheduler",
        settings={"solver_order": 2, "final_sigmas_type": "zero"},
    ),
    "Euler": Sampler(scheduler_class="EulerDiscreteScheduler", in_sigma=True, max_sigma=MAX_SIGMA),
    "EulerAncestral": Sampler(
        scheduler_class="EulerAncestralDiscreteScheduler",
        draws_noise=True,
        in_sigma=True,
        max_sigma=MAX_SIGMA,
    ),
    "Heun": Sampler(
        scheduler_class="HeunDiscreteScheduler",
        settings={"clip_sample": False},
        in_sigma=True,
        max_sigma=MAX_SIGMA,
    ),
}


def sampler_name(name: str) -> str:
    """The registered name of a sampler, from that or its diffusers class, in any case.

    `InputError` with the nearest match if there is none.
    """
    for known, sampler in SAMPLERS.items():
        if name.lower() in (known.lower(), sampler.scheduler_class.lower()):
            return known
    raise InputError(f"No sampler named '{name}'.", hint=nearest(name, list(SAMPLERS)))


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
                hint="Use another sampler, or train with "
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


class SchedulerSolver:
    """A diffusers scheduler as a `Solver` (see `diffusion/sampling.py`) for one batch.

    The scheduler gets a schedule that consists of the levels to visit and visits all of them
    (respacing, Nichol and Dhariwal 2021, Section 4). So all samplers mean the same by a spacing,
    every level is one that the network was trained on, and two neighbouring steps agree on the
    level between them; DDIM's own rule, t - T // steps, does not where steps do not divide T.
    """

    def __init__(
        self,
        scheduler: Any,
        alpha_bar: Tensor,
        *,
        timesteps: Tensor,
        generators: Sequence[torch.Generator],
    ) -> None:
        """`alpha_bar`, `timesteps`: (N,), of the levels to visit, noisiest first."""
        _, sampler = sampler_of(scheduler)
        steps = len(timesteps)
        wanted = {
            "num_train_timesteps": steps,
            "timestep_spacing": "trailing",
            # At one x_t, x0 and eps say the same. In sigma not every scheduler takes x0.
            "prediction_type": "epsilon" if sampler.in_sigma else "sample",
            "clip_sample": False,
            "thresholding": False,
            "set_alpha_to_one": True,
            ZERO_SNR_FLAG: False,  # `alpha_bar` has it already
        }
        self.scheduler = type(scheduler).from_config(
            scheduler.config, **{k: v for k, v in wanted.items() if k in scheduler.config}
        )
        # At zero terminal SNR sigma is infinite: the floor that diffusers takes, too.
        alpha_bar = alpha_bar.clamp_min(2**-24)
        # Not by way of `trained_betas`: in float32 these lose the noisiest levels.
        self.scheduler.alphas_cumprod = alpha_bar.flip(0)
        self.scheduler.set_timesteps(steps)
        self.sampler = sampler
        self.generators = list(generators)
        visits = steps - 1 - self.scheduler.timesteps.long()
        self.timesteps = timesteps[visits]
        # sqrt(1 + sigma^2) of each evaluation, and of the image at the end.
        self.scales = torch.cat([alpha_bar[visits], alpha_bar.new_ones(1)]).rsqrt()

    def step(self, x0: Tensor, x_t: Tensor, *, index: int) -> Tensor:
        t = self.scheduler.timesteps[index]
        kwargs: dict[str, Any] = {"return_dict": False}
        if self.sampler.draws_noise:
            assert len(self.generators) == len(x_t), "one generator an image"
            kwargs["generator"] = self.generators
        if not self.sampler.in_sigma:
            return self.scheduler.step(x0, t, x_t, **kwargs)[0]
        scale = self.scales[index]
        sample = x_t * scale
        self.scheduler.scale_model_input(sample, t)  # diffusers warns without this call
        eps = (sample - x0) / (scale.square() - 1).sqrt()
        return self.scheduler.step(eps, t, sample, **kwargs)[0] / self.scales[index + 1]


def build_solver(
    scheduler: Any, *, steps: int, generators: Sequence[torch.Generator]
) -> SchedulerSolver:
    """The solver that a diffusers scheduler stands for, over `steps` noise levels.

    `generators`: one an image, for the samplers that draw noise. The scheduler itself is left as
    it is. `InputError` for a scheduler, or a setting of it, that is not known here.
    """
    name, sampler = sampler_of(scheduler)
    for setting in PLACED_BY_US:
        if scheduler.config.get(setting):
            raise InputError(
                f"{type(scheduler).__name__} has {setting}, which sfumato does not follow.",
                hint="Leave it out; timestep_spacing says which noise levels are visited.",
            )
    diffusion = diffusion_of(scheduler)
    schedule = NoiseSchedule.from_config(diffusion)
    levels = int((schedule.sigma <= sampler.max_sigma).sum())
    if steps > levels:
        raise InputError(
            f"{name} has {levels} noise levels on {diffusion.beta_schedule}.",
            hint=f"Give 1 to {levels} steps.",
        )
    timesteps = spaced_timesteps(levels, steps, spacing=scheduler.config["timestep_spacing"])
    return SchedulerSolver(
        scheduler, schedule.alpha_bar[timesteps], timesteps=timesteps, generators=generators
    )


def sampler_of(scheduler: Any) -> tuple[str, Sampler]:
    """The registered sampler of a diffusers scheduler object; `InputError` if there is none."""
    for name, sampler in SAMPLERS.items():
        if sampler.scheduler_class == type(scheduler).__name__:
            return name, sampler
    known = ", ".join(sampler.scheduler_class for sampler in SAMPLERS.values())
    raise InputError(
        f"{type(scheduler).__name__} is not a scheduler that sfumato has checked.",
        hint=f"Use one of {known}.",
    )


def diffusion_of(scheduler: Any) -> DiffusionConfig:
    """The forward process that a diffusers scheduler was configured for.

    `InputError` for a schedule or a prediction that is not known here.
    """
    config = scheduler.config
    for setting, known in (("beta_schedule", BETA_SCHEDULES), ("prediction_type", PREDICTIONS)):
        if config[setting] not in known:
            raise InputError(
                f"{type(scheduler).__name__} has the {setting} '{config[setting]}', which sfumato "
                "does not know.",
                hint=f"Use the model's own: {type(scheduler).__name__}.from_config("
                "pipe.scheduler.config).",
            )
    return DiffusionConfig(
        beta_schedule=config["beta_schedule"],
        num_train_timesteps=config["num_train_timesteps"],
        beta_start=config["beta_start"],
        beta_end=config["beta_end"],
        prediction_type=config["prediction_type"],
        rescale_zero_terminal_snr=config.get(ZERO_SNR_FLAG, False),
    )
