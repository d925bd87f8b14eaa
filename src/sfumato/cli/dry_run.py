"""`sfumato train --dry-run`: what a run would take."""

from typing import TYPE_CHECKING

from sfumato.base.errors import InputError
from sfumato.cli.show import log, log_wrapped
from sfumato.config.schema import DiffusionExperiment, Experiment
from sfumato.config.sections import TrainingConfig

if TYPE_CHECKING:
    from sfumato.bench.run_estimate import RunEstimate


def dry_run(experiment: Experiment, device: str, price: float) -> None:
    """Measure a step on noise and print what the whole run would take; nothing is written.

    `price`: dollars of an hour of the device.
    """
    if not isinstance(experiment, DiffusionExperiment):
        raise InputError(
            f"--dry-run is for models that sample images; {experiment.name} is another.",
            hint="Leave --dry-run out: such a training takes minutes.",
        )
    from sfumato.bench.run_estimate import estimate_run
    from sfumato.generation.loading import resolve_device
    from sfumato.methods.diffusion import network_line

    log(f"{experiment.name}: {experiment.about}")
    log(network_line(experiment))
    log("Measuring a step on noise ...")
    found = estimate_run(experiment, device=resolve_device(device))
    print_estimate(found, experiment, price)


def print_estimate(found: "RunEstimate", experiment: DiffusionExperiment, price: float) -> None:
    trial, training, seconds = found.trial, experiment.training, found.step_seconds
    if found.parts > 1:
        log_wrapped(
            f"{training.batch_size:,} images in {training.micro_batches} micro-batches need about "
            f"{found.counted_bytes / 1e9:,.1f} GB, counted on paper; {found.free_bytes / 1e9:,.1f} "
            f"GB are here. Measured with {trial.batch_size:,} images at once: --set "
            f"training.micro_batches={found.parts}."
        )
    log(f"Step    {training.batch_size:,} images in {seconds:,.3g} s on {found.device}: "
        f"{_how(training, found)}")  # fmt: skip
    log(f"Memory  {trial.peak_bytes / 1e9:,.2f} GB at the peak")
    log(f"Speed   {found.images_per_second:,.3g} images/s")
    epochs = ""
    if training.epochs is not None and found.data_set_size is not None:
        epochs = f": {training.epochs:g} epochs of {found.data_set_size:,}"
    log(f"Length  {found.total_images:,} images{epochs}")
    log(f"Time    {_duration(found.hours)}, without samples and checkpoints")
    log(f"Cost    {price * found.hours:,.2f} $ at {price:g} $ an hour (--price)")


def _duration(hours: float) -> str:
    if hours < 2:
        return f"{60 * hours:,.3g} minutes"
    return f"{hours:,.3g} hours" + (f" ({hours / 24:,.1f} days)" if hours > 48 else "")


def _how(training: TrainingConfig, found: "RunEstimate") -> str:
    """The settings that change speed and memory, as the step was measured."""
    checkpointed = str(training.gradient_checkpointing).lower()
    parts = found.parts if found.parts > 1 else training.micro_batches
    layout = "channels last" if found.device.startswith("cuda") else "channels first"
    return (
        f"precision={training.precision}, micro_batches={parts}, "
        f"gradient_checkpointing={checkpointed}, compile={training.compile}, {layout}"
    )
