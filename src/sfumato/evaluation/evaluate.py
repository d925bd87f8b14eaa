"""`evaluate`: every metric of a model's samples, or of any images, against real ones."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from sfumato.base.environment import command
from sfumato.base.errors import DamagedDataError, InputError
from sfumato.base.files import folder_for, write_bytes
from sfumato.base.lock import locked
from sfumato.base.words import counted
from sfumato.config.sections import DataConfig
from sfumato.evaluation.baselines import (
    FORMAT,
    can_balance,
    perturbation_baselines,
    real_baseline,
)
from sfumato.evaluation.card import (
    FILE_NAME,
    Card,
    Classes,
    ClassifierInfo,
    ReferenceInfo,
    Row,
    read_card,
)
from sfumato.evaluation.confusion import confusion_panels
from sfumato.evaluation.image_set import ImageSet, OnImages
from sfumato.evaluation.metrics.adherence import class_accuracy_of
from sfumato.evaluation.metrics.registry import all_metrics
from sfumato.evaluation.pictures import write_pictures
from sfumato.evaluation.reference import Reference, Scores
from sfumato.evaluation.sampled_images import complete
from sfumato.evaluation.sight import blind_metrics, without_blind
from sfumato.evaluation.store import digest_of, file_name, write_tensors
from sfumato.evaluation.task import Evaluated, Task, open_task
from sfumato.generation.loading import resolve_device
from sfumato.training.distributed import World, open_world

CUSTOMARY_COUNT = 5_000
"""Below so many images a Frechet distance says more of their number than of the model."""


def evaluate(
    subject: Evaluated,
    *,
    data: DataConfig | str | None = None,
    out: Path | str | None = None,
    device: str = "auto",
    loading: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    log: Callable[[str], None] = lambda text: None,
    on_images: OnImages = lambda what, done, total: None,
    **settings: Any,
) -> Card:
    """Compute every metric, and write the card with pictures into a folder.

    Args:
        subject: a model, an `ImageSet` or several, or a path: a run, an exported folder, a bundle,
            a folder of images, an .npz file.
        data: the real images, where `subject` does not name them, or others than it names.
        out: the folder. It gets a number where it holds another evaluation. Without it the folder
            lies in the run, or beside the images.
        loading: how a model's path is opened, as `load` takes it, such as `{"dtype": "bfloat16"}`.
        overrides: `section.key=value` of the sections data, sampling and evaluation.
        settings: settings of the section evaluation, such as `count=500, guidance_scales=[1, 3]`;
            those not given are the run's own.

    In each of several processes (torchrun), the ranks share the sampling and get the same card.
    Killed and called again with the same arguments it goes on: images and features that are there
    are not made again. Raises what opening the model, the data, the classifier and the extractors
    raises.
    """
    named = [f"evaluation.{name}={json.dumps(value)}" for name, value in settings.items()]
    with open_world(resolve_device(device)) as world:
        how = {"device": device, **(loading or {})}
        task = open_task(subject, data, [*overrides, *named], how, log)
        if world.is_main:
            return _evaluated(task, out, world, log, on_images)
        folder = Path(world.exchange("folder", "")[0])
        if (card := _finished_card(folder)) is None:
            complete(_kept(task, folder), on_images, world=world)
            world.exchange("card", "")
            card = _finished_card(folder)
    if card is None:
        raise InputError(
            f"Rank {world.rank} does not see {folder}, where rank 0 keeps the images.",
            hint="Give --out a folder that all processes see.",
        )
    return card


def _evaluated(
    task: Task,
    out: Path | str | None,
    world: World,
    log: Callable[[str], None],
    on_images: OnImages,
) -> Card:
    """The card, by the rank that measures; the others sample their share of the images."""
    reference = Reference.load(
        task.data, task.config, device=task.device, log=log, on_images=on_images
    )
    base = task.base if out is None else Path(out)
    folder = folder_for(base, _request(task, reference), log=log)
    known = _finished_card(folder)
    with locked(folder) if known is None else nullcontext():
        # Another process may have finished it while this one waited for the lock.
        known = known or _finished_card(folder)
        world.exchange("folder", str(folder.resolve()))
        if known is not None:
            return known
        sets = _kept(task, folder)
        complete(sets, on_images, world=world)
        card = _card(task, reference, [_row(reference, one, folder) for one in sets])
        write_pictures(folder, sets, reference)
        _write_confusion(folder, card)
        card = card.save(folder)
    world.exchange("card", "")
    return card


def _kept(task: Task, folder: Path) -> list[ImageSet]:
    """The image sets, those that a model samples kept in `folder`."""
    return [one.kept_in(folder / "images") if one.name else one for one in task.sets]


# The card -----------------------------------------------------------------------------------------


def _request(task: Task, reference: Reference) -> dict[str, object]:
    """Everything that the metrics depend on: equal requests have equal cards."""
    return {
        "format": FORMAT,
        "metrics": [metric.name for metric in all_metrics().values() if metric.default],
        "images": [one.key for one in task.sets],
        "reference": digest_of(reference.images.settings),
        "reference_count": reference.images.count,
        "training": digest_of(reference.training.settings),
        "extractors": {key: one.name for key, one in reference.extractors.items()},
        "asked_for": list(task.config.extractors),
        "baseline_pairs": task.config.baseline_pairs,
    }


def _finished_card(folder: Path) -> Card | None:
    """The card of a finished evaluation; a damaged one is made again from what is kept beside."""
    if not (folder / FILE_NAME).exists():
        return None
    try:
        return read_card(folder).model_copy(update={"from_cache": True})
    except DamagedDataError:
        return None


def values_file(folder: Path, title: str) -> Path:
    """Where an evaluation keeps what it knows of a row image by image."""
    return folder / "values" / f"{file_name(title)}.safetensors"


def _row(reference: Reference, images: ImageSet, folder: Path) -> Row:
    """The metrics of one set; the values image by image are kept for `compare`."""
    scores = reference.score(images)
    labels = {} if images.labels is None else {"labels": images.labels}
    write_tensors(values_file(folder, images.title), scores.values | labels)
    return Row(
        title=images.title,
        count=images.count,
        settings=dict(images.settings),
        nfe=images.nfe,
        seconds=images.seconds,
        metrics=_with_untrained(reference, images, scores),
        classes=_classes(reference, images),
        images=f"images/{images.name}" if images.name else "",
        notes=[*images.notes, *scores.notes],
    )


def _classes(reference: Reference, images: ImageSet) -> Classes | None:
    if reference.classifier is None:
        return None
    found = class_accuracy_of(reference.features_of(images, "classifier"))
    if found is None:
        return None
    return Classes(
        names=list(reference.classifier.class_names),
        accuracy=list(found.classes),
        confusion=found.confusion.tolist(),
    )


def _write_confusion(folder: Path, card: Card) -> None:
    """`classes.png` beside the card: what the classifier sees, class by class."""
    known = [
        (f"{row.title}, {counted(row.count, 'image')}", row.classes)
        for row in [*card.rows, card.real]
        if row.classes is not None
    ]
    if known and (chart := confusion_panels(known)) is not None:
        write_bytes(folder / "classes.png", chart)


def _with_untrained(reference: Reference, images: ImageSet, scores: Scores) -> dict[str, Any]:
    """The metrics, and what untrained classifiers score where such a one was asked for."""
    classifier = reference.classifier
    if classifier is None or images.labels is None:
        return scores.metrics
    if not classifier.identity.startswith("untrained:"):
        return scores.metrics
    from sfumato.evaluation.untrained import over_seeds, untrained_accuracies

    found = untrained_accuracies(reference.data, images.images(), images.labels)
    summary = over_seeds(found, classes=len(classifier.class_names))
    return {**scores.metrics, "untrained_accuracy": summary}


def _real_row(reference: Reference, count: int) -> Row:
    """The reference images as a row of their own; scores that depend on the number at `count`."""
    metrics = [one for one in all_metrics().values() if one.default and one.real]
    of_count = [one.name for one in metrics if one.needs == "logits"]
    scores = reference.score(
        reference.images, [one.name for one in metrics if one.name not in of_count]
    )
    found = _with_untrained(reference, reference.images, scores)
    found |= reference.score(reference.images.first(count), of_count).metrics
    if reference.classifier is not None:
        found["class_accuracy"] = reference.classifier.test_accuracy
    return Row(
        title="real",
        count=reference.images.count,
        metrics=found,
        classes=_classes(reference, reference.images),
    )


def _card(task: Task, reference: Reference, rows: list[Row]) -> Card:
    count = task.sets[0].count
    balanced = task.sets[0].balanced and can_balance(reference, count)
    baselines, perturbations = {}, {}
    for key in reference.extractors:
        found = real_baseline(
            reference, key, count=count, pairs=task.config.baseline_pairs, balanced=balanced
        )
        if found is not None:
            baselines[key] = found
        if changed := perturbation_baselines(reference, key, count=count, balanced=balanced):
            perturbations[key] = changed
    blind = blind_metrics(reference, baselines, perturbations, count=count)
    classifier = reference.classifier
    card = Card(
        subject=task.subject,
        reference=ReferenceInfo(
            description=reference.records.description,
            digest=digest_of(reference.images.settings),
            count=reference.images.count,
            training_description=str(reference.training.settings["images"]),
        ),
        classifier=None if classifier is None else ClassifierInfo.of(classifier),
        extractors=list(reference.infos),
        rows=[without_blind(row, blind) for row in rows],
        real=_real_row(reference, count),
        baselines=baselines,
        perturbations=perturbations,
        blind=blind,
        command=command(),
    )
    return card.model_copy(update={"warnings": _warnings(card, reference)})


def _warnings(card: Card, reference: Reference) -> list[str]:
    count = card.rows[0].count
    warnings = [f"blind: {why}" for why in dict.fromkeys(card.blind.values())]
    labels = reference.images.labels
    chance = 0.0 if labels is None else float(labels.bincount().max()) / len(labels)
    accuracy = None if reference.classifier is None else reference.classifier.test_accuracy
    if accuracy is not None and accuracy.interval[0] <= chance:
        warnings.append(
            f"The classifier is right on {100 * accuracy.value:.0f} % of {accuracy.count:,} real "
            f"images, which guessing may do as well ({100 * chance:.0f} %): class accuracy and "
            "metrics of its features say nothing."
        )
    if count < CUSTOMARY_COUNT:
        known = "; ".join(
            f"{info.title} {value:.3g}"
            for info in card.extractors
            if (value := card.real_value(f"frechet.{info.key}")) is not None
        )
        warnings.append(
            f"A Frechet distance of {count:,} images lies above that of many "
            f"({CUSTOMARY_COUNT:,} or more are the custom): compare at equal numbers only."
            + (f" Real images of the same number score: {known}." if known else "")
        )
    if not card.baselines:
        warnings.append(
            f"There are less than {count:,} real training images, so there is no real-vs-real "
            "baseline."
        )
    return warnings
