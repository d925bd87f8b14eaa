"""Training the small CLIP: its experiment, its run, and what it is worth on real images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sfumato import __version__
from sfumato.base.environment import environment, now
from sfumato.base.errors import ConfigError
from sfumato.base.files import read_json, sha256_of_file, whole_folder, write_json, write_text
from sfumato.config.schema import ClassSet, ClipExperiment
from sfumato.config.sections import DataConfig
from sfumato.data.captions import captions_from_templates
from sfumato.data.loading import DeviceBatches
from sfumato.data.records import Records, Split, load_records
from sfumato.evaluation.metrics.intervals import Estimate, wilson
from sfumato.generation.loading import resolve_device
from sfumato.text.tokenizer import train_tokenizer, vocabulary_corpus
from sfumato.text.towers import (
    IMAGE_PX,
    ClipTowers,
    build_towers,
    load_towers,
    save_towers,
    tokenize,
)
from sfumato.training.folder import claim_folder
from sfumato.training.hooks import CheckpointHook, LogHook, cut_back_records, stopping_on_signals
from sfumato.training.loop import Hook, Run, train
from sfumato.training.objectives.clip import ClassTexts, ClipObjective

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

RESULT = "clip"
"""Folder inside a run that holds the finished encoder."""


@dataclass(frozen=True, kw_only=True)
class ClassData:
    """One split of every set of classes, side by side."""

    images: Tensor
    labels: Tensor
    class_names: list[str]
    captions: list[list[str]]
    mirrored: Tensor
    description: str


def load_class_data(experiment: ClipExperiment, split: Split) -> ClassData:
    """Images (N, 3, 32, 32) uint8 with labels counted over all sets of classes."""
    images, labels, names, captions, mirrored, about = [], [], [], [], [], []
    for group in experiment.datasets.values():
        parts = [load_records(_data(source, group), split) for source in group.sources]
        classes = list(parts[0].class_names)
        for part, source in zip(parts, group.sources, strict=True):
            if list(part.class_names) != classes:
                raise ConfigError(
                    f"datasets: {source} has other classes than {group.sources[0]}.",
                    hint="Sources of one set share their classes; give it a set of its own.",
                )
        images += [part.images[:] for part in parts]
        labels += [part.labels + len(names) for part in parts]
        names += classes
        mirrored += [group.mirrored] * len(classes)
        templates = captions_from_templates(group.caption, classes)
        captions += [templates[label :: len(classes)] for label in range(len(classes))]
        about += [part.description for part in parts]
    return ClassData(
        images=torch.cat(images),
        labels=torch.cat(labels),
        class_names=names,
        captions=captions,
        mirrored=torch.tensor(mirrored),
        description="; ".join(about),
    )


def _data(source: str, group: ClassSet) -> DataConfig:
    return DataConfig(source=source, resolution=IMAGE_PX, channels=3, caption=group.caption)


@dataclass(frozen=True, kw_only=True)
class PreparedClip:
    """A run, its tokenizer, and a line about the images that it trains on."""

    run: Run
    tokenizer: "CLIPTokenizer"
    trained_on: str


def prepare_clip(
    experiment: ClipExperiment, folder: Path, *, device: str, hooks: Sequence[Hook] = ()
) -> PreparedClip:
    """Build the run in `folder`, resumed where it has a checkpoint."""
    where = resolve_device(device)
    claim_folder(experiment, folder)
    data = load_class_data(experiment, "train")
    tokenizer = train_tokenizer(
        vocabulary_corpus([caption for captions in data.captions for caption in captions]),
        vocab_size=experiment.vocabulary,
    )
    towers = build_towers(experiment.towers, tokenizer, seed=experiment.seed).to(where)
    training = experiment.training
    run = Run(
        folder=folder,
        objective=ClipObjective(
            towers,
            class_texts(data, tokenizer, positions=experiment.towers.positions),
            optimizer=training.optimizer,
            captions_per_class=training.captions_per_class,
            distractors=training.distractors,
        ),
        batches=DeviceBatches(
            Records(
                images=data.images,
                labels=data.labels,
                class_names=data.class_names,
                prompts=data.labels[:, None],  # captions are drawn a class, not an image
                captions=data.class_names,
                class_captions=data.class_names,
                description=data.description,
            ),
            seed=experiment.seed,
            batch_size=training.batch_size,
            device=where,
        ),
        seed=experiment.seed,
        total_images=training.images,
        device=where,
        keep_checkpoints=training.keep_checkpoints,
        provenance={"experiment": experiment.name},
    )
    run.hooks = [
        LogHook(folder / "metrics.jsonl", every_images=training.log_every_images),
        *hooks,
        CheckpointHook(every_images=training.checkpoint_every_images),
    ]
    run.resume()
    cut_back_records(run)
    return PreparedClip(run=run, tokenizer=tokenizer, trained_on=data.description)


def class_texts(data: ClassData, tokenizer: "CLIPTokenizer", *, positions: int) -> ClassTexts:
    """Every class's captions as token ids (K, T, L); few captions are repeated up to T."""
    most = max(len(captions) for captions in data.captions)
    filled = [(captions * -(-most // len(captions)))[:most] for captions in data.captions]
    ids = tokenize(tokenizer, [c for captions in filled for c in captions], positions=positions)
    return ClassTexts(
        ids=ids.view(len(filled), most, -1),
        mirrored=data.mirrored,
        unrelated=torch.tensor(sorted(set(range(len(tokenizer))) - set(ids.flatten().tolist()))),
        end_id=tokenizer.eos_token_id,
    )


def run_clip(
    experiment: ClipExperiment,
    folder: Path,
    *,
    device: str = "auto",
    hooks: Sequence[Hook] = (),
    on_start: Callable[[Run], None] = lambda run: None,
) -> Run:
    """Train to the end (or to a request to stop); then round, measure and write `clip/`."""
    prepared = prepare_clip(experiment, folder, device=device, hooks=hooks)
    run = prepared.run
    on_start(run)
    if not run.finished:
        with stopping_on_signals(run):
            train(run)
    if run.finished and not (folder / RESULT / "figures.json").exists():
        _write_result(experiment, prepared)
    return run


def _write_result(experiment: ClipExperiment, prepared: PreparedClip) -> None:
    run, tokenizer = prepared.run, prepared.tokenizer
    assert isinstance(run.objective, ClipObjective)
    towers = run.objective.towers.cpu()
    with whole_folder(run.folder / RESULT) as temporary:
        save_towers(towers, tokenizer, experiment.towers, temporary)
        rounded, _ = load_towers(temporary)  # what is measured is what is shipped
        figures = zero_shot(experiment, rounded, tokenizer)
        weights = ("model.safetensors", "image_tower.safetensors")
        about = {
            "figures": figures,
            "images_seen": run.images_seen,
            "seed": experiment.seed,
            "trained_on": prepared.trained_on,
            "sha256": {name: sha256_of_file(temporary / name) for name in weights},
            "environment": environment(),
            "sfumato": __version__,
            "date": now()[:10],
        }
        write_json(temporary / "figures.json", about)
        write_text(temporary / "README.md", model_card(experiment, about))


@torch.no_grad()
def zero_shot(
    experiment: ClipExperiment, towers: ClipTowers, tokenizer: "CLIPTokenizer"
) -> dict[str, Any]:
    """Accuracy on real test images by held-out captions: one caption a class, template by template.

    For each set of classes: the mean over its held-out templates, each of them, and the interval
    of the mean's images.
    """
    towers = towers.eval()
    found = {}
    for name, group in experiment.datasets.items():
        test = load_records(_data(group.sources[-1], group), "test")
        embeddings = towers.embed_uint8(test.images)
        right = {}
        for template in group.held_out:
            captions = captions_from_templates([template], test.class_names)
            ids = tokenize(tokenizer, captions, positions=experiment.towers.positions)
            right[template] = int((towers.classify(embeddings, ids) == test.labels).sum())
        mean = wilson(round(sum(right.values()) / len(right)), len(test))
        found[name] = {
            "accuracy": mean.value,
            "low": mean.low,
            "high": mean.high,
            "images": len(test),
            "by_template": {template: count / len(test) for template, count in right.items()},
            "test_images": test.description,
        }
    return found


def model_card(experiment: ClipExperiment, about: dict[str, Any]) -> str:
    """The README of a finished encoder: data, command, seed, hardware, figures."""
    machine = about["environment"]
    lines = [
        f"# {experiment.name}: a small CLIP for {IMAGE_PX}-pixel images",
        "",
        "Made by `sfumato train clip`. It knows the words of its captions and nothing else: it is",
        "no substitute for a CLIP trained on millions of pictures.",
        "",
        f"- Trained on: {about['trained_on']}.",
        f"- {about['images_seen']:,} images seen, seed {about['seed']}, "
        f"sfumato {about['sfumato']}, torch {machine['torch']}, {machine['threads']} threads, "
        f"{machine['accelerator'] or machine['machine']}, {about['date']}.",
        "- Loss: symmetric cross-entropy with all pairs of a class as positives; up to "
        f"{experiment.training.distractors} unrelated words in half of the captions.",
        "- Weights are float16; every figure is of the rounded weights.",
        "",
        "## Zero-shot accuracy on real test images",
        "",
        "One caption a class, from templates that were never trained on.",
        "",
        "| classes | held-out template | accuracy |",
        "| --- | --- | --- |",
    ]
    for name, figures in about["figures"].items():
        for template, accuracy in figures["by_template"].items():
            lines.append(f"| {name} | {template} | {100 * accuracy:.1f} % |")
        lines.append(
            f"| {name} | mean of {len(figures['by_template'])} | "
            f"**{100 * figures['accuracy']:.1f} %** of {figures['images']:,} |"
        )
    lines += ["", "## Captions that were trained on", ""]
    for name, group in experiment.datasets.items():
        lines += [f"- {name}: " + "; ".join(f"`{template}`" for template in group.caption)]
    return "\n".join(lines) + "\n"


def finished_figures(folder: Path) -> dict[str, Estimate]:
    """The zero-shot figures of a finished run, by set of classes."""
    figures = read_json(folder / RESULT / "figures.json")["figures"]
    return {
        name: wilson(round(values["accuracy"] * values["images"]), values["images"])
        for name, values in figures.items()
    }
