"""What a whole run would take, from a step that was measured: `sfumato train --dry-run`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from sfumato.base.errors import InputError, SfumatoError
from sfumato.bench.memory import Trial, device_bytes, try_size
from sfumato.bench.network_cost import NetworkCost, network_cost
from sfumato.config.schema import DiffusionExperiment
from sfumato.config.sections import DataConfig
from sfumato.data.opening import BUNDLED, open_images

HUB_IMAGES = {"huggan/wikiart": (81_444, True), "uoft-cs/cifar10": (50_000, False),
              "ylecun/mnist": (60_000, False)}  # fmt: skip
"""Images of the training part of data sets that need not be downloaded to be counted, and whether
the test images are held out of it."""
_USED_SHARE = 0.8
"""Most of the free memory that a step may be expected to take before it is tried."""
_CPU_STEPS, _GPU_STEPS = 1, 5


@dataclass(frozen=True, kw_only=True)
class RunEstimate:
    """`trial`: the measured step, of `trial.batch_size` images; `parts`: how many of those make
    one step of the run. `counted_bytes`: memory of the run's own micro-batch on paper."""

    cost: NetworkCost
    trial: Trial
    parts: int
    counted_bytes: float
    free_bytes: int
    total_images: int
    data_set_size: int | None
    device: str

    @property
    def step_seconds(self) -> float:
        return self.parts * median(self.trial.step_seconds)

    @property
    def images_per_second(self) -> float:
        return self.cost.batch_size / self.step_seconds

    @property
    def hours(self) -> float:
        return self.total_images / self.images_per_second / 3600


def estimate_run(
    experiment: DiffusionExperiment,
    *,
    device: torch.device,
    try_out: Callable[..., Trial] | None = None,
) -> RunEstimate:
    """Measure a step of `experiment` on noise, in a process of its own (`try_out`: `try_size`).

    Where its micro-batch does not fit on paper, a smaller one is measured. `InputError` where the
    length in images is not known, `SfumatoError` where the step fails.
    """
    size = training_images(experiment.data)
    total = _total_images(experiment, size)
    cost, training = network_cost(experiment), experiment.training
    half = training.precision == "bfloat16"
    whole = -(-training.batch_size // training.micro_batches)
    free, images = device_bytes(device), whole
    while images > 1 and cost.training_bytes(images, half=half) > _USED_SHARE * free:
        images = -(-images // 2)
    parts, tried = 1, training.batch_size
    if images < whole:
        parts, tried = -(-training.batch_size // images), images
        training = training.model_copy(update={"micro_batches": 1})
        experiment = experiment.model_copy(update={"training": training})
    trial = _tried(experiment, tried, device, try_out or try_size)
    return RunEstimate(
        cost=cost,
        trial=trial,
        parts=parts,
        counted_bytes=cost.training_bytes(whole, half=half),
        free_bytes=free,
        total_images=total,
        data_set_size=size,
        device=str(device),
    )


def _tried(
    experiment: DiffusionExperiment,
    images: int,
    device: torch.device,
    try_out: Callable[..., Trial],
) -> Trial:
    cuda = device.type == "cuda"
    steps = _GPU_STEPS if cuda else _CPU_STEPS
    trial = try_out(experiment, images, device=device, steps=steps, warm_up=2 if cuda else 1)
    if trial.failed:
        raise SfumatoError(
            f"A step of {images:,} images could not be taken: {trial.failed}.",
            hint="training.micro_batches=2 (4, 8, ...) computes it in parts; "
            "training.gradient_checkpointing=true and training.precision=bfloat16 save memory too.",
        )
    return trial


def _total_images(experiment: DiffusionExperiment, size: int | None) -> int:
    if experiment.training.images is None and size is None:
        raise InputError(
            f"The images of '{experiment.data.source}' are not on this machine, so that the length "
            f"of {experiment.training.epochs:g} epochs is not known.",
            hint="Give the length with --images N, or the images with --data FOLDER.",
        )
    return experiment.training.total_images(size or 0)


def training_images(data: DataConfig) -> int | None:
    """How many images would be trained on; None where that is only known after a download."""
    if data.source in HUB_IMAGES and not Path(data.source).is_dir():
        count, splits = HUB_IMAGES[data.source]
        return round((1 - data.test_share) * count) if splits else count
    if data.source not in BUNDLED and not Path(data.source).expanduser().is_dir():
        return None
    raw = open_images(data)
    if "train" in raw.parts:
        return raw.parts["train"].count
    return round((1 - data.test_share) * raw.count)
