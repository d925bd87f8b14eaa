"""The judge of a data set: a classifier trained on its judge split, where it has one of its own on
images that the generator never sees."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.base.errors import DamagedDataError, InputError
from sfumato.base.files import (
    cache_folder,
    make_folder,
    read_json,
    sha256_of_file,
    whole_folder,
    write_json,
)
from sfumato.base.images import to_float
from sfumato.data.config import DataConfig
from sfumato.data.loading import DeviceBatches
from sfumato.data.prepared import MappedImages
from sfumato.data.sources import Records, load_records, open_images, source_identity
from sfumato.metrics.intervals import Proportion, wilson
from sfumato.models.classifier import Classifier, build_classifier
from sfumato.training.loop import Run, train
from sfumato.training.objectives import ClassifierObjective
from sfumato.training.optimizer import OptimizerConfig
from sfumato.training.state import load_state, save_state

RECIPE = {"seed": 0, "batch_size": 64, "images": 15_000, "format": 1}
OPTIMIZER = OptimizerConfig(lr=2e-3, weight_decay=0.05, warmup_images=1_000, decay="cosine")
_EVALUATION_ROWS = 256


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A trained classifier, its accuracy on real test images, and what it is."""

    classifier: Classifier
    test_accuracy: Proportion
    identity: str
    description: str

    def __call__(self, images: Tensor | MappedImages) -> tuple[Tensor, Tensor]:
        """uint8 (N, C, H, W) -> predicted labels (N,) and features (N, D), float32."""
        return classify(self.classifier, images)


@torch.no_grad()
def classify(classifier: Classifier, images: Tensor | MappedImages) -> tuple[Tensor, Tensor]:
    """uint8 (N, C, H, W) -> predicted labels (N,) and features (N, D), a part at a time."""
    labels, features = [], []
    for part in images.split(_EVALUATION_ROWS):
        values = classifier.features(to_float(part, (-1.0, 1.0)))
        features.append(values)
        labels.append(classifier.head(values).argmax(1))
    return torch.cat(labels), torch.cat(features)


def load_judge(data: DataConfig, *, on_training: Callable[[str], None] | None = None) -> Judge:
    """The data set's judge: from the cache, or trained (once) and put there.

    `on_training` is told with a sentence when it has to be trained. `InputError` for a data set
    without classes to tell apart.
    """
    test = load_records(data, "test")
    if len(test.class_names) < 2:
        raise InputError(
            f"{data.source} has no classes, so that no judge can be trained to tell them apart.",
            mend="Agreement needs two classes or more: put the images into a folder for each, or "
            "name a column of labels with data.label_column.",
        )
    identity = source_identity(data)
    key = {
        "source": identity,
        "resolution": data.resolution,
        "channels": data.channels,
        "fit": data.fit,
        "split_seed": data.split_seed,
        "recipe": RECIPE,
        "optimizer": OPTIMIZER.model_dump(),
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    folder = cache_folder() / "judges" / f"{identity}-{data.resolution}px-{digest}"
    if not (folder / "judge.json").exists():
        records = load_records(data, "judge")
        if on_training is not None:
            own = "judge" in open_images(data).parts
            whose = "that the generator never sees" if own else "of the training part"
            on_training(
                f"Training the judge on {len(records):,} real images {whose} "
                f"({RECIPE['images']:,} images, once; kept in {folder})"
            )
        _train(records, folder, key)
    return _open(folder, test)


def _train(records: Records, folder: Path, key: dict[str, Any]) -> None:
    classifier = build_classifier(
        channels=records.images.shape[1], classes=len(records.class_names), seed=RECIPE["seed"]
    )
    device = torch.device("cpu")
    run = Run(
        folder=folder,
        objective=ClassifierObjective(classifier, OPTIMIZER),
        batches=DeviceBatches(
            records, seed=RECIPE["seed"], batch_size=RECIPE["batch_size"], device=device
        ),
        seed=RECIPE["seed"],
        total_images=RECIPE["images"],
        device=device,
    )
    train(run)
    make_folder(folder.parent)
    with whole_folder(folder) as temporary:
        file = temporary / "classifier.safetensors"
        save_state(classifier.state_dict(), file)
        write_json(
            temporary / "judge.json",
            {
                "made_from": key,
                "settings": classifier.settings,
                "trained_on": records.description,
                "sha256": sha256_of_file(file),
            },
        )


def _open(folder: Path, test: Records) -> Judge:
    about = read_json(folder / "judge.json")
    file = folder / "classifier.safetensors"
    if not file.exists() or sha256_of_file(file) != about["sha256"]:
        raise DamagedDataError(
            f"The judge in {folder} is damaged.", mend="Remove that folder; it is made again."
        )
    classifier = Classifier(**about["settings"])
    classifier.load_state_dict(load_state(file))
    classifier.eval().requires_grad_(False)
    predicted, _ = classify(classifier, test.images)
    return Judge(
        classifier=classifier,
        test_accuracy=wilson(int((predicted == test.labels).sum()), len(test)),
        identity=f"{folder.name} sha256:{about['sha256'][:16]}",
        description=f"convolutional classifier trained on {about['trained_on']}",
    )
