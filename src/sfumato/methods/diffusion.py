"""An experiment: every section of the configuration, and how they become a training run."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from sfumato.base.errors import ConfigError
from sfumato.base.files import read_json
from sfumato.config.schema import DiffusionExperiment
from sfumato.data.loaders import open_training, resolve_loading, training_batches
from sfumato.data.records import Annotations
from sfumato.data.survey import settle
from sfumato.evaluation.classifier import load_classifier
from sfumato.generation.grids import scale_grid
from sfumato.generation.loading import load, resolve_device
from sfumato.generation.model import Model
from sfumato.generation.runs import model_of
from sfumato.models.codec import PixelCodec
from sfumato.models.unet import build_unet, parameter_count
from sfumato.text.encoder import ClipTextEncoder
from sfumato.text.opening import check_is_there, load_text_encoder
from sfumato.text.prompts import PromptBank
from sfumato.training.folder import claim_folder
from sfumato.training.hooks import (
    AgreementHook,
    CheckpointHook,
    LogHook,
    SampleHook,
    cut_back_records,
    stopping_on_signals,
)
from sfumato.training.loop import Hook, Run, train
from sfumato.training.objectives.diffusion import DiffusionObjective
from sfumato.training.records import AGREEMENT

A = TypeVar("A", bound=Annotations)


def network_line(experiment: DiffusionExperiment) -> str:
    """The network in a line: parameters, heads of attention; `experiment.data` has no auto."""
    data = experiment.data
    assert data.channels != "auto"
    count = parameter_count(experiment.model, channels=data.channels)
    return f"U-Net of {count:,} parameters; attention: {experiment.model.heads_text}"


def prepare_run(
    experiment: DiffusionExperiment,
    folder: Path,
    *,
    device: str = "auto",
    hooks: Sequence[Hook] = (),
) -> Run:
    """Build the run of an experiment in `folder`, resumed where it has a checkpoint."""
    where = resolve_device(device)
    check_is_there(experiment.text.encoder)
    data = resolve_loading(settle(experiment.data))
    experiment = experiment.model_copy(update={"data": data})
    # Before a folder is made and the images are decoded: what is refused leaves nothing behind.
    encoder = load_text_encoder(experiment.text)
    if encoder.dim != experiment.model.cross_attention_dim:
        raise ConfigError(
            f"model.cross_attention_dim is {experiment.model.cross_attention_dim}, but the text "
            f"encoder '{encoder.name}' is {encoder.dim} wide.",
            hint=f"Set model.cross_attention_dim={encoder.dim}, or choose another encoder.",
        )
    claim_folder(experiment, folder)
    records = open_training(experiment.data)
    encoder.model.to(where)
    bank = PromptBank(encoder, records.captions, device=where)
    encoder.model.to("cpu")
    network = build_unet(
        experiment.model,
        resolution=experiment.data.resolution,
        channels=experiment.data.channels,
        seed=experiment.seed,
    ).to(where)
    objective = DiffusionObjective(
        network,
        experiment.diffusion,
        PixelCodec(experiment.data.value_range),
        bank,
        experiment.training,
    )
    training = experiment.training
    model = averaged_model(experiment, objective, encoder)
    run = Run(
        folder=folder,
        objective=objective,
        batches=training_batches(
            with_bank_rows(records, bank),
            experiment.data,
            seed=experiment.seed,
            batch_size=training.batch_size,
            device=where,
        ),
        seed=experiment.seed,
        total_images=training.total_images(len(records)),
        device=where,
        micro_batches=training.micro_batches,
        keep_checkpoints=training.keep_checkpoints,
        milestones=training.milestones(len(records)),
        provenance={"experiment": experiment.name, "text_encoder": encoder.identity},
    )
    run.hooks = [
        LogHook(folder / "metrics.jsonl", every_images=training.log_every_images),
        *hooks,
        SampleHook(
            folder / "samples",
            every_images=training.sample_every_images,
            draw=sample_grid(model, records),
        ),
        *quick_evaluation(experiment, model, records, folder),
        CheckpointHook(every_images=training.checkpoint_every_images),
    ]
    run.resume()
    cut_back_records(run)
    return run


def with_bank_rows(records: A, bank: PromptBank) -> A:
    """The same records with `prompts` counted in rows of the bank."""
    rows = bank.index(records.captions).cpu()
    return replace(records, prompts=rows[records.prompts])


def averaged_model(
    experiment: DiffusionExperiment, objective: DiffusionObjective, encoder: ClipTextEncoder
) -> Model:
    """The averaged network in the middle of training.

    Autoguidance needs an earlier checkpoint, so plain guidance stands in for it here.
    """
    sampling = experiment.sampling
    if sampling.form.needs_weak_network:
        sampling = replace(sampling, guidance="cfg")
    return model_of(objective.average.module, encoder, experiment, sampling=sampling)


def sample_grid(
    model: Model, records: Annotations, *, most_captions: int = 16
) -> Callable[[], bytes]:
    """A function that makes a grid of samples: captions by guidance scale."""
    captions, labels = records.examples(most_captions)
    scales = [1.0, model.sampling.guidance_scale]
    return lambda: scale_grid(model, captions, labels, scales=scales)


def quick_evaluation(
    experiment: DiffusionExperiment, model: Model, records: Annotations, folder: Path
) -> list[AgreementHook]:
    """The hook of `training.accuracy_every_images`, where that is set: every class in turn by its
    first caption, image i with the seed i. `InputError` for a data set without classes."""
    every_images = experiment.training.accuracy_every_images
    if every_images is None:
        return []
    evaluation = experiment.evaluation
    classifier = load_classifier(experiment.data, evaluation.classifier)
    asked = torch.arange(evaluation.quick_count) % len(records.class_names)
    prompts = [records.class_captions[label] for label in asked.tolist()]

    def measure() -> dict[str, Any]:
        agreed = {}
        for scale in evaluation.quick_scales:
            images = model.sample(prompts, range(len(prompts)), guidance=scale).tensor
            seen = classifier.predict(images)
            agreed[f"{scale:g}"] = int((seen == asked).sum())
        return {"count": len(prompts), "agreed": agreed}

    return [AgreementHook(folder / AGREEMENT, every_images=every_images, measure=measure)]


def run_experiment(
    experiment: DiffusionExperiment,
    folder: Path,
    *,
    device: str = "auto",
    hooks: Sequence[Hook] = (),
    on_start: Callable[[Run], None] = lambda run: None,
) -> Run:
    """Train an experiment to its end (or to a request to stop) and export its pipeline.

    `on_start` is told of the run before its first step.
    """
    run = prepare_run(experiment, folder, device=device, hooks=hooks)
    on_start(run)
    if not run.finished:
        with stopping_on_signals(run):
            train(run)
    if run.finished and exported_images(folder) != run.images_seen:
        load(folder, device="cpu").export(folder / "model")
    return run


def exported_images(folder: Path) -> int | None:
    """After how many images the weights in a run's `model/` were taken; None without one."""
    index = folder / "model" / "model_index.json"
    return read_json(index)["provenance"].get("images_seen") if index.exists() else None
