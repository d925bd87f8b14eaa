"""The codec of a run: made of its settings, fitted to its images, or its origin's."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sfumato.base.errors import ConfigError, InputError
from sfumato.base.files import whole_folder
from sfumato.base.weights import weights_digest
from sfumato.base.words import set_options
from sfumato.config.schema import DiffusionExperiment, VaeExperiment, load_experiment
from sfumato.config.sections import DataConfig
from sfumato.data.latents import FOLDER as LATENTS_FOLDER
from sfumato.data.latents import PreparedLatents, read_latents
from sfumato.data.loaders import training_batches
from sfumato.data.prepared import MappedImages
from sfumato.data.records import Records, load_records
from sfumato.data.streaming.decoder import StreamedRecords
from sfumato.generation.origin_weights import open_origin
from sfumato.generation.runs import chosen_checkpoint, recorded_codec
from sfumato.models.codec import (
    Codec,
    PixelCodec,
    VaeCodec,
    check_takes,
    codec_from_dict,
    vae_factor,
)
from sfumato.models.codec_fitting import fit_linear_codec
from sfumato.models.vae import VAE, fit_vae_codec, open_preview, open_vae, save_vae
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
    latents: PreparedLatents | None,
    device: torch.device,
    world: World,
) -> Codec:
    """The codec of the run in `folder`: that of its checkpoints, of its origin, of the `latents`
    that it is trained on, or a new one.

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
    codec = _of_run(experiment, folder, records, latents, device) if world.is_main else None
    if world.size > 1:
        shared = {} if codec is None else codec.to_dict()
        return codec_from_dict(world.share({"codec": shared}, device)["codec"])
    assert codec is not None
    return codec


def _of_run(
    experiment: DiffusionExperiment,
    folder: Path,
    records: Records | StreamedRecords,
    latents: PreparedLatents | None,
    device: torch.device,
) -> Codec:
    checkpoint = Checkpoints(folder / "checkpoints").latest()
    if checkpoint is not None:  # fitted anew, it would follow images that have changed since
        return _placed(recorded_codec(checkpoint, experiment), device)
    if experiment.origin is not None:
        return _placed(open_origin(experiment.origin.model).codec, device)
    settings, data = experiment.codec, experiment.data
    if latents is not None:
        return _placed(_of_latents(experiment, latents), device)
    if settings.kind == "vae":
        vae = open_vae(settings.vae)
        _check_vae(vae.config, experiment)
        images = training_images(data, records, seed=experiment.seed, most=VAE_IMAGES)
        vae.to(device)  # pyright: ignore
        return fit_vae_codec(
            vae,
            images,
            samples=settings.posterior == "sample",
            preview_decoder=open_preview(settings.vae),
        )
    return fit_linear_codec(
        training_images(data, records, seed=experiment.seed, most=LINEAR_IMAGES),
        factor=settings.factor,
        channels=settings.channels,
    )


def _of_latents(experiment: DiffusionExperiment, latents: PreparedLatents) -> Codec:
    """The codec of prepared latents; `ConfigError` where the settings ask for another."""
    settings, manifest = experiment.codec, latents.manifest
    if settings.kind != manifest.codec["codec"]:
        raise _other_codec(latents, f"codec.kind={settings.kind} asks for", experiment)
    codec = latents.codec()
    if isinstance(codec, VaeCodec):
        _check_vae(codec.vae.config, experiment)
        given = weights_digest(open_vae(settings.vae)).hexdigest()
        if given not in (manifest.made_from, manifest.codec["sha256"]):
            raise _other_codec(latents, settings.vae, experiment)
        if codec.samples != (settings.posterior == "sample"):
            asked = f"codec.posterior={settings.posterior} asks for"
            raise _other_codec(latents, asked, experiment)
    elif (codec.factor, manifest.shape[3]) != (settings.factor, settings.channels):
        asked = f"codec.factor={settings.factor}, codec.channels={settings.channels}"
        raise _other_codec(latents, f"{asked} ask for", experiment)
    return codec


def latents_of(
    experiment: DiffusionExperiment, folder: Path, *, device: torch.device, world: World
) -> PreparedLatents | None:
    """The prepared latents that the run in `folder` is trained on: those that its checkpoints
    record, or in a new run those beside its images; None where it encodes images itself.

    `ConfigError` where the recorded ones are gone, or others lie there now.
    """
    if experiment.codec.kind == "pixel" or experiment.distillation is not None:
        return None
    recorded = _recorded_latents(folder) if world.is_main else None
    if world.size > 1:
        recorded = world.share({"latents": recorded}, device)["latents"]
    if recorded == "":
        return None
    source = Path(experiment.data.source).expanduser()
    latents = read_latents(source) if source.is_dir() else None
    found = "" if latents is None else latents.sha256
    world.agree("latents", latents=found)
    if recorded not in (None, found):
        wrong = "are gone" if latents is None else "have changed"
        raise ConfigError(
            f"{folder} was trained on the latents in {source / LATENTS_FOLDER}, which {wrong}.",
            hint="Restore that folder, or make it again with the command that made it. Or start "
            "a new run with another --out.",
        )
    return latents


def codec_notes(codec: Codec, latents: PreparedLatents | None) -> dict[str, Any]:
    """What the checkpoints of a run say of its codec, and of the latents that it is trained on."""
    return {"codec": codec.to_dict(), "latents": "" if latents is None else latents.sha256}


def _recorded_latents(folder: Path) -> str | None:
    """The hash of the latents that a run was trained on, "" for none; None for a new run."""
    checkpoint = Checkpoints(folder / "checkpoints").latest()
    return None if checkpoint is None else checkpoint.state.get("latents", "")


def prepared_records(
    experiment: DiffusionExperiment,
    records: Records | StreamedRecords,
    codec: Codec,
    latents: PreparedLatents | None,
) -> Records | StreamedRecords:
    """`records` with `latents` in place of images, where there are some. `ConfigError` where
    another codec made them."""
    if latents is None:
        return records
    if not latents.manifest.is_of(codec):
        raise _other_codec(latents, "the codec of this run", experiment)
    assert isinstance(records, Records)
    assert isinstance(records.images, MappedImages)
    return replace(records, images=latents.of(records.images))


def _other_codec(
    latents: PreparedLatents, asked: str, experiment: DiffusionExperiment
) -> ConfigError:
    made, (channels, side) = latents.manifest.codec, latents.manifest.shape[3:5]
    assert isinstance(experiment.data.resolution, int)
    settings = {
        "codec.kind": made["codec"],
        "codec.factor": experiment.data.resolution // side,
        "codec.channels": channels,
    }
    if made["codec"] == "vae":
        settings["codec.vae"] = latents.folder
        settings["codec.posterior"] = "sample" if made["samples"] else "mode"
    options = set_options(settings)
    # A run that begins with a model has that model's codec, whatever is set.
    train = "" if experiment.origin is not None else f"Train on them with {options}. "
    return ConfigError(
        f"{latents.folder} holds latents of another codec than {asked}.",
        hint=f"{train}To train with your codec, move that folder away: the run then encodes the "
        "images itself.",
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


def check_codec(name: str) -> None:
    """`InputError` for what `codec_to_prepare` cannot take, whatever the images."""
    file = Path(name).expanduser() / "experiment.yaml"
    experiment = load_experiment(file) if file.is_file() else None
    if isinstance(experiment, DiffusionExperiment):
        _codec_of_run(name, experiment)
    elif experiment is not None and not isinstance(experiment, VaeExperiment):
        raise InputError(
            f"{name} is a run of another method, '{experiment.method}', and has no codec.",
            hint="Give a run of `sfumato train vae`, or one that was trained in latents.",
        )
    else:
        open_vae(name)


def codec_to_prepare(
    name: str, data: DataConfig, *, posterior: Literal["mode", "sample"] | None = None
) -> tuple[Codec, str]:
    """The codec of a run by its folder, or a VAE by its folder or Hub name with its latents
    normalised over the training images of prepared `data`; and the hash of the VAE as it was.

    `posterior`: whether training is to draw from it; None for that of the run, or the mode.
    `InputError` for a run without a codec of latents or with another posterior, and for a codec
    that does not take these images.
    """
    file = Path(name).expanduser() / "experiment.yaml"
    experiment = load_experiment(file) if file.is_file() else None
    if isinstance(experiment, DiffusionExperiment):
        codec, made_from = _codec_of_run(name, experiment)
        if posterior not in (None, "sample" if codec.samples else "mode"):
            raise _other_posterior(name, codec)
        _check_images(codec, data)
        return codec, made_from
    vae = open_vae(name)
    _check_images(VaeCodec(vae), data)
    made_from = weights_digest(vae).hexdigest()
    images = training_images(data, load_records(data, "train"), seed=0, most=VAE_IMAGES)
    codec = fit_vae_codec(
        vae, images, samples=posterior == "sample", preview_decoder=open_preview(name)
    )
    return codec, made_from


def _codec_of_run(name: str, experiment: DiffusionExperiment) -> tuple[Codec, str]:
    if experiment.codec.kind == "pixel":
        raise InputError(
            f"{name} was trained on pixels and has no codec of latents.",
            hint="Give a run of `sfumato train vae`, or of training with codec.kind.",
        )
    codec = recorded_codec(chosen_checkpoint(Path(name).expanduser(), None), experiment)
    return codec, codec.to_dict().get("sha256", "")


def _other_posterior(name: str, codec: Codec) -> InputError:
    if isinstance(codec, VaeCodec):
        own = "sample" if codec.samples else "mode"
        return InputError(
            f"{name} is a run with codec.posterior={own}, and its latents are prepared for that.",
            hint="Leave out --posterior, or give the VAE that the run began with.",
        )
    return InputError(
        f"{name} is a run with codec.kind=linear, whose latents have no posterior to draw from.",
        hint="Leave out --posterior.",
    )


def _check_images(codec: Codec, data: DataConfig) -> None:
    assert isinstance(data.channels, int)
    assert isinstance(data.resolution, int)
    check_takes(codec, (data.channels, data.resolution, data.resolution))


def keep_codec(codec: Codec, folder: Path) -> None:
    """Write the VAE of a codec into the run's folder. With a checkpoint it is there; what a run
    left that was killed before its first may be of another fit."""
    if not isinstance(codec, VaeCodec) or Checkpoints(folder / "checkpoints").all():
        return
    with whole_folder(folder / VAE) as temporary:
        save_vae(codec, temporary)


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
