"""Models of run folders: checkpoints, averages, tuned settings."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sfumato import __version__
from sfumato.base.errors import ConfigError, DamagedDataError, InputError
from sfumato.base.files import read_json
from sfumato.base.section import Section, validate
from sfumato.config.schema import DiffusionExperiment, load_experiment
from sfumato.diffusion.solvers.registry import Sampling
from sfumato.generation.model import Model
from sfumato.generation.origin import TUNED
from sfumato.generation.origin_weights import origin_state
from sfumato.models.codec import Codec, PixelCodec, codec_from_dict
from sfumato.models.lora import merge_adapter
from sfumato.models.unet import build_unet
from sfumato.models.vae import VAE, open_vae_codec
from sfumato.text.encoder import TextEncoder
from sfumato.text.opening import load_text_encoder
from sfumato.training.checkpoint import Checkpoint, Checkpoints, load_part
from sfumato.training.state import load_state

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

AVERAGE = "average"
"""The averaged weights in a checkpoint that are sampled with unless another average is chosen."""


class Tuned(Section):
    """The choice of `sfumato tune`: sampling, and which of the averages."""

    sampling: Sampling
    average: str = AVERAGE


def load_run(folder: Path, device: torch.device, images: int | None, average: str | None) -> Model:
    experiment = experiment_of_run(folder)
    tuned = tuned_settings(folder)
    checkpoint = chosen_checkpoint(folder, images)
    part = average or (AVERAGE if tuned is None else tuned.average)
    network = averaged_unet(checkpoint, experiment, part=part)
    encoder = load_text_encoder(experiment.text)
    recorded = checkpoint.state.get("text_encoder")
    if recorded is not None and recorded != encoder.identity:
        raise ConfigError(
            f"The model was trained with the text encoder '{recorded}', but "
            f"'{encoder.identity}' was loaded.",
            hint="Give the encoder it was trained with (text.encoder in experiment.yaml).",
        )
    codec = recorded_codec(checkpoint, experiment)
    for module in (encoder.model, getattr(codec, VAE, None)):
        if module is not None:
            module.to(device)
    model = model_of(
        network.to(device),
        encoder,
        experiment,
        codec=codec,
        sampling=None if tuned is None else tuned.sampling,
        provenance={
            "experiment": experiment.name,
            "seed": experiment.seed,
            "images_seen": checkpoint.images_seen,
            "average": part,
            "weights_sha256": checkpoint.sha256(part),
            "text_encoder": encoder.identity,
            "caption_dropout": experiment.training.caption_dropout,
            "classes": checkpoint.state.get("classes", []),
            "sfumato": __version__,
            **origin_provenance(experiment),
            **({} if experiment.origin is None else {"origin": experiment.origin.model}),
        },
    )
    model = replace(model, folder=folder)
    return with_weak_network(model) if model.sampling.form.needs_weak_network else model


def origin_provenance(experiment: DiffusionExperiment) -> dict[str, str]:
    """`origin_weights_sha256` of the model that the run began with; empty without one."""
    origin = experiment.origin
    return {} if origin is None else {"origin_weights_sha256": origin.weights_sha256}


def model_of(
    network: torch.nn.Module,
    encoder: TextEncoder,
    experiment: DiffusionExperiment,
    *,
    codec: Codec,
    sampling: Sampling | None = None,
    provenance: dict[str, Any] | None = None,
) -> Model:
    """The model of an experiment around a network that is already in memory."""
    return Model(
        network=network,
        process=experiment.diffusion,
        codec=codec,
        text_encoder=encoder,
        sampling=experiment.sampling if sampling is None else sampling,
        provenance={"data": experiment.data.model_dump(mode="json"), **(provenance or {})},
    )


def recorded_codec(checkpoint: Checkpoint, experiment: DiffusionExperiment) -> Codec:
    """The codec that a run is trained with."""
    if experiment.codec.kind == "pixel":
        return PixelCodec(experiment.data.value_range)
    values = checkpoint.state["codec"]
    if experiment.codec.kind == "linear":
        return codec_from_dict(values)
    folder = checkpoint.path.parents[1] / VAE
    codec = open_vae_codec(values, folder)
    if codec.to_dict() != values:
        raise DamagedDataError(
            f"{folder} is damaged: its weights are not those that the run was trained with.",
            hint="Restore it from a backup.",
        )
    return codec


def with_weak_network(model: Model) -> Model:
    """A model of a run with the weaker network that its autoguidance names: the averaged network of
    an earlier checkpoint (`images`; 0: the oldest)."""
    assert model.folder is not None
    images = int(dict(model.sampling.form.parameters)["images"])
    loaded = model.provenance.get("weak")
    if loaded is None or images != loaded["images_seen"]:
        checkpoint = _weak_checkpoint(model.folder, images, before=model.provenance["images_seen"])
        network = averaged_unet(checkpoint, experiment_of_run(model.folder))
        loaded = {
            "images_seen": checkpoint.images_seen,
            "weights_sha256": checkpoint.sha256(AVERAGE),
        }
        model = replace(
            model,
            weak_network=network.to(next(model.network.parameters())),
            provenance={**model.provenance, "weak": loaded},
        )
    guidance = f"autoguidance:images={loaded['images_seen']}"
    return replace(model, sampling=replace(model.sampling, guidance=guidance))


def _weak_checkpoint(folder: Path, images: int, *, before: int) -> Checkpoint:
    earlier = {
        checkpoint.images_seen: checkpoint
        for checkpoint in Checkpoints(folder / "checkpoints").all()
        if checkpoint.images_seen < before
    }
    if not earlier or (images and images not in earlier):
        there = ", ".join(str(count) for count in earlier) or "none"
        raise InputError(
            f"Autoguidance needs an earlier checkpoint than the one at {before:,} images; "
            f"{folder} has: {there}" + (f"; none at {images}." if images else "."),
            hint=("Name one of them with autoguidance:images=N, or train" if earlier else "Train")
            + " with a larger training.keep_checkpoints.",
        )
    return earlier[images or min(earlier)]


def chosen_checkpoint(folder: Path, images: int | None) -> Checkpoint:
    """A run's checkpoint after `images`, its newest whole one without it."""
    checkpoints = Checkpoints(folder / "checkpoints")
    if images is None:
        checkpoint = checkpoints.latest(AVERAGE)
        if checkpoint is None:
            raise InputError(
                f"{folder} has no checkpoint yet.",
                hint="Let it train up to its first checkpoint, then try again.",
            )
        return checkpoint
    if not checkpoints.path(images).is_dir():
        there = ", ".join(str(checkpoint.images_seen) for checkpoint in checkpoints.all())
        raise InputError(
            f"{folder} has no checkpoint at {images:,} images.", hint=f"It has: {there or 'none'}."
        )
    return Checkpoint(checkpoints.path(images))


def experiment_of_run(folder: Path) -> DiffusionExperiment:
    """The experiment of a run folder; `ConfigError` where it is not one of images from captions."""
    experiment = load_experiment(str(folder / "experiment.yaml"))
    if not isinstance(experiment, DiffusionExperiment):
        raise ConfigError(
            f"{folder} is a run of another method, {type(experiment).__name__}, and has no model "
            "that makes images from captions.",
            hint="Give a run of `sfumato train` with a diffusion preset.",
        )
    return experiment


def tuned_settings(folder: Path) -> Tuned | None:
    """What `sfumato tune` chose for a run; None where it was not tuned."""
    file = folder / TUNED
    return validate(Tuned, read_json(file), source=str(file)) if file.exists() else None


def averages_in(checkpoint: Checkpoint) -> list[str]:
    """The averages of a checkpoint."""
    return [part for part in checkpoint.state["files"] if part.startswith(AVERAGE)]


def averaged_unet(
    checkpoint: Checkpoint, experiment: DiffusionExperiment, *, part: str = AVERAGE
) -> "UNet2DConditionModel":
    """An averaged network of a checkpoint; only that part of it is read. `InputError` with those
    that there are."""
    if part not in averages_in(checkpoint):
        raise InputError(
            f"{checkpoint.path} has no '{part}'.",
            hint=f"It holds {', '.join(averages_in(checkpoint))}; "
            "training.averaging.also_halflives_images keeps more.",
        )
    channels, side = experiment.network_shape
    network = build_unet(experiment.model, resolution=side, channels=channels, seed=experiment.seed)
    file, lora = checkpoint.verify(part), experiment.training.lora
    if lora is None:
        load_part(network, load_state(file), file=file)
    else:
        state, base = origin_state(experiment, checkpoint.path.parents[1])
        load_part(network, state, file=base)
        merge_adapter(network, load_state(file), scale=lora.scale)
    return network.eval().requires_grad_(False)
