"""Training the small CLIP, and its zero-shot accuracy on real images."""

from collections.abc import Sequence
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
from sfumato.evaluation.metrics.intervals import wilson
from sfumato.text.bundled import write_known_words
from sfumato.text.tokenizer import train_tokenizer, vocabulary_corpus
from sfumato.text.towers import (
    IMAGE_PX,
    ClipTowers,
    build_towers,
    load_towers,
    save_towers,
    tokenize,
)
from sfumato.training.distributed import World
from sfumato.training.loop import Run
from sfumato.training.objectives.clip import ClassTexts, ClipObjective
from sfumato.training.run import Method

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

RESULT, FILE_NAME = "clip", "figures.json"
"""Folder inside a run that holds the finished encoder, and its results in there."""


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


@dataclass(kw_only=True)
class ClipRun(Run):
    """A run, its tokenizer, its captions and a description of the images that it trains on."""

    tokenizer: "CLIPTokenizer"
    captions: Sequence[str]
    trained_on: str


def _build(experiment: ClipExperiment, folder: Path, device: torch.device, world: World) -> ClipRun:
    data = load_class_data(experiment, "train")
    captions = [caption for captions in data.captions for caption in captions]
    tokenizer = train_tokenizer(vocabulary_corpus(captions), vocab_size=experiment.vocabulary)
    training = experiment.training
    objective = ClipObjective(
        build_towers(experiment.towers, tokenizer, seed=experiment.seed).to(device),
        class_texts(data, tokenizer, positions=experiment.towers.positions),
        optimizer=training.optimizer,
        captions_per_class=training.captions_per_class,
        distractors=training.distractors,
    )
    records = Records(
        images=data.images,
        labels=data.labels,
        class_names=data.class_names,
        prompts=data.labels[:, None],  # captions are sampled for a class, not for an image
        captions=data.class_names,
        class_captions=data.class_names,
        description=data.description,
    )
    return ClipRun(
        folder=folder,
        objective=objective,
        batches=DeviceBatches(
            records, seed=experiment.seed, batch_size=training.batch_size, device=device
        ),
        seed=experiment.seed,
        total_images=training.images,
        device=device,
        provenance={"experiment": experiment.name},
        tokenizer=tokenizer,
        captions=captions,
        trained_on=data.description,
    )


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


def _finish(experiment: ClipExperiment, run: ClipRun) -> None:
    """Round the weights, measure them, and write `clip/`."""
    if (run.folder / RESULT / FILE_NAME).exists():
        return
    assert isinstance(run.objective, ClipObjective)
    towers = run.objective.towers.cpu()
    with whole_folder(run.folder / RESULT) as temporary:
        save_towers(towers, run.tokenizer, experiment.towers, temporary)
        subject = f"the classes of {' and '.join(experiment.datasets)}"
        write_known_words(temporary, run.captions, subject=subject)
        rounded, _ = load_towers(temporary)  # what is measured is what is shipped
        weights = ("model.safetensors", "image_tower.safetensors")
        about = {
            "figures": zero_shot(experiment, rounded, run.tokenizer),
            "images_seen": run.images_seen,
            "seed": experiment.seed,
            "trained_on": run.trained_on,
            "sha256": {name: sha256_of_file(temporary / name) for name in weights},
            "environment": environment(),
            "sfumato": __version__,
            "date": now()[:10],
        }
        write_json(temporary / FILE_NAME, about)
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


def _describe(experiment: ClipExperiment, run: ClipRun) -> Sequence[str]:
    results = read_json(run.folder / RESULT / FILE_NAME)["figures"]
    return (
        *(
            f"Zero-shot accuracy on real {name} test images, held-out captions: "
            f"{100 * one['accuracy']:.1f} % ({100 * one['low']:.1f} - {100 * one['high']:.1f})"
            for name, one in results.items()
        ),
        f"Use it with: sfumato train digits --set text.encoder={run.folder / RESULT}",
    )


CLIP = Method(schema=ClipExperiment, build=_build, finish=_finish, describe=_describe)
