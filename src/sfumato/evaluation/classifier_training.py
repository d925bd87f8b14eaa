"""Training a data set's own classifier, choosing its weights, and measuring it on real images."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato import __version__
from sfumato.base.environment import environment, now
from sfumato.base.errors import ConfigError, InputError
from sfumato.base.files import sha256_of_file, whole_folder, write_json
from sfumato.base.words import counted
from sfumato.config.schema import ClassifierTrainingConfig
from sfumato.config.sections import ClassifierConfig, DataConfig
from sfumato.data.loading import DeviceBatches
from sfumato.data.opening import open_images, source_identity
from sfumato.data.records import Records, load_records
from sfumato.evaluation.extractors.small import classifier_features
from sfumato.evaluation.metrics.adherence import class_accuracy, confusion_matrix
from sfumato.evaluation.metrics.calibration import fit_temperature, negative_log_likelihood
from sfumato.models.classifier import Classifier, build_classifier
from sfumato.training.loop import Run, train
from sfumato.training.objectives.classifier import ClassifierObjective
from sfumato.training.state import save_state

SPLIT_SETTINGS = ("split_seed", "test_share", "tuning_share")


def train_once(
    data: DataConfig, training: ClassifierTrainingConfig, folder: Path, log: Callable[[str], None]
) -> None:
    """Train the classifier of a data set into its folder in the cache."""
    records = load_records(data, "classifier")
    own = "classifier" in open_images(data).parts
    whose = "that the model never sees" if own else "of the training part"
    log(
        f"Training the classifier on {counted(len(records), 'real image')} {whose} "
        f"({counted(training.total_images(len(records)), 'image')}, once; kept in {folder})"
    )
    run = classifier_run(
        data,
        folder,
        network=ClassifierConfig(),
        training=training,
        seed=0,
        device=torch.device("cpu"),
    )
    train(run)
    write_classifier(run, data, folder)


def classifier_run(
    data: DataConfig,
    folder: Path,
    *,
    network: ClassifierConfig,
    training: ClassifierTrainingConfig,
    seed: int,
    device: torch.device,
) -> Run:
    """The training of a classifier on its split of `data`, from its start and without hooks."""
    records = load_records(data, "classifier")
    check_classes(records, data)
    if training.shift >= (size := min(records.images.shape[2:])):
        raise ConfigError(
            f"training.shift={training.shift} moves images of {size} pixels out of sight.",
            hint="A sixteenth of their size is usual.",
        )
    classifier = build_classifier(
        network, channels=records.images.shape[1], classes=len(records.class_names), seed=seed
    )
    return Run(
        folder=folder,
        objective=ClassifierObjective(classifier.to(device), training),
        batches=DeviceBatches(records, seed=seed, batch_size=training.batch_size, device=device),
        seed=seed,
        total_images=training.total_images(len(records)),
        device=device,
        keep_checkpoints=training.keep_checkpoints,
    )


def write_classifier(run: Run, data: DataConfig, folder: Path) -> None:
    """Choose weights and temperature on the tuning split, measure on the reference split, and write
    `folder` with weights and classifier.json.

    Without a tuning split the last weights are taken, at the temperature 1.
    """
    objective = run.objective
    assert isinstance(objective, ClassifierObjective)
    weights = {"last": objective.classifier, "average": objective.average.module}
    chosen, tuning = _chosen(weights, data)
    reference = load_records(data, "reference")
    predicted = logits_of(weights[chosen], reference.images[:]).argmax(1)
    names = list(reference.class_names)
    confusion = confusion_matrix(reference.labels, predicted, classes=len(names))
    with whole_folder(folder) as temporary:
        save_state(weights[chosen].state_dict(), file := temporary / WEIGHTS)
        about = {
            "format": FORMAT,
            "network": objective.classifier.config.model_dump(mode="json"),
            "weights": chosen,
            "temperature": tuning["weights"][chosen]["temperature"] if tuning else 1.0,
            "tuning": tuning,
            "class_names": names,
            "data": image_settings(data),
            "trained_on": load_records(data, "classifier").description,
            "images_seen": run.images_seen,
            "seed": run.seed,
            "test_images": reference.description,
            "test_accuracy": asdict(class_accuracy(confusion).overall),
            "confusion": confusion.tolist(),
            "sha256": sha256_of_file(file),
            "environment": environment(),
            "sfumato": __version__,
            "date": now()[:10],
        }
        write_json(temporary / FILE_NAME, about)


def _chosen(weights: dict[str, Classifier], data: DataConfig) -> tuple[str, dict[str, Any] | None]:
    """The weights with the smallest negative log-likelihood on the tuning split, and what was found
    there; the last ones, and None, without such a split."""
    if not data.tuning_share:
        return "last", None
    records = load_records(data, "tuning")
    found = {name: _calibrated(network, records) for name, network in weights.items()}
    chosen = min(found, key=lambda name: found[name]["negative_log_likelihood"])
    return chosen, {"images": records.description, "weights": found}


def _calibrated(classifier: Classifier, records: Records) -> dict[str, float]:
    """The temperature for `records`, and what the network is worth on them at it."""
    logits = logits_of(classifier, records.images[:])
    temperature = fit_temperature(logits, records.labels)
    return {
        "accuracy": float((logits.argmax(1) == records.labels).double().mean()),
        "temperature": temperature,
        "negative_log_likelihood": negative_log_likelihood(
            logits, records.labels, temperature=temperature
        ),
    }


FILE_NAME, WEIGHTS = "classifier.json", "classifier.safetensors"


FORMAT = 4


def check_classes(records: Records, data: DataConfig) -> None:
    """`InputError` for a data set without two classes to tell apart."""
    if len(records.class_names) < 2:
        raise InputError(
            f"{data.source} has no classes, so no classifier can be trained to tell them apart.",
            hint="Class accuracy needs two classes or more: put the images into a folder for each, "
            "or name a column of labels with data.label_column.",
        )


def logits_of(classifier: Classifier, images: Tensor) -> Tensor:
    """(N, K) of uint8 (N, C, H, W); the network is left on the CPU, in evaluation mode."""
    extractor = classifier_features(classifier, identity="", image_px=images.shape[-1])
    with torch.no_grad():
        return classifier.head(extractor(images))


def image_settings(data: DataConfig) -> dict[str, Any]:
    """What the images of every split depend on, without the place of the source."""
    names = ("resolution", "channels", "fit", *SPLIT_SETTINGS)
    return {"source": source_identity(data), **{name: getattr(data, name) for name in names}}
