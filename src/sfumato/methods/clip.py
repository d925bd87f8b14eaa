"""Training the small CLIP, and its zero-shot accuracy on real images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sfumato import __version__
from sfumato.base.environment import environment, now
from sfumato.base.errors import ConfigError, InputError, nearest
from sfumato.base.files import read_json, sha256_of_file, whole_folder, write_json, write_text
from sfumato.config.schema import ClassSet, ClipExperiment
from sfumato.config.sections import DataConfig, TowersConfig
from sfumato.data.captions import captions_from_templates
from sfumato.data.loading import DeviceBatches
from sfumato.data.records import Records, Split, load_records
from sfumato.evaluation.metrics.intervals import macro_mean, wilson
from sfumato.text.bundled import write_known_words
from sfumato.text.sentences import frame_words, with_sentences
from sfumato.text.tokenizer import train_tokenizer, vocabulary_corpus
from sfumato.text.towers import (
    IMAGE_PX,
    TOWERS_FILE,
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


SENTENCES = 40
"""Sentences around each phrase of a set of classes."""


@dataclass(frozen=True, kw_only=True)
class ClassData:
    """One split of every set of classes, side by side; `own_captions` are those without sentences
    around them."""

    images: Tensor
    labels: Tensor
    class_names: list[str]
    captions: list[list[str]]
    own_captions: list[str]
    mirrored: Tensor
    apart: Tensor
    description: str


def load_class_data(experiment: ClipExperiment, split: Split) -> ClassData:
    """Images (N, 3, 32, 32) uint8 with labels counted over all sets of classes."""
    images, labels, names, captions, own, mirrored, about = [], [], [], [], [], [], []
    groups = list(experiment.datasets.values())
    sets = []
    for number, group in enumerate(groups):
        its_images, its_labels, classes, description = load_class_set(group, split)
        rows = torch.arange(group.images or len(its_labels)) % len(its_labels)
        images.append(its_images[rows])
        labels.append(its_labels[rows] + len(names))
        names += classes
        mirrored += [group.mirrored] * len(classes)
        sets += [number] * len(classes)
        templates = with_sentences(group.caption, group.phrases, each=SENTENCES)
        texts = captions_from_templates(templates, classes)
        captions += [texts[label :: len(classes)] for label in range(len(classes))]
        own += captions_from_templates(group.caption, classes)
        about.append(description)
    # Of one image several sets may say what is true, such as its style and its artist.
    same_images = torch.tensor([[a.sources == b.sources for a in groups] for b in groups])
    of = torch.tensor(sets)
    return ClassData(
        images=torch.cat(images),
        labels=torch.cat(labels),
        class_names=names,
        captions=captions,
        own_captions=own,
        mirrored=torch.tensor(mirrored),
        apart=~same_images[of][:, of] | (of[:, None] == of),
        description="; ".join(about),
    )


def load_class_set(group: ClassSet, split: Split) -> tuple[Tensor, Tensor, list[str], str]:
    """The images (N, 3, 32, 32) uint8 of one set's classes that are not left out, their labels
    (N,), the names of the classes, and a description."""
    parts = [load_records(_data(source, group), split) for source in group.sources]
    classes = list(parts[0].class_names)
    for part, source in zip(parts, group.sources, strict=True):
        if list(part.class_names) != classes:
            raise ConfigError(
                f"datasets: {source} has other classes than {group.sources[0]}.",
                hint="Sources of one set share their classes; give it a set of its own.",
            )
    images = torch.cat([part.images[:] for part in parts])
    labels = torch.cat([part.labels for part in parts])
    kept = _classes_kept(group, classes)
    new = torch.full((len(classes),), -1)
    new[kept] = torch.arange(len(kept))
    rows = new[labels] >= 0
    description = "; ".join(part.description for part in parts)
    return images[rows], new[labels[rows]], [classes[label] for label in kept], description


def _classes_kept(group: ClassSet, classes: Sequence[str]) -> list[int]:
    """The classes that are trained on: enough images, and not left out by name."""
    if unknown := set(group.without) - set(classes):
        raise ConfigError(
            f"datasets: without: {group.sources[0]} has no class '{min(unknown)}'.",
            hint=nearest(min(unknown), classes),
        )
    counts = sum(
        load_records(_data(source, group), "train").labels.bincount(minlength=len(classes))
        for source in group.sources
    )
    assert isinstance(counts, Tensor)
    return [
        label
        for label, name in enumerate(classes)
        if name not in group.without and counts[label] >= group.fewest
    ]


def _data(source: str, group: ClassSet) -> DataConfig:
    return DataConfig(
        source=source,
        resolution=IMAGE_PX,
        channels=3,
        caption=group.caption,
        label_column=group.label_column,
        fit=group.fit,
    )


@dataclass(kw_only=True)
class ClipRun(Run):
    """A run, its tokenizer, its captions and a description of the images that it trains on."""

    tokenizer: "CLIPTokenizer"
    captions: Sequence[str]
    trained_on: str


def _build(experiment: ClipExperiment, folder: Path, device: torch.device, world: World) -> ClipRun:
    data = load_class_data(experiment, "train")
    towers, tokenizer = _towers(experiment, data)
    training = experiment.training
    objective = ClipObjective(
        towers.to(device),
        class_texts(data, tokenizer, positions=experiment.towers.positions),
        optimizer=training.optimizer,
        captions_per_class=training.captions_per_class,
        distractors=training.distractors,
        precision=training.precision,
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
        captions=data.own_captions,
        trained_on=data.description,
    )


def _towers(experiment: ClipExperiment, data: ClassData) -> tuple[ClipTowers, "CLIPTokenizer"]:
    """The towers as they begin, and the tokenizer; `ConfigError` for towers of other sizes."""
    if experiment.text_from is None:
        tokenizer = train_tokenizer(
            vocabulary_corpus(data.own_captions), vocab_size=experiment.vocabulary
        )
        return build_towers(experiment.towers, tokenizer, seed=experiment.seed), tokenizer
    folder = Path(experiment.text_from)
    if not (folder / TOWERS_FILE).is_file():
        raise InputError(
            f"text_from: {folder} is not the folder of a CLIP.",
            hint="Give the folder clip/ of a run of `sfumato train clip`.",
        )
    towers, tokenizer = load_towers(folder)
    if TowersConfig.model_validate(read_json(folder / TOWERS_FILE)) != experiment.towers:
        raise ConfigError(
            f"text_from: the towers of {folder} have other sizes than `towers` says.",
            hint=f"Copy those of {folder / TOWERS_FILE}.",
        )
    towers.image.requires_grad_(True)
    towers.log_scale.requires_grad_(True)
    return towers, tokenizer


def class_texts(data: ClassData, tokenizer: "CLIPTokenizer", *, positions: int) -> ClassTexts:
    """Every class's captions as token ids (K, T, L); few captions are repeated up to T."""
    most = max(len(captions) for captions in data.captions)
    filled = [(captions * -(-most // len(captions)))[:most] for captions in data.captions]
    ids = tokenize(tokenizer, [c for captions in filled for c in captions], positions=positions)
    return ClassTexts(
        ids=ids.view(len(filled), most, -1),
        mirrored=data.mirrored,
        apart=data.apart,
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
        write_known_words(temporary, [*run.captions, frame_words()], subject=subject)
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
        last = group.model_copy(update={"sources": group.sources[-1:]})
        images, labels, classes, description = load_class_set(last, "test")
        embeddings = towers.embed_uint8(images)
        right = {}
        for template in group.held_out:
            ids = tokenize(
                tokenizer,
                captions_from_templates([template], classes),
                positions=experiment.towers.positions,
            )
            right[template] = towers.classify(embeddings, ids) == labels
        share = torch.stack(list(right.values())).double().mean(0)
        mean = wilson(round(float(share.sum())), len(labels))
        macro = macro_mean(share, labels)
        found[name] = {
            "accuracy": mean.value,
            "low": mean.low,
            "high": mean.high,
            "macro": {"accuracy": macro.value, "low": macro.low, "high": macro.high},
            "classes": classes,
            "images": len(labels),
            "by_template": {one: float(hit.double().mean()) for one, hit in right.items()},
            "test_images": description,
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
        *_an_epoch(experiment),
        *_begun_with(experiment),
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
    lines += ["", "| classes | chance | mean over classes (95 % interval) |", "| --- | --- | --- |"]
    for name, figures in about["figures"].items():
        macro, count = figures["macro"], len(figures["classes"])
        mean, low, high = (f"{100 * macro[key]:.1f}" for key in ("accuracy", "low", "high"))
        lines.append(f"| {count} of {name} | {100 / count:.1f} % | {mean} % ({low} - {high}) |")
    lines += ["", "## Captions that were trained on", ""]
    for name, group in experiment.datasets.items():
        lines += [f"- {name}: " + "; ".join(f"`{template}`" for template in group.caption)]
        if group.phrases:
            phrases = "; ".join(f"`{phrase}`" for phrase in group.phrases)
            lines += [f"  - and {SENTENCES} English sentences around each of: {phrases}"]
    lines += ["", "## Classes", ""]
    for name, figures in about["figures"].items():
        lines += [f"- {name}: {', '.join(figures['classes'])}"]
    return "\n".join(lines) + "\n"


def _an_epoch(experiment: ClipExperiment) -> list[str]:
    given = [
        f"{name} {group.images:,}" for name, group in experiment.datasets.items() if group.images
    ]
    if not given:
        return []
    return [
        "- Images of an epoch, the first of each set, repeated where there are fewer: "
        f"{', '.join(given)}."
    ]


def _begun_with(experiment: ClipExperiment) -> list[str]:
    if experiment.text_from is None:
        return []
    return ["- It began with the towers of a finished CLIP; the text tower was kept as it was."]


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
