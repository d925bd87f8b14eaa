"""The codec of a run: made of its settings, fitted to its images, or its origin's."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.base.errors import ConfigError
from sfumato.base.files import whole_folder
from sfumato.config.schema import DiffusionExperiment
from sfumato.config.sections import DataConfig
from sfumato.data.loaders import training_batches
from sfumato.data.records import Records
from sfumato.data.streaming.decoder import StreamedRecords
from sfumato.generation.origin_weights import open_origin
from sfumato.generation.runs import recorded_codec
from sfumato.models.codec import Codec, PixelCodec, VaeCodec, codec_from_dict, vae_factor
from sfumato.models.codec_fitting import fit_linear_codec
from sfumato.models.vae import VAE, fit_vae_codec, open_vae
from sfumato.training.checkpoint import Checkpoints
from sfumato.training.distributed import World

LINEAR_IMAGES, VAE_IMAGES = 50_000, 5_000
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

    Rank 0 fits it, and all ranks have the same numbers. `ConfigError` for a VAE of other sizes than
    the settings say, and in several processes.
    """
    kind = experiment.codec.kind
    if kind == "pixel":
        return PixelCodec(experiment.data.value_range)
    if kind == "vae" and world.size > 1:
        raise ConfigError(
            "codec.kind=vae is trained in one process.",
            hint="Start it without torchrun and without --processes.",
        )
    codec = _of_run(experiment, folder, records, device) if world.is_main else None
    if world.size > 1:
        shared = {} if codec is None else codec.to_dict()
        return codec_from_dict(world.share({"codec": shared}, device)["codec"])
    assert codec is not None
    return codec


def _of_run(
    experiment: DiffusionExperiment,
    folder: Path,
    records: Records | StreamedRecords,
    device: torch.device,
) -> Codec:
    checkpoint = Checkpoints(folder / "checkpoints").latest()
    if checkpoint is not None:  # fitted anew, it would follow images that have changed since
        return _placed(recorded_codec(checkpoint, experiment), device)
    if experiment.origin is not None:
        return _placed(open_origin(experiment.origin.model).codec, device)
    settings, data = experiment.codec, experiment.data
    if settings.kind == "vae":
        vae = open_vae(settings.vae)
        _check_vae(vae.config, experiment)
        images = training_images(data, records, seed=experiment.seed, most=VAE_IMAGES)
        vae.to(device)  # pyright: ignore
        return fit_vae_codec(vae, images, samples=settings.posterior == "sample")
    return fit_linear_codec(
        training_images(data, records, seed=experiment.seed, most=LINEAR_IMAGES),
        factor=settings.factor,
        channels=settings.channels,
    )


def _placed(codec: Codec, device: torch.device) -> Codec:
    if isinstance(codec, VaeCodec):
        codec.vae.to(device)
    return codec


def _check_vae(vae: Mapping[str, Any], experiment: DiffusionExperiment) -> None:
    settings, images = experiment.codec, experiment.data.channels
    found = {
        "codec.factor": (settings.factor, vae_factor(vae)),
        "codec.channels": (settings.channels, vae["latent_channels"]),
        "data.channels": (images, vae["in_channels"]),
    }
    wrong = {name: pair for name, pair in found.items() if pair[0] != pair[1]}
    if wrong:
        raise ConfigError(
            f"{settings.vae} is another VAE: "
            + "; ".join(f"{name} is {here}, its {there}" for name, (here, there) in wrong.items())
            + ".",
            hint=" ".join(f"--set {name}={there}" for name, (_, there) in wrong.items()),
        )


def keep_codec(codec: Codec, folder: Path) -> None:
    """Write the VAE of a codec into the run's folder, if it is not there."""
    if not isinstance(codec, VaeCodec) or (folder / VAE).is_dir():
        return
    with whole_folder(folder / VAE) as temporary:
        codec.vae.save_pretrained(temporary, safe_serialization=True)


def training_images(
    data: DataConfig, records: Records | StreamedRecords, *, seed: int, most: int
) -> Iterator[Tensor]:
    """Batches of uint8 (B, C, H, W), each training image once, at most `most`."""
    batches = training_batches(
        records,
        data,
        seed=seed,
        batch_size=_BATCH,
        device=torch.device("cpu"),
    )
    count = min(len(records), most)
    for start in range(0, count, _BATCH):
        yield batches.at(start).images[: count - start]
