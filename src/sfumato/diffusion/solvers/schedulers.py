"""The schedulers of diffusers as solvers, run over noise levels of our choice and fed with x0."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sfumato.base.errors import ConfigError, InputError
from sfumato.diffusion.process import Process, VariancePreserving
from sfumato.diffusion.solvers.registry import (
    SAMPLERS,
    Sampler,
    Sampling,
    TimestepSpacing,
    sampler_of,
)

ZERO_SNR_FLAG = "rescale_betas_zero_snr"
"""What diffusers calls `diffusion.rescale_zero_terminal_snr`; not every scheduler has it."""

UNSUPPORTED = (
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_lu_lambdas",
    "use_flow_sigmas",
)
"""Settings of diffusers schedulers that place noise levels; `timestep_spacing` does so here."""

SPACINGS: dict[str, Callable[[int, int], Tensor]] = {
    "trailing": lambda levels, steps: torch.arange(steps, 0, -1).double() * levels / steps - 1,
    "leading": lambda levels, steps: torch.arange(steps - 1, -1, -1) * (levels // steps),
    "linspace": lambda levels, steps: torch.linspace(levels - 1, 0, steps, dtype=torch.float64),
}
"""(number of levels, number of steps) to falling timesteps, not yet rounded."""


def spaced_timesteps(levels: int, steps: int, *, spacing: TimestepSpacing) -> Tensor:
    """`steps` different timesteps out of 0 .. levels - 1, noisiest first: (steps,) int64.

    `trailing` starts at the noisiest level and stops one stride short of the clean image,
    `leading` ends at t = 0 and starts up to a stride below the noisiest level, `linspace` has both
    ends (Lin et al. 2024, Table 2).
    """
    assert 1 <= steps <= levels
    return SPACINGS[spacing](levels, steps).round().long()


def build_scheduler(
    name: str, process: VariancePreserving, *, timestep_spacing: TimestepSpacing = "trailing"
) -> Any:
    """A diffusers scheduler of the model's process and prediction type, as exports carry it."""
    import diffusers

    sampler = sampler_of(name, process)
    scheduler_class = getattr(diffusers, sampler.scheduler_class)
    settings = dict(sampler.settings)
    if process.rescale_zero_terminal_snr:
        if ZERO_SNR_FLAG not in inspect.signature(scheduler_class.__init__).parameters:
            raise ConfigError(
                f"The sampler {name} cannot start at zero terminal SNR: "
                f"{sampler.scheduler_class} has no {ZERO_SNR_FLAG}.",
                hint="Use another sampler, or train with "
                "diffusion.rescale_zero_terminal_snr=false.",
            )
        settings[ZERO_SNR_FLAG] = True
    return scheduler_class(
        num_train_timesteps=process.num_train_timesteps,
        beta_schedule=process.beta_schedule,
        beta_start=process.beta_start,
        beta_end=process.beta_end,
        prediction_type=process.prediction_type,
        timestep_spacing=timestep_spacing,
        **settings,
    )


def scheduler_name(scheduler: Any) -> str:
    """The sampler's name of a diffusers scheduler object; `InputError` for an unsupported class."""
    samplers = SAMPLERS["variance_preserving"]
    for name, sampler in samplers.items():
        if sampler.scheduler_class == type(scheduler).__name__:
            return name
    known = ", ".join(sampler.scheduler_class for sampler in samplers.values())
    raise InputError(
        f"{type(scheduler).__name__} is not a scheduler that sfumato supports.",
        hint=f"Use one of {known}.",
    )


def process_of_scheduler(scheduler: Any) -> VariancePreserving:
    """The process that a diffusers scheduler is configured for; `InputError` if unknown."""
    config = scheduler.config
    names = ("beta_schedule", "num_train_timesteps", "beta_start", "beta_end", "prediction_type")
    try:
        return VariancePreserving(
            **{name: config[name] for name in names},
            rescale_zero_terminal_snr=config.get(ZERO_SNR_FLAG, False),
        )
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{type(scheduler).__name__} has a noise schedule that sfumato does not know: {error}."
        ) from error


class SchedulerSolver:
    """A diffusers scheduler as a `Solver` (see `diffusion/sampling.py`) for one batch.

    The scheduler gets a schedule that consists of the levels to visit and visits all of them
    (respacing, Nichol and Dhariwal 2021, Section 4). All samplers then mean the same by a spacing,
    every level is one that the network was trained on, and two neighbouring steps agree on the
    level between them; DDIM's own rule, t - T // steps, does not where steps do not divide T.
    """

    def __init__(
        self,
        scheduler: Any,
        sampler: Sampler,
        alpha_bar: Tensor,
        *,
        timesteps: Tensor,
        generators: Sequence[torch.Generator],
    ) -> None:
        """`alpha_bar`, `timesteps`: (N,), of the levels to visit, noisiest first."""
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
        self.times = timesteps[visits]
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


def build_scheduler_solver(
    process: Process,
    sampling: Sampling,
    generators: Sequence[torch.Generator],
    scheduler: Any = None,
) -> SchedulerSolver:
    """See `registry.build_solver`."""
    assert isinstance(process, VariancePreserving)
    sampler = sampler_of(sampling.sampler, process)
    if scheduler is None:
        scheduler = build_scheduler(sampling.sampler, process)
    for setting in UNSUPPORTED:
        if scheduler.config.get(setting):
            raise InputError(
                f"{type(scheduler).__name__} has {setting}, which sfumato does not support.",
                hint="Leave it out; timestep_spacing says which noise levels are visited.",
            )
    sigma = process.noise_level(torch.arange(process.num_train_timesteps))
    levels = int((sigma <= sampler.max_sigma).sum())
    if sampling.steps > levels:
        raise InputError(
            f"{sampling.sampler} has {levels} noise levels on {process.beta_schedule}.",
            hint=f"Give 1 to {levels} steps.",
        )
    timesteps = spaced_timesteps(levels, sampling.steps, spacing=sampling.timestep_spacing)
    return SchedulerSolver(
        scheduler,
        sampler,
        process.alpha_bar[timesteps],
        timesteps=timesteps,
        generators=generators,
    )
