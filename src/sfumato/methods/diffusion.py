"""Training a diffusion model: data, text encoder, network and objective become a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from sfumato.base.errors import ConfigError
from sfumato.base.files import read_json
from sfumato.config.finetuning import OriginConfig
from sfumato.config.schema import DiffusionExperiment
from sfumato.data.loaders import open_training, resolve_loading, training_batches
from sfumato.data.records import Annotations, trained_on
from sfumato.data.survey import settle
from sfumato.evaluation.classifier import load_classifier
from sfumato.generation.grids import scale_grid
from sfumato.generation.loading import load
from sfumato.generation.model import Model
from sfumato.generation.origin import check_agrees, sections_of
from sfumato.generation.origin_weights import (
    keep_origin,
    open_origin,
    origin_state,
    weights_sha256,
)
from sfumato.generation.runs import model_of, origin_provenance
from sfumato.methods.codecs import (
    codec_notes,
    keep_codec,
    latents_of,
    open_codec,
    prepared_records,
)
from sfumato.methods.distillation import (
    student_hooks,
    student_objective,
    student_provenance,
    trajectories_of,
)
from sfumato.models.codec import Codec
from sfumato.models.lora import add_adapter
from sfumato.models.sizes import parameter_count
from sfumato.models.speed import place
from sfumato.models.unet import build_unet
from sfumato.text.encoder import TextEncoder
from sfumato.text.opening import check_is_there, load_text_encoder
from sfumato.text.prompts import PromptBank
from sfumato.training.checkpoint import load_part
from sfumato.training.distributed import World
from sfumato.training.hooks import MeasureHook, SampleHook
from sfumato.training.lint import lint_experiment
from sfumato.training.loop import Batches, Hook, Run
from sfumato.training.objectives.diffusion import DiffusionObjective
from sfumato.training.objectives.distillation import TrajectoryBatches
from sfumato.training.records import ACCURACY
from sfumato.training.run import Method

A = TypeVar("A", bound=Annotations)
MOST_CAPTIONS = 16
"""Columns of a grid of samples during training."""


@dataclass(kw_only=True)
class DiffusionRun(Run):
    """A run, and `examples`: captions to sample with."""

    examples: Sequence[str]


def network_line(experiment: DiffusionExperiment) -> str:
    """The network in a line: parameters, heads of attention."""
    count = parameter_count(experiment)
    return f"U-Net of {count:,} parameters; attention: {experiment.model.heads_text}"


def _resolve(experiment: DiffusionExperiment) -> DiffusionExperiment:
    check_is_there(experiment.text.encoder)
    data = resolve_loading(settle(experiment.data))
    origin = experiment.origin
    if origin is not None and not origin.is_resolved:
        origin = _resolved_origin(experiment, origin)
    return experiment.model_copy(update={"data": data, "origin": origin})


def _resolved_origin(experiment: DiffusionExperiment, origin: OriginConfig) -> OriginConfig:
    """With the hash of the model's weights; `ConfigError` where the experiment contradicts it."""
    check_agrees(experiment, sections_of(origin.model))
    model = open_origin(origin.model)
    recorded, found = model.provenance.get("text_encoder"), _text_encoder(experiment).identity
    if recorded is not None and recorded != found:
        raise ConfigError(
            f"{origin.model} was trained with the text encoder '{recorded}', but '{found}' was "
            "loaded.",
            hint="Give the encoder it was trained with.",
        )
    return origin.model_copy(update={"weights_sha256": weights_sha256(model)})


def _build(
    experiment: DiffusionExperiment, folder: Path, device: torch.device, world: World
) -> DiffusionRun:
    training = experiment.training
    _check_ranks(experiment, world)
    encoder = _text_encoder(experiment)
    records = open_training(experiment.data)
    encoder.model.to(device)
    network = place(_network(experiment, folder, device, world), device)
    where = {"device": device, "world": world}
    latents = latents_of(experiment, folder, **where)
    codec = open_codec(experiment, folder, records, latents=latents, **where)
    records = prepared_records(experiment, records, codec, latents)
    objective, batches = _learning(experiment, network, codec, encoder, records, device, world)
    size = batches.trained if isinstance(batches, TrajectoryBatches) else len(records)
    return DiffusionRun(
        folder=folder,
        objective=objective,
        batches=batches,
        seed=experiment.seed,
        total_images=training.total_images(size),
        device=device,
        world=world,
        micro_batches=training.micro_batches,
        milestones=training.milestones(size),
        provenance={
            "experiment": experiment.name,
            "text_encoder": encoder.identity,
            **origin_provenance(experiment),
            **student_provenance(experiment),
        },
        notes={"classes": list(records.class_names), **codec_notes(codec, latents)},
        hooks=()
        if not (world.is_main or world.shards)
        else [
            *_hooks(experiment, averaged_model(experiment, objective, encoder), records, folder),
            *student_hooks(experiment, objective, batches, folder),
        ],
        examples=records.examples(MOST_CAPTIONS)[0],
    )


def _learning(
    experiment: DiffusionExperiment,
    network: torch.nn.Module,
    codec: Codec,
    encoder: TextEncoder,
    records: Any,
    device: torch.device,
    world: World,
) -> tuple[DiffusionObjective, Batches]:
    """What is learned, and from which batches: those of `records`, or a teacher's trajectories."""
    training, data = experiment.training, experiment.data
    trajectories = trajectories_of(experiment)
    captions = records.captions if trajectories is None else trajectories.captions
    bank = PromptBank(encoder, captions, device=device)
    encoder.model.to("cpu")
    parts = (network, experiment.diffusion, codec, bank, training)
    how = {"seed": experiment.seed, "batch_size": training.batch_size, "device": device}
    if trajectories is None:
        share = {"rank": world.rank, "world_size": world.size}
        batches = training_batches(with_bank_rows(records, bank), data, **how, **share)
        return DiffusionObjective(*parts, world=world), batches
    student = experiment.distillation
    assert student is not None
    objective = student_objective(parts, student, trajectories, device=device)
    return objective, TrajectoryBatches(trajectories, bank, held_out=student.held_out, **how)


def _check_ranks(experiment: DiffusionExperiment, world: World) -> None:
    """`ConfigError` for what several processes cannot train, and for more micro-batches than a rank
    has images."""
    training = experiment.training
    if experiment.distillation is not None and world.size > 1:
        # Rank 0 alone measures when a student's training ends.
        raise ConfigError(
            f"A student is trained in one process, not in {world.size}.",
            hint="Start it without torchrun and without --processes.",
        )
    if training.micro_batches * world.size > training.batch_size:
        raise ConfigError(
            f"training.micro_batches: {training.batch_size} images cannot be split into "
            f"{training.micro_batches} micro-batches on each of {world.size} ranks.",
            hint=f"Choose at most {training.batch_size // world.size}.",
        )
    if training.compile == "graph" and world.size > 1:
        raise ConfigError(
            f"training.compile=graph is for one process, not for {world.size}.",
            hint="Use training.compile=blocks.",
        )


def _network(
    experiment: DiffusionExperiment, folder: Path, device: torch.device, world: World
) -> torch.nn.Module:
    """The network as it begins: with random weights or those of its origin, and its adapter."""
    lora, (channels, side) = experiment.training.lora, experiment.network_shape
    network = build_unet(experiment.model, resolution=side, channels=channels, seed=experiment.seed)
    if experiment.origin is not None:
        # Rank 0 alone needs the model; the others get its weights.
        state, file = origin_state(experiment, folder) if world.is_main else ({}, folder)
        if world.size > 1:
            state = world.share(state, device)
        load_part(network, with_new_input(state, network), file=file)
    if lora is not None:
        add_adapter(network, lora, seed=experiment.seed)
    return network


def with_new_input(state: Mapping[str, Tensor], network: torch.nn.Module) -> Mapping[str, Tensor]:
    """The weights of an origin, with zeros for an input that only the new network has: it begins
    as the origin, whatever that input is."""
    new = network.state_dict()
    name = "time_embedding.cond_proj.weight"
    if name not in new or name in state:
        return state
    return {**state, name: torch.zeros_like(new[name])}


def _text_encoder(experiment: DiffusionExperiment) -> TextEncoder:
    """`ConfigError` for an encoder whose width is not that of the network's cross-attention."""
    encoder = load_text_encoder(experiment.text)
    if encoder.dim != experiment.model.cross_attention_dim:
        raise ConfigError(
            f"model.cross_attention_dim is {experiment.model.cross_attention_dim}, but the text "
            f"encoder '{encoder.name}' is {encoder.dim} wide.",
            hint=f"Set model.cross_attention_dim={encoder.dim}, or choose another encoder.",
        )
    return encoder


def with_bank_rows(records: A, bank: PromptBank) -> A:
    """The same records with `prompts` counted in rows of the bank."""
    rows = bank.index(records.captions).cpu()
    return replace(records, prompts=rows[records.prompts])


def averaged_model(
    experiment: DiffusionExperiment, objective: DiffusionObjective, encoder: TextEncoder
) -> Model:
    """The averaged network in the middle of training.

    Autoguidance needs an earlier checkpoint, so plain guidance stands in for it here.
    """
    sampling = experiment.sampling
    if sampling.form.needs_weak_network:
        sampling = replace(sampling, guidance="cfg")
    return model_of(
        objective.average.module, encoder, experiment, codec=objective.codec, sampling=sampling
    )


def _hooks(
    experiment: DiffusionExperiment, model: Model, records: Annotations, folder: Path
) -> list[Hook]:
    """Grids of samples (captions by guidance scale) and, where it is asked for, the accuracy."""
    training = experiment.training
    captions, labels = records.examples(MOST_CAPTIONS)
    scales = model.sampling.scales_among([1.0, model.sampling.guidance_scale])
    hooks: list[Hook] = [
        SampleHook(
            folder / "samples",
            every_images=training.sample_every_images,
            sample=lambda: scale_grid(model, captions, labels, scales=scales),
        )
    ]
    if training.accuracy_every_images is not None:
        hooks.append(_accuracy_hook(experiment, model, records, folder))
    return hooks


def _accuracy_hook(
    experiment: DiffusionExperiment, model: Model, records: Annotations, folder: Path
) -> MeasureHook:
    """Class accuracy of samples of every class in turn, by its first caption; image i has seed i.

    `InputError` for a data set without classes."""
    evaluation, every_images = experiment.evaluation, experiment.training.accuracy_every_images
    assert every_images is not None
    classifier = load_classifier(experiment.data, evaluation.classifier)
    present = torch.tensor(records.present)
    classes = present[torch.arange(evaluation.quick_count) % len(present)]
    prompts = [records.class_captions[label] for label in classes.tolist()]

    def measure() -> dict[str, Any]:
        correct = {}
        for scale in evaluation.quick_scales:
            images = model.sample(prompts, range(len(prompts)), guidance=scale).tensor
            correct[f"{scale:g}"] = int((classifier.predict(images) == classes).sum())
        return {"count": len(prompts), "correct": correct}

    return MeasureHook(folder / ACCURACY, every_images=every_images, measure=measure)


def _begin(experiment: DiffusionExperiment, run: DiffusionRun) -> None:
    """What the run needs beside its checkpoints: weights that it began with, its VAE."""
    keep_origin(experiment, run.folder)
    keep_codec(run.objective.codec, run.folder)


def _finish(experiment: DiffusionExperiment, run: DiffusionRun) -> None:
    """Export the averaged network as a diffusers folder."""
    if exported_images(run.folder) != run.images_seen:
        load(run.folder, device="cpu").export(run.folder / "model")


def exported_images(folder: Path) -> int | None:
    """After how many images the weights in a run's `model/` were taken; None without one."""
    index = folder / "model" / "model_index.json"
    return read_json(index)["provenance"].get("images_seen") if index.exists() else None


def _describe(experiment: DiffusionExperiment, run: DiffusionRun) -> Sequence[str]:
    prompt = run.examples[min(7, len(run.examples) - 1)]
    return (
        f"Samples in {run.folder / 'samples'}.",
        f'Sample with: sfumato sample {run.folder} "{prompt}"',
    )


DIFFUSION = Method(
    schema=DiffusionExperiment,
    resolve=_resolve,
    images=lambda experiment: trained_on(experiment.data),
    build=_build,
    begin=_begin,
    finish=_finish,
    describe=_describe,
    lint=lint_experiment,
    distributed=True,
)
