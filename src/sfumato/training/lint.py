"""A lint of configurations: what is allowed and yet will not do what it seems to.

Each rule is a function that returns a sentence with its reason, or None; a new one is a function
and a line in `TRAINING_RULES` or `SAMPLING_RULES`.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sfumato.base.errors import ConfigError, LintWarning, SfumatoError
from sfumato.base.words import counted
from sfumato.diffusion.process import Preconditioned, Process, VariancePreserving
from sfumato.diffusion.solvers.build import build_solver
from sfumato.diffusion.solvers.registry import Sampling

if TYPE_CHECKING:
    from sfumato.config.schema import DiffusionExperiment
    from sfumato.config.sections import DataConfig

NEAR_ZERO_SNR = 1e-6
"""Below it x0 from eps multiplies the network's error by more than 1,000."""
VISIBLE_SIGNAL = 0.05
"""Share sqrt(alpha_bar) of the image at the first step from which its absence is noticed."""


@dataclass(frozen=True, kw_only=True)
class SamplingPlan:
    """What the sampling rules look at; `caption_dropout` is None where it is not known."""

    process: Process
    sampling: Sampling
    guidance_scales: Sequence[float]
    caption_dropout: float | None
    scheduler: Any = None
    """A diffusers scheduler to sample with instead of ours."""

    @classmethod
    def of_experiment(cls, experiment: "DiffusionExperiment") -> "SamplingPlan":
        sampling = experiment.sampling
        return cls(
            process=experiment.diffusion,
            sampling=sampling,
            guidance_scales=(sampling.guidance_scale, *experiment.evaluation.guidance_scales),
            caption_dropout=experiment.training.caption_dropout,
        )

    @classmethod
    def of_model(cls, model: Any, scales: Sequence[float]) -> "SamplingPlan":
        return cls(
            process=model.process,
            sampling=model.sampling,
            guidance_scales=scales,
            caption_dropout=model.provenance.get("caption_dropout"),
            scheduler=model.scheduler,
        )


# Rules on sampling --------------------------------------------------------------------------------


def guidance_without_dropout(plan: SamplingPlan) -> str | None:
    led_away = [scale for scale in plan.guidance_scales if scale != 1]
    form = plan.sampling.form
    if plan.caption_dropout != 0 or not led_away or form.needs_weak_network or form.folded:
        return None
    return (
        f"guidance scale {max(led_away, key=lambda scale: abs(scale - 1)):g} needs the prediction "
        "for the null prompt, which a model trained with training.caption_dropout=0 never saw; "
        "train with 0.1, or sample with w = 1 or autoguidance."
    )


def eps_at_near_zero_terminal_snr(plan: SamplingPlan) -> str | None:
    if plan.process.prediction_type != "epsilon":
        return None
    terminal = _terminal_snr(plan.process)
    if terminal >= NEAR_ZERO_SNR:
        return None
    error = f"multiplies its error by {terminal**-0.5:,.0f}" if terminal else "divides by zero"
    return (
        f"the schedule ends at a signal-to-noise ratio of {terminal:.2g}, where x0 from a "
        f"predicted eps {error}; set diffusion.prediction_type=v_prediction, or use the linear "
        "schedule without zero terminal SNR."
    )


def scheduler_that_clips(plan: SamplingPlan) -> str | None:
    if plan.scheduler is None:
        return None
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
    try:
        solver = build_solver(plan.process, plan.sampling, scheduler=plan.scheduler)
    except SfumatoError:
        return None  # an error where it samples
    first, last = solver.times[0], getattr(plan.process, "num_train_timesteps", 2) - 1
    signal = float(plan.process.scales(first)[0])
    if first == last or signal < VISIBLE_SIGNAL:
        return None
    return (
        f"the first of {plan.sampling.steps} steps is at t = {int(first)} of {last}, where the "
        f"network was trained on images that keep {100 * signal:.0f} % of their signal, but gets "
        "pure noise; set sampling.timestep_spacing=trailing."
    )


# Rules on training --------------------------------------------------------------------------------


def averaging_longer_than_the_run(experiment: "DiffusionExperiment") -> str | None:
    training = experiment.training
    averaging = training.averaging
    if averaging.halflife_images == 0:
        return None  # without opening the data
    if experiment.distillation is not None and training.images is None:
        return None  # its epochs are passes over trajectories, which may not be there yet
    total = training.images or training.total_images(_training_rows(experiment.data))
    if averaging.halflife_images <= total:
        return None
    ramp = averaging.rampup_ratio * total
    effect = (
        f"the ramp-up alone decides ({counted(round(ramp), 'image')} at the end)"
        if ramp <= total
        else "the average still holds much of the untrained network at the end"
    )
    return (
        f"training.averaging.halflife_images is {averaging.halflife_images:,.0f}, longer than the "
        f"run of {counted(total, 'image')}: {effect}; a twentieth of the run is usual: "
        f"--set training.averaging.halflife_images={max(1, total // 20)}"
    )


def rescaling_that_does_nothing(experiment: "DiffusionExperiment") -> str | None:
    diffusion = experiment.diffusion
    if not isinstance(diffusion, VariancePreserving) or not diffusion.rescale_zero_terminal_snr:
        return None
    before = _terminal_snr(replace(diffusion, rescale_zero_terminal_snr=False))
    if before >= NEAR_ZERO_SNR:
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
        "norm: it subtracts the shift that carries the time into a ResNet block, and such blocks "
        f"learn nothing of the noise level; model.norm_num_groups={max(1, blind[0] // 4)} has as "
        "many parameters."
    )


def edm_of_pixels_on_latents(experiment: "DiffusionExperiment") -> str | None:
    diffusion = experiment.diffusion
    if experiment.codec.kind == "pixel" or not isinstance(diffusion, Preconditioned):
        return None
    if diffusion.sigma_data == 1 or experiment.origin is not None:  # whose process stays
        return None
    return (
        f"diffusion.sigma_data={diffusion.sigma_data:g} is not the deviation of what the network "
        "sees: latents have deviation 1; set diffusion.sigma_data=1."
    )


def weak_checkpoint_not_kept(experiment: "DiffusionExperiment") -> str | None:
    needs_weak_network = experiment.sampling.form.needs_weak_network
    if not needs_weak_network or experiment.training.keep_checkpoints > 1:
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
    edm_of_pixels_on_latents,
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


def _terminal_snr(process: Process) -> float:
    """Signal-to-noise ratio of the noisiest level."""
    if not isinstance(process, VariancePreserving):
        return 0.0
    import torch

    return float(process.snr(torch.tensor(process.num_train_timesteps - 1)))


def _training_rows(data: "DataConfig") -> int:
    """Images of the training split, damaged ones included: nothing is decoded."""
    from sfumato.data.opening import open_images
    from sfumato.data.records import rows_of

    part, keep = rows_of(open_images(data), data, "train")
    return part.count if keep is None else int(keep.sum())
