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
from sfumato.diffusion.guidance import GuidanceConfig
from sfumato.evaluation.classifier import load_judge
from sfumato.generation.model import ImageGenerator, build_pipeline, resolve_device
from sfumato.models.unet import build_unet, parameter_count
from sfumato.report.grids import labelled_grid
from sfumato.text.encoder import ClipTextEncoder, load_text_encoder
from sfumato.text.opening import check_is_there
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
    assert data.resolution != "auto"
    assert data.channels != "auto"
    count = parameter_count(experiment.model, resolution=data.resolution, channels=data.channels)
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
    unet = build_unet(
        experiment.model,
        resolution=experiment.data.resolution,
        channels=experiment.data.channels,
        seed=experiment.seed,
    ).to(where)
    objective = DiffusionObjective(
        unet,
        bank,
        diffusion=experiment.diffusion,
        optimizer=experiment.training.optimizer,
        averaging=experiment.training.averaging,
        value_range=experiment.data.value_range,
        caption_dropout=experiment.training.caption_dropout,
        mirrored=experiment.training.mirrored,
        loss_weight=experiment.training.loss_weight,
        min_snr_gamma=experiment.training.min_snr_gamma,
        precision=experiment.training.precision,
    )
    training = experiment.training
    generator = averaged_generator(experiment, objective, encoder)
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
            draw=sample_grid(generator, records),
        ),
        *quick_evaluation(experiment, generator, records, folder),
        CheckpointHook(every_images=training.checkpoint_every_images),
    ]
    run.resume()
    cut_back_records(run)
    return run


def with_bank_rows(records: A, bank: PromptBank) -> A:
    """The same records with `prompts` counted in rows of the bank."""
    rows = bank.index(records.captions).cpu()
    return replace(records, prompts=rows[records.prompts])


def averaged_generator(
    experiment: DiffusionExperiment, objective: DiffusionObjective, encoder: ClipTextEncoder
) -> ImageGenerator:
    """Draws with the averaged network in the middle of training.

    Autoguidance needs an earlier checkpoint, so that plain guidance stands in for it here.
    """
    sampling = experiment.sampling
    if sampling.guidance.needs_weak_network:
        sampling = sampling.model_copy(update={"guidance": GuidanceConfig()})
    pipeline = build_pipeline(
        objective.average.module,
        encoder,
        data=experiment.data,
        diffusion=experiment.diffusion,
        sampling=sampling,
    )
    return ImageGenerator(pipeline, data=experiment.data)


def sample_grid(
    generator: ImageGenerator, records: Annotations, *, most_captions: int = 16
) -> Callable[[], bytes]:
    """A function that draws a picture of samples: captions by guidance scale."""
    captions, labels = records.examples(most_captions)
    scales = [1.0, generator.pipeline.config["guidance_scale"]]

    def draw() -> bytes:
        return labelled_grid(
            [
                list(generator.draw(captions, range(len(captions)), guidance_scale=scale))
                for scale in scales
            ],
            row_labels=[f"w = {scale:g}" for scale in scales],
            column_labels=labels,
        )

    return draw


def quick_evaluation(
    experiment: DiffusionExperiment, generator: ImageGenerator, records: Annotations, folder: Path
) -> list[AgreementHook]:
    """The hook of `training.accuracy_every_images`, where that is set: every class in turn by its
    first caption, image i with the seed i. `InputError` for a data set without classes."""
    every_images = experiment.training.accuracy_every_images
    if every_images is None:
        return []
    evaluation = experiment.evaluation
    judge = load_judge(experiment.data, evaluation.judge)
    asked = torch.arange(evaluation.quick_count) % len(records.class_names)
    prompts = [records.class_captions[label] for label in asked.tolist()]

    def measure() -> dict[str, Any]:
        agreed = {}
        for scale in evaluation.quick_scales:
            drawn = generator.draw(prompts, range(len(prompts)), guidance_scale=scale)
            seen, _ = judge(torch.stack([picture.image for picture in drawn]))
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
        ImageGenerator.open(folder, device="cpu").export(folder / "pipeline")
    return run


def exported_images(folder: Path) -> int | None:
    """After how many images the weights in a run's `pipeline/` were taken; None without one."""
    index = folder / "pipeline" / "model_index.json"
    return read_json(index)["provenance"].get("images_seen") if index.exists() else None
