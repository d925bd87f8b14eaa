"""The codec of a run: made of its settings, fitted to its images, or its origin's."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from sfumato.config.schema import DiffusionExperiment
from sfumato.data.loaders import training_batches
from sfumato.data.records import Records
from sfumato.data.streaming.decoder import StreamedRecords
from sfumato.generation.origin_weights import open_origin
from sfumato.generation.runs import recorded_codec
from sfumato.models.codec import Codec, PixelCodec, codec_from_dict
from sfumato.models.codec_fitting import fit_linear_codec
from sfumato.training.checkpoint import Checkpoints
from sfumato.training.distributed import World

FITTED_IMAGES = 50_000
"""Training images that a codec is fitted to, at most."""
_BATCH = 250


def open_codec(
    experiment: DiffusionExperiment,
    folder: Path,
    records: Records | StreamedRecords,
    *,
    device: torch.device,
    world: World,
) -> Codec:
    """The codec of the run in `folder`: that of its checkpoints, of its origin, or a new one.

    Rank 0 fits it, and all ranks have the same numbers.
    """
    if experiment.codec.kind == "pixel":
        return PixelCodec(experiment.data.value_range)
    codec = _linear(experiment, folder, records) if world.is_main else None
    if world.size > 1:
        shared = {} if codec is None else codec.to_dict()
        return codec_from_dict(world.share({"codec": shared}, device)["codec"])
    assert codec is not None
    return codec


def _linear(
    experiment: DiffusionExperiment, folder: Path, records: Records | StreamedRecords
) -> Codec:
    checkpoint = Checkpoints(folder / "checkpoints").latest()
    if checkpoint is not None:  # fitted anew, it would follow images that have changed since
        return recorded_codec(checkpoint, experiment)
    if experiment.origin is not None:
        return open_origin(experiment.origin.model).codec
    settings = experiment.codec
    return fit_linear_codec(
        training_images(experiment, records), factor=settings.factor, channels=settings.channels
    )


def training_images(
    experiment: DiffusionExperiment, records: Records | StreamedRecords
) -> Iterator[Tensor]:
    """Batches of uint8 (B, C, H, W), each training image once, at most `FITTED_IMAGES`."""
    batches = training_batches(
        records,
        experiment.data,
        seed=experiment.seed,
        batch_size=_BATCH,
        device=torch.device("cpu"),
    )
    count = min(len(records), FITTED_IMAGES)
    for start in range(0, count, _BATCH):
        yield batches.at(start).images[: count - start]
