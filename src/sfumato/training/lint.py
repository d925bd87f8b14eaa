"""A lint of configurations: what is allowed and yet will not do what it seems to.

Each rule is a function that returns a sentence with its reason, or None; a new one is a function
and a line in `TRAINING_RULES` or `SAMPLING_RULES`.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sfumato.base.errors import ConfigError, InputError
from sfumato.diffusion.guidance import GuidanceConfig
from sfumato.diffusion.schedule import DiffusionConfig, NoiseSchedule
from sfumato.diffusion.solvers.schedulers import build_scheduler, build_solver, diffusion_of

if TYPE_CHECKING:
    from sfumato.config.schema import DiffusionExperiment

NEAR_ZERO_SNR = 1e-6
"""Below it x0 from eps multiplies the network's error by more than 1,000."""
VISIBLE_SIGNAL = 0.05
"""Share sqrt(alpha_bar) of the image at the first step from which its absence is noticed."""


class LintWarning(UserWarning):
    """A configuration that will not do what it seems to."""


@dataclass(frozen=True, kw_only=True)
class SamplingPlan:
    """What the sampling rules look at; `caption_dropout` is None where it is not known."""

    diffusion: DiffusionConfig
    scheduler: Any
    steps: int
    guidance_scales: Sequence[float]
    guidance: GuidanceConfig
    caption_dropout: float | None

    @classmethod
    def of_experiment(cls, experiment: "DiffusionExperiment") -> "SamplingPlan":
        sampling = experiment.sampling
        return cls(
            diffusion=experiment.diffusion,
            scheduler=build_scheduler(
                sampling.scheduler,
                experiment.diffusion,
                timestep_spacing=sampling.timestep_spacing,
            ),
            steps=sampling.steps,
            guidance_scales=(sampling.guidance_scale, *experiment.evaluation.guidance_scales),
            guidance=sampling.guidance,
            caption_dropout=experiment.training.caption_dropout,
        )

    @classmethod
    def of_model(
        cls, model: Any, scales: Sequence[float], guidance: GuidanceConfig
    ) -> "SamplingPlan":
        pipeline = model.pipeline
        return cls(
            diffusion=diffusion_of(pipeline.scheduler),
            scheduler=pipeline.scheduler,
            steps=pipeline.config["num_inference_steps"],
            guidance_scales=scales,
            guidance=guidance,
            caption_dropout=model.provenance.get("caption_dropout"),
        )


# Rules on what draws ------------------------------------------------------------------------------


def guidance_without_dropout(plan: SamplingPlan) -> str | None:
    led_away = [scale for scale in plan.guidance_scales if scale != 1]
    if plan.caption_dropout != 0 or not led_away or plan.guidance.needs_weak_network:
        return None
    return (
        f"guidance scale {max(led_away, key=lambda scale: abs(scale - 1)):g} needs the prediction "
        "for the null prompt, which a model trained with training.caption_dropout=0 never saw; "
        "train with 0.1, or draw with w = 1 or autoguidance."
    )


def eps_at_near_zero_terminal_snr(plan: SamplingPlan) -> str | None:
    terminal = _terminal_snr(plan.diffusion)
    if plan.diffusion.prediction_type != "epsilon" or terminal >= NEAR_ZERO_SNR:
        return None
    error = f"multiplies its error by {terminal**-0.5:,.0f}" if terminal else "divides by zero"
    return (
        f"the schedule ends at a signal-to-noise ratio of {terminal:.2g}, where x0 from a "
        f"predicted eps {error}; set diffusion.prediction_type=v_prediction, or use the linear "
        "schedule without zero terminal SNR."
    )


def scheduler_that_clips(plan: SamplingPlan) -> str | None:
    config = plan.scheduler.config
    clipping = [flag for flag in ("clip_sample", "thresholding") if config.get(flag)]
    if not clipping:
        return None
    return (
        f"{type(plan.scheduler).__name__} is configured with {clipping[0]}=true: it clips x0 by "
        "itself and may keep the eps of the unclipped one, which collapses under guidance. sfumato "
        "turns it off, plain diffusers would not; set it to false."
    )


def spacing_off_the_trained_range(plan: SamplingPlan) -> str | None:
    if plan.steps < 1:
        return None  # an error where it is drawn
    try:
        solver = build_solver(plan.scheduler, steps=plan.steps, generators=[])
    except InputError:
        return None  # likewise
    first = int(solver.timesteps[0])
    schedule = NoiseSchedule.from_config(plan.diffusion)
    signal = float(schedule.alpha_bar[first].sqrt())
    last = plan.diffusion.num_train_timesteps - 1
    if first == last or signal < VISIBLE_SIGNAL:
        return None
    return (
        f"the first of {plan.steps} steps is at t = {first} of {last}, where the network was "
        f"trained on images that keep {100 * signal:.0f} % of their signal, but gets pure noise; "
        "set sampling.timestep_spacing=trailing."
    )


# Rules on training --------------------------------------------------------------------------------


def averaging_longer_than_the_run(experiment: "DiffusionExperiment") -> str | None:
    from sfumato.data.loaders import open_training

    training = experiment.training
    averaging = training.averaging
    if averaging.halflife_images == 0:
        return None  # without a look at the data, which may not be at hand yet
    total = training.images or training.total_images(len(open_training(experiment.data)))
    if averaging.halflife_images <= total:
        return None
    ramp = averaging.rampup_ratio * total
    effect = (
        f"the ramp-up alone decides ({ramp:,.0f} images at the end)"
        if ramp <= total
        else "the average still holds much of the untrained network at the end"
    )
    return (
        f"training.averaging.halflife_images is {averaging.halflife_images:,.0f}, longer than the "
        f"run of {total:,} images: {effect}; a twentieth of the run is usual."
    )


def rescaling_that_does_nothing(experiment: "DiffusionExperiment") -> str | None:
    diffusion = experiment.diffusion
    before = _terminal_snr(diffusion.model_copy(update={"rescale_zero_terminal_snr": False}))
    if not diffusion.rescale_zero_terminal_snr or before >= NEAR_ZERO_SNR:
        return None
    return (
        f"diffusion.rescale_zero_terminal_snr does nothing to {diffusion.beta_schedule}, which "
        f"ends at a signal-to-noise ratio of {before:.2g} already; leave it out."
    )


def norms_that_hide_the_time(experiment: "DiffusionExperiment") -> str | None:
    model = experiment.model
    blind = [width for width in model.block_out_channels if width == model.norm_num_groups]
    if not blind:
        return None
    return (
        f"model.norm_num_groups={model.norm_num_groups} on {blind[0]} channels is an instance "
        "norm: it subtracts the shift by which a ResNet block is told the time, and such blocks "
        f"learn nothing of the noise level; model.norm_num_groups={max(1, blind[0] // 4)} has as "
        "many parameters."
    )


def weak_checkpoint_not_kept(experiment: "DiffusionExperiment") -> str | None:
    training, guidance = experiment.training, experiment.sampling.guidance
    if not guidance.needs_weak_network or training.keep_checkpoints > 1:
        return None
    return (
        "autoguidance needs an earlier checkpoint, but training.keep_checkpoints=1 keeps the last "
        "one only; keep two or more."
    )


SAMPLING_RULES: list[Callable[[SamplingPlan], str | None]] = [
    guidance_without_dropout,
    eps_at_near_zero_terminal_snr,
    scheduler_that_clips,
    spacing_off_the_trained_range,
]
TRAINING_RULES: list[Callable[["DiffusionExperiment"], str | None]] = [
    averaging_longer_than_the_run,
    rescaling_that_does_nothing,
    norms_that_hide_the_time,
    weak_checkpoint_not_kept,
]


def lint_sampling(plan: SamplingPlan) -> list[str]:
    """What the sampling rules find: a sentence each."""
    return [found for rule in SAMPLING_RULES if (found := rule(plan)) is not None]


def lint_experiment(experiment: "DiffusionExperiment") -> list[str]:
    """What all rules find in an experiment: a sentence each."""
    found = [sentence for rule in TRAINING_RULES if (sentence := rule(experiment)) is not None]
    return found + lint_sampling(SamplingPlan.of_experiment(experiment))


def warn(findings: Sequence[str], *, strict: bool = False) -> None:
    """A `LintWarning` for each finding, or one `ConfigError` with all of them."""
    if strict and findings:
        raise ConfigError(
            "The configuration has warnings:\n  " + "\n  ".join(findings),
            hint="Change these settings, or train without --strict.",
        )
    for sentence in findings:
        warnings.warn(sentence, LintWarning, stacklevel=2)


def _terminal_snr(diffusion: DiffusionConfig) -> float:
    schedule = NoiseSchedule.from_config(diffusion)
    return float(schedule.snr(torch.tensor(schedule.num_train_timesteps - 1)))
