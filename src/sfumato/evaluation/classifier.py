"""The classifier of an evaluation: it tells the class of an image, with a known accuracy.

It is our own ResNet, trained once and kept or trained by `sfumato train classifier`; any image
classifier of transformers; or a network with random weights, as a baseline.
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sfumato.base.errors import DamagedDataError, InputError
from sfumato.base.files import cache_folder, read_json, sha256_of_file
from sfumato.config.schema import ClassifierTrainingConfig
from sfumato.config.sections import ClassifierConfig, DataConfig
from sfumato.data.captions import in_words
from sfumato.data.opening import source_identity
from sfumato.data.records import Records, load_records
from sfumato.data.survey import resolve
from sfumato.evaluation.classifier_training import (
    FILE_NAME,
    FORMAT,
    SPLIT_SETTINGS,
    WEIGHTS,
    check_classes,
    image_settings,
    train_once,
)
from sfumato.evaluation.extractors.extractor import (
    BatchedExtractor,
    Device,
    WeightsNotAtHandError,
    weights_sha256,
)
from sfumato.evaluation.extractors.small import classifier_features
from sfumato.evaluation.metrics.intervals import Estimate, wilson
from sfumato.models.classifier import Classifier, build_classifier
from sfumato.training.state import load_state

RESULT = "classifier"
"""Folder inside a run that holds the finished classifier."""
_LEAST_IMAGES, _EPOCHS, _MOST_IMAGES = 15_000, 6, 150_000


@dataclass(frozen=True, kw_only=True)
class ImageClassifier(BatchedExtractor):
    """An extractor of features with a linear `head`: `logits(features)` are of `class_names`.

    `identity` holds the hash of the weights. `test_accuracy` is on real images of the reference
    split, which it was neither trained nor tuned on.
    """

    identity: str
    description: str
    test_accuracy: Estimate
    class_names: Sequence[str]
    head: nn.Linear

    def logits(self, features: Tensor) -> Tensor:
        """(N, dim) -> (N, K)."""
        return self.head(features)

    def predict(self, images: Tensor) -> Tensor:
        """uint8 (N, C, H, W) -> predicted classes (N,)."""
        return self.logits(self(images)).argmax(1)

    def probabilities(self, images: Tensor) -> Tensor:
        """uint8 (N, C, H, W) -> (N, K) float32, each row with the sum 1."""
        return self.logits(self(images)).softmax(1)


def load_classifier(
    data: DataConfig,
    spec: str = "auto",
    *,
    device: Device = "cpu",
    log: Callable[[str], None] = lambda text: None,
) -> ImageClassifier:
    """The classifier that `spec` names, for the classes and images of `data`.

    `auto`: the data set's own, from the cache or trained once and put there, which is logged; a run
    folder of `sfumato train classifier`; a folder or Hub name of an image classifier of
    transformers; `untrained` or `untrained:SEED`: random weights, as in the paper.

    `InputError` for a data set without classes to tell apart, and for a classifier of other classes
    or of images of another form.
    """
    data = resolve(data)
    reference = load_records(data, "reference")
    check_classes(reference, data)
    if spec == "auto":  # it knows all images, also those that a model is not trained on
        return _open(_trained_once(data.model_copy(update={"left_out": ()}), log), data, device)
    name, _, seed = spec.partition(":")
    if name == "untrained":
        return _untrained(data, reference, seed or "0", device)
    folder = Path(spec).expanduser()
    if (folder / RESULT).is_dir():
        return _open(folder / RESULT, data, device)
    if (folder / FILE_NAME).is_file():
        return _open(folder, data, device)
    _refuse_unfinished(folder, spec)
    return _of_transformers(spec, reference, device)


def _refuse_unfinished(folder: Path, spec: str) -> None:
    """`InputError` for a run that has no classifier yet, and for a folder that is not there."""
    if (folder / "experiment.yaml").is_file():
        raise InputError(
            f"{folder} holds no finished classifier.",
            hint="`sfumato train classifier DATASET` makes one; a run that was stopped goes on "
            f"with --out {folder}.",
        )
    if not folder.exists() and (folder.parent.is_dir() or spec.startswith(("/", ".", "~"))):
        raise InputError(
            f"There is no classifier in {folder}: it does not exist.",
            hint="`sfumato train classifier DATASET --out FOLDER` makes one.",
        )


def _trained_once(data: DataConfig, log: Callable[[str], None]) -> Path:
    """The folder of the data set's classifier in the cache, trained where it is not there."""
    count = len(load_records(data, "classifier"))
    images = min(max(_LEAST_IMAGES, _EPOCHS * count), _MOST_IMAGES)
    training = ClassifierTrainingConfig(epochs=images / count)
    key = {
        "data": image_settings(data),
        "network": ClassifierConfig().model_dump(),
        "training": training.model_dump(),
        "format": FORMAT,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    name = f"{source_identity(data)}-{data.resolution}px-{digest}"
    folder = cache_folder() / "classifiers" / name
    if not (folder / FILE_NAME).exists():
        train_once(data, training, folder, log)
    return folder


def _open(folder: Path, data: DataConfig, device: Device) -> ImageClassifier:
    about = read_json(folder / FILE_NAME)
    file = folder / WEIGHTS
    try:
        if sha256_of_file(file) != about["sha256"]:
            raise DamagedDataError(f"{file}: its sha256 is not the recorded one.")
        names, own = list(about["class_names"]), about["data"]
        config = ClassifierConfig.model_validate(about["network"])
        classifier = build_classifier(config, channels=own["channels"], classes=len(names), seed=0)
        classifier.load_state_dict(load_state(file))
        temperature = float(about["temperature"])
    except (OSError, KeyError, RuntimeError, ValueError, DamagedDataError) as error:
        raise DamagedDataError(
            f"The classifier in {folder} is damaged ({str(error).rstrip('.')}).",
            hint="Remove that folder; the command that made it makes it again.",
        ) from error
    _check_form(own, data, folder)
    # Its own split, where it is of this data set: so it is never measured on what it was tuned on.
    if own["source"] == source_identity(data):
        data = data.model_copy(update={name: own[name] for name in SPLIT_SETTINGS})
    reference = load_records(data, "reference")
    rows = match_classes(names, reference.class_names, whose=f"The classifier in {folder}")
    whose = folder.resolve()  # a run's classifier has the name of the run
    whose = whose.parent if whose.name == RESULT else whose
    identity = f"{whose.name} sha256:{about['sha256'][:16]}"
    return _classifier(
        classifier_features(
            classifier, identity=identity, image_px=own["resolution"], device=device
        ),
        _head(classifier.head, rows, temperature=temperature),
        reference,
        identity=identity,
        description=f"ResNet of {_size(classifier):,} weights trained on {about['trained_on']}",
    )


def _check_form(own: dict[str, Any], data: DataConfig, folder: Path) -> None:
    """`InputError` where the classifier was made for images of another size, or grey ones alone."""
    assert data.channels != "auto"
    if own["resolution"] == data.resolution and own["channels"] >= data.channels:
        return

    def form(resolution: Any, channels: Any) -> str:
        return f"{resolution}x{resolution} {'grey' if channels == 1 else 'RGB'}"

    raise InputError(
        f"The classifier in {folder} was trained on {form(own['resolution'], own['channels'])} "
        f"images, but those to classify are {form(data.resolution, data.channels)}.",
        hint=f"Train one for them: sfumato train classifier {data.source} --set "
        f"data.resolution={data.resolution} --set data.channels={data.channels}",
    )


def _of_transformers(location: str, reference: Records, device: Device) -> ImageClassifier:
    from sfumato.evaluation.extractors.vision import load_image_classifier

    try:
        model = load_image_classifier(location, device=device, may_download=True)
    except WeightsNotAtHandError as error:
        raise InputError(
            f"There is no classifier '{location}'. {error.what}",
            hint="`sfumato train classifier DATASET --out FOLDER` makes one; without "
            "evaluation.classifier the data set's own is taken, or trained once.",
        ) from error
    rows = match_classes(model.labels, reference.class_names, whose=location)
    description = f"image classifier of {len(model.labels):,} classes, by transformers"
    if len(rows) < len(model.labels):
        description += f", asked for {len(rows):,} of them"
    return _classifier(
        model.extractor,
        _head(model.head, rows),
        reference,
        identity=model.identity,
        description=description,
    )


def match_classes(labels: Sequence[str], class_names: Sequence[str], *, whose: str) -> list[int]:
    """The place in `labels` of each of `class_names`, compared by their words in small letters.

    "7", "seven" and "7 - seven" are one; of "tabby, tabby cat" either name will do. `InputError`
    with both lists where a class has no label of its own.
    """
    places: dict[tuple[str, ...], int] = {}
    for place, label in enumerate(labels):
        for name in label.split(","):
            places.setdefault(_words(name), place)
    found = [places.get(_words(name)) for name in class_names]
    rows = [place for place in found if place is not None]
    if len(set(rows)) == len(class_names):
        return rows
    missing = [name for name, row in zip(class_names, found, strict=True) if row is None]
    problem = (
        f"{whose} does not know {_listed(missing)}"
        if missing
        else (f"{whose} has one label for several of the classes")
    )
    raise InputError(
        f"{problem}.\n  Its labels: {_listed(labels)}\n  The classes: {_listed(class_names)}",
        hint="Rename the labels in its config.json (id2label) or the folders of the images so "
        "that they agree, or choose another classifier.",
    )


def _words(name: str) -> tuple[str, ...]:
    words = re.findall(r"[^\W_]+", name.lower())
    return tuple(dict.fromkeys(in_words(word) for word in words))


def _listed(names: Sequence[str], most: int = 20) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(f"'{name}'" for name in names[:most]) + more


def _untrained(data: DataConfig, reference: Records, seed: str, device: Device) -> ImageClassifier:
    if not seed.isdecimal():
        raise InputError(
            f"untrained:{seed}: the seed must be a whole number.",
            hint="Give untrained:0, for example.",
        )
    classifier = random_classifier(reference, seed=int(seed))
    identity = f"untrained:{seed} sha256:{weights_sha256(classifier)[:16]}"
    return _classifier(
        classifier_features(
            classifier, identity=identity, image_px=reference.images.shape[-1], device=device
        ),
        _head(classifier.head, range(len(reference.class_names))),
        reference,
        identity=identity,
        description=f"ResNet of {_size(classifier):,} weights drawn from seed {seed}, never "
        "trained",
    )


def random_classifier(records: Records, *, seed: int) -> Classifier:
    return build_classifier(
        channels=records.images.shape[1], classes=len(records.class_names), seed=seed
    )


def _classifier(
    extractor: BatchedExtractor,
    head: nn.Linear,
    reference: Records,
    *,
    identity: str,
    description: str,
) -> ImageClassifier:
    """The classifier with its accuracy on `reference`."""
    predicted = head(extractor(reference.images[:])).argmax(1)
    return ImageClassifier(
        **vars(extractor),
        identity=identity,
        description=description,
        test_accuracy=wilson(int((predicted == reference.labels).sum()), len(reference)),
        class_names=reference.class_names,
        head=head,
    )


def _head(linear: nn.Linear, rows: Sequence[int], *, temperature: float = 1.0) -> nn.Linear:
    """`rows` of a last layer, divided by `temperature`; on the CPU, where features are."""
    biased = linear.bias is not None
    head = nn.utils.skip_init(nn.Linear, linear.in_features, len(rows), bias=biased)
    assert isinstance(head, nn.Linear)
    head.weight.data = linear.weight.detach().cpu()[list(rows)] / temperature
    if biased:
        head.bias.data = linear.bias.detach().cpu()[list(rows)] / temperature
    head.requires_grad_(False)
    return head


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
