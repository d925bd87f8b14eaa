"""The schedulers of diffusers as solvers, run over noise levels of our choice and fed with x0."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sfumato.base.errors import ConfigError, InputError
from sfumato.diffusion.process import Process, RectifiedFlow, VariancePreserving
from sfumato.diffusion.solvers.registry import (
    CLIPS,
    SAMPLERS,
    Sampler,
    Sampling,
    TimestepSpacing,
    sampler_of,
)

ZERO_SNR_FLAG = "rescale_betas_zero_snr"
"""What diffusers calls `diffusion.rescale_zero_terminal_snr`; not every scheduler has it."""

OF_PROCESS = (
    "num_train_timesteps",
    "beta_schedule",
    "beta_start",
    "beta_end",
    "trained_betas",
    "prediction_type",
    ZERO_SNR_FLAG,
)
"""Settings that say which process a scheduler belongs to."""

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
    if missing := getattr(scheduler_class, "_backends", None):  # a placeholder of diffusers
        wanted = [name for name in missing if name != "torch"]
        raise InputError(
            f"The sampler {name} needs {' and '.join(wanted)}.",
            hint=f"pip install {' '.join(wanted)}",
        )
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
    levels = levels_of(sampler, process)
    if levels < process.num_train_timesteps and ZERO_SNR_FLAG not in _defaults(scheduler_class):
        # Elsewhere than here nothing would keep it from starting at sigma 20,291.
        settings["trained_betas"] = _betas(process, levels).tolist()
    return scheduler_class(
        num_train_timesteps=levels if "trained_betas" in settings else process.num_train_timesteps,
        beta_schedule=process.beta_schedule,
        beta_start=process.beta_start,
        beta_end=process.beta_end,
        prediction_type=process.prediction_type,
        timestep_spacing=timestep_spacing,
        **settings,
    )


def levels_of(sampler: Sampler, process: Process) -> int:
    """Of the T noise levels of `process`, those that the sampler takes: 0 to this, exclusive."""
    assert isinstance(process, VariancePreserving)
    sigma = process.noise_level(torch.arange(process.num_train_timesteps))
    return int((sigma <= sampler.max_sigma).sum())


def _betas(process: VariancePreserving, levels: int) -> Tensor:
    """(levels,) float64: 1 - alpha_bar(t) / alpha_bar(t - 1), Ho et al. 2020, Section 2."""
    alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), process.alpha_bar[:levels]])
    return 1 - alpha_bar[1:] / alpha_bar[:-1]


def _defaults(scheduler_class: type) -> dict[str, Any]:
    """The settings of a scheduler class with their defaults."""
    parameters = inspect.signature(scheduler_class.__init__).parameters.values()
    return {one.name: one.default for one in parameters if one.default is not one.empty}


def scheduler_name(scheduler: Any) -> str:
    """The sampler's name of a diffusers scheduler object; `InputError` for an unsupported class."""
    name = type(scheduler).__name__
    found = {
        known: sampler
        for samplers in SAMPLERS.values()
        for known, sampler in samplers.items()
        if sampler.scheduler_class == name
    }
    if not found:
        every = [sampler for samplers in SAMPLERS.values() for sampler in samplers.values()]
        classes = dict.fromkeys(sampler.scheduler_class for sampler in every)
        known = ", ".join(filter(None, classes))
        raise InputError(
            f"{name} is not a scheduler that sfumato supports.", hint=f"Use one of {known}."
        )
    algorithm = scheduler.config.get("algorithm_type")
    return next(
        (k for k, s in found.items() if s.settings.get("algorithm_type") == algorithm),
        next(iter(found)),
    )


def check_settings(scheduler: Any, sampler: Sampler) -> None:
    """`InputError` for a setting of a diffusers scheduler that would be taken and not followed."""
    for setting, default in _defaults(type(scheduler)).items():
        possible = [sampler.settings.get(setting, default), *sampler.also.get(setting, ())]
        if setting == "timestep_spacing":
            possible = list(SPACINGS)
        if setting == "steps_offset" and scheduler.config["timestep_spacing"] != "leading":
            continue  # it moves leading timesteps; StableDiffusionPipeline sets it to 1 for all
        value = scheduler.config.get(setting, default)
        if setting in OF_PROCESS or value in possible:
            continue
        name = type(scheduler).__name__
        if setting == "algorithm_type":  # one sampler each
            of_process = SAMPLERS["variance_preserving"].values()
            possible = [s.settings[setting] for s in of_process if s.scheduler_class == name]
        raise InputError(
            f"{name} has {setting}={value!r}, which sfumato does not follow.",
            hint=f"It follows {' or '.join(map(repr, possible))}: give "
            f"{name}.from_config(pipe.scheduler.config, {setting}={possible[0]!r}).",
        )


def changed_settings(scheduler: Any, sampler: Sampler) -> dict[str, Any]:
    """The settings of a diffusers scheduler that are followed and are not those of `sampler`."""
    defaults = _defaults(type(scheduler)) | sampler.settings
    passed_over = {*CLIPS, "set_alpha_to_one"}
    return {
        setting: scheduler.config[setting]
        for setting in sampler.also
        if setting not in passed_over and scheduler.config[setting] != defaults[setting]
    }


def belongs_to(scheduler: Any, process: Process) -> bool:
    """Whether a diffusers scheduler is configured for the levels of `process` and its prediction.

    A schedule that has only the first levels of `process`, as exports of some samplers, belongs
    to it.
    """
    config = scheduler.config
    if not isinstance(process, VariancePreserving):
        return (
            "beta_schedule" not in config
            and config["num_train_timesteps"] == RectifiedFlow.TIME_SCALE
        )
    names = ("beta_schedule", "beta_start", "beta_end", "prediction_type")
    if any(config.get(name) != getattr(process, name) for name in names):
        return False
    if bool(config.get(ZERO_SNR_FLAG)) != process.rescale_zero_terminal_snr:
        return False
    levels, betas = config["num_train_timesteps"], config.get("trained_betas")
    if betas is None:
        return levels == process.num_train_timesteps
    own = _betas(process, levels)
    betas = torch.as_tensor(betas, dtype=torch.float64)
    return len(betas) == levels == len(own) and torch.allclose(betas, own, rtol=1e-5, atol=0)


def check_belongs(scheduler: Any, process: Process) -> None:
    """`InputError` for a scheduler of another process than the network was trained on."""
    if belongs_to(scheduler, process):
        return
    known = SAMPLERS[process.process].values()
    classes = list(filter(None, (sampler.scheduler_class for sampler in known)))
    own = type(scheduler).__name__
    others = " or ".join(dict.fromkeys(classes)) or "no scheduler: it has its own"
    raise InputError(
        f"The {own} was configured for another noise schedule or prediction type than the network "
        "was trained on.",
        hint=f"Use {own}.from_config(pipe.scheduler.config)."
        if own in classes
        else f"For a {process.process} use {others}.",
    )


LEAST_ALPHA_BAR = 2**-24
"""Noisier levels are stepped from as this one."""


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
            "trained_betas": None,
            "original_inference_steps": steps,
            "timestep_spacing": "trailing",
            # At one x_t, x0 and eps say the same. In sigma not every scheduler takes x0.
            "prediction_type": "epsilon" if sampler.in_sigma or sampler.takes_eps else "sample",
            "clip_sample": False,
            "thresholding": False,
            "set_alpha_to_one": True,
            ZERO_SNR_FLAG: False,  # `alpha_bar` has it already
        }
        self.scheduler = type(scheduler).from_config(
            scheduler.config, **{k: v for k, v in wanted.items() if k in scheduler.config}
        )
        # At zero terminal SNR sigma is infinite: the floor that diffusers takes, too.
        alpha_bar = alpha_bar.clamp_min(LEAST_ALPHA_BAR)
        # Not by way of `trained_betas`: in float32 these lose the noisiest levels.
        self.scheduler.alphas_cumprod = alpha_bar.flip(0)
        self.scheduler.set_timesteps(steps)
        if hasattr(self.scheduler, "get_scalings_for_boundary_condition_discrete"):
            # LCM: the share of x_t in the output, 1 at t = 0, is for the t that was trained with.
            self.scheduler.get_scalings_for_boundary_condition_discrete = lambda t: (0.0, 1.0)
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
        scale = self.scales[index]
        if self.sampler.takes_eps:
            eps = (x_t - x0 / scale) / (1 - scale.square().reciprocal()).sqrt()
            return self.scheduler.step(eps, t, x_t, **kwargs)[0]
        if not self.sampler.in_sigma:
            return self.scheduler.step(x0, t, x_t, **kwargs)[0]
        sample = x_t * scale
        self.scheduler.scale_model_input(sample, t)  # diffusers warns without this call
        eps = (sample - x0) / (scale.square() - 1).sqrt()
        return self.scheduler.step(eps, t, sample, **kwargs)[0] / self.scales[index + 1]


def build_scheduler_solver(
    process: Process,
    sampling: Sampling,
    generators: Sequence[torch.Generator],
    scheduler: Any = None,
    *,
    done: int,
) -> SchedulerSolver:
    """See `build.build_solver`; only the last `done` steps are done."""
    assert isinstance(process, VariancePreserving)
    sampler = sampler_of(sampling.sampler, process)
    if scheduler is None:
        scheduler = build_scheduler(sampling.sampler, process)
    check_settings(scheduler, sampler)
    levels = levels_of(sampler, process)
    if sampling.steps > levels:
        raise InputError(
            f"{sampling.sampler} has {levels} noise levels on {process.beta_schedule}.",
            hint=f"Give 1 to {levels} steps.",
        )
    timesteps = spaced_timesteps(levels, sampling.steps, spacing=sampling.timestep_spacing)[-done:]
    return SchedulerSolver(
        scheduler,
        sampler,
        process.alpha_bar[timesteps],
        timesteps=timesteps,
        generators=generators,
    )
