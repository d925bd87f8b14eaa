"""Judges: classifiers that say of which class an image is, with their accuracy on real images.

A judge is our own ResNet, trained once and kept or trained by `sfumato train classifier`; any image
classifier of transformers; or a network with random weights, which shows what such a one is worth.
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from sfumato import __version__
from sfumato.base.environment import environment
from sfumato.base.errors import ConfigError, DamagedDataError, InputError
from sfumato.base.files import (
    cache_folder,
    read_json,
    sha256_of_file,
    whole_folder,
    write_json,
)
from sfumato.config.schema import ClassifierTrainingConfig
from sfumato.config.sections import ClassifierConfig, DataConfig
from sfumato.data.captions import in_words
from sfumato.data.loading import DeviceBatches
from sfumato.data.records import Records, load_records, open_images, source_identity
from sfumato.data.survey import resolve
from sfumato.evaluation.extractors.extractor import (
    BatchedExtractor,
    Device,
    WeightsNotAtHandError,
    weights_sha256,
)
from sfumato.evaluation.extractors.small import classifier_features
from sfumato.evaluation.metrics.agreement import agreement, confusion_matrix
from sfumato.evaluation.metrics.calibration import fit_temperature, negative_log_likelihood
from sfumato.evaluation.metrics.intervals import Proportion, wilson
from sfumato.models.classifier import Classifier, build_classifier
from sfumato.training.loop import Run, train
from sfumato.training.objectives.classifier import ClassifierObjective
from sfumato.training.state import load_state, save_state

FORMAT = 2
RESULT = "judge"
"""Folder inside a run that holds the finished judge."""
_LEAST_IMAGES, _EPOCHS, _MOST_IMAGES = 15_000, 6, 150_000
_SPLIT_SETTINGS = ("split_seed", "test_share", "tuning_share")


@dataclass(frozen=True, kw_only=True)
class Judge:
    """`head(extractor(images))` are logits of `class_names`; what it is, and what it is worth.

    `identity` holds the hash of the weights. `test_accuracy` is of real images of the reference
    split, which it was neither trained nor tuned on.
    """

    identity: str
    description: str
    test_accuracy: Proportion
    class_names: Sequence[str]
    extractor: BatchedExtractor
    head: nn.Linear

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (N, C, H, W) -> predicted labels (N,) and features (N, D), float32."""
        features = self.extractor(images)
        return self.head(features).argmax(1), features

    def probabilities(self, images: Tensor) -> Tensor:
        """uint8 (N, C, H, W) -> (N, K) float32, each row with the sum 1."""
        return self.head(self.extractor(images)).softmax(1)


def load_judge(
    data: DataConfig,
    spec: str = "auto",
    *,
    device: Device = "cpu",
    on_training: Callable[[str], None] | None = None,
) -> Judge:
    """The judge that `spec` names, for the classes and images of `data`.

    `auto`: the data set's own, from the cache or trained once and put there (`on_training` is told
    with a sentence); a run folder of `sfumato train classifier`; a folder or Hub name of an image
    classifier of transformers; `untrained` or `untrained:SEED`: random weights, as in the paper.

    `InputError` for a data set without classes to tell apart, and for a judge of other classes or
    of images of another form.
    """
    data = resolve(data)
    reference = load_records(data, "reference")
    check_classes(reference, data)
    if spec == "auto":
        return _open(_trained_once(data, on_training), data, device)
    name, _, seed = spec.partition(":")
    if name == "untrained":
        return _untrained(data, reference, seed or "0", device)
    folder = Path(spec).expanduser()
    if (folder / RESULT).is_dir():
        return _open(folder / RESULT, data, device)
    if (folder / "judge.json").is_file():
        return _open(folder, data, device)
    if (folder / "experiment.yaml").is_file():
        raise InputError(
            f"{folder} holds no finished judge.",
            hint="`sfumato train classifier DATASET` makes one; a run that was stopped goes on "
            f"with --out {folder}.",
        )
    if not folder.exists() and (folder.parent.is_dir() or spec.startswith(("/", ".", "~"))):
        raise InputError(
            f"There is no judge in {folder}: it does not exist.",
            hint="`sfumato train classifier DATASET --out FOLDER` makes one.",
        )
    return _of_transformers(spec, reference, device)


def check_classes(records: Records, data: DataConfig) -> None:
    """`InputError` for a data set without two classes to tell apart."""
    if len(records.class_names) < 2:
        raise InputError(
            f"{data.source} has no classes, so that no judge can be trained to tell them apart.",
            hint="Agreement needs two classes or more: put the images into a folder for each, or "
            "name a column of labels with data.label_column.",
        )


# Our own, trained ---------------------------------------------------------------------------------


def _trained_once(data: DataConfig, on_training: Callable[[str], None] | None) -> Path:
    """The folder of the data set's judge in the cache, trained where it is not there."""
    records = load_records(data, "classifier")
    images = min(max(_LEAST_IMAGES, _EPOCHS * len(records)), _MOST_IMAGES)
    network = ClassifierConfig()
    training = ClassifierTrainingConfig(epochs=images / len(records))
    key = {
        "data": _images_of(data),
        "network": network.model_dump(),
        # A setting that came later is left out where it changes nothing: the key stays the same.
        "training": training.model_dump(exclude=None if training.shift else {"shift"}),
        "format": FORMAT,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    folder = cache_folder() / "judges" / f"{source_identity(data)}-{data.resolution}px-{digest}"
    if (folder / "judge.json").exists():
        return folder
    if on_training is not None:
        own = "classifier" in open_images(data).parts
        whose = "that the generator never sees" if own else "of the training part"
        on_training(
            f"Training the judge on {len(records):,} real images {whose} "
            f"({images:,} images, once; kept in {folder})"
        )
    run = judge_run(
        data, folder, network=network, training=training, seed=0, device=torch.device("cpu")
    )
    train(run)
    write_judge(run, data, folder)
    return folder


def judge_run(
    data: DataConfig,
    folder: Path,
    *,
    network: ClassifierConfig,
    training: ClassifierTrainingConfig,
    seed: int,
    device: torch.device,
) -> Run:
    """The training of a judge on the judge's split of `data`, from its start and without hooks."""
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


def write_judge(run: Run, data: DataConfig, folder: Path) -> None:
    """Choose weights and temperature on the tuning split, measure on the reference split, and write
    `folder` with weights and judge.json.

    Without a tuning split the last weights are taken, at the temperature 1.
    """
    objective = run.objective
    assert isinstance(objective, ClassifierObjective)
    weights = {"last": objective.classifier, "average": objective.average.module}
    chosen, tuning = "last", None
    if data.tuning_share:
        records = load_records(data, "tuning")
        found = {name: _tuned(network, records) for name, network in weights.items()}
        chosen = min(found, key=lambda name: found[name]["negative_log_likelihood"])
        tuning = {"images": records.description, "weights": found}
    reference = load_records(data, "reference")
    predicted = _logits(weights[chosen], reference.images[:]).argmax(1)
    confusion = confusion_matrix(reference.labels, predicted, classes=len(reference.class_names))
    accuracy = agreement(confusion).overall
    with whole_folder(folder) as temporary:
        file = temporary / "classifier.safetensors"
        save_state(weights[chosen].state_dict(), file)
        about = {
            "format": FORMAT,
            "network": objective.classifier.config.model_dump(mode="json"),
            "weights": chosen,
            "temperature": tuning["weights"][chosen]["temperature"] if tuning else 1.0,
            "tuning": tuning,
            "class_names": list(reference.class_names),
            "data": _images_of(data),
            "trained_on": load_records(data, "classifier").description,
            "images_seen": run.images_seen,
            "seed": run.seed,
            "test_images": reference.description,
            "test_accuracy": {**asdict(accuracy), "value": accuracy.value},
            "confusion": confusion.tolist(),
            "sha256": sha256_of_file(file),
            "environment": environment(),
            "sfumato": __version__,
            "date": datetime.now(UTC).date().isoformat(),
        }
        write_json(temporary / "judge.json", about)


def _tuned(classifier: Classifier, records: Records) -> dict[str, float]:
    """The temperature for `records`, and what the network is worth on them at it."""
    logits = _logits(classifier, records.images[:])
    temperature = fit_temperature(logits, records.labels)
    return {
        "accuracy": float((logits.argmax(1) == records.labels).double().mean()),
        "temperature": temperature,
        "negative_log_likelihood": negative_log_likelihood(
            logits, records.labels, temperature=temperature
        ),
    }


def _logits(classifier: Classifier, images: Tensor) -> Tensor:
    """(N, K) of uint8 (N, C, H, W); the network is left on the CPU, in evaluation mode."""
    extractor = classifier_features(classifier, identity="", image_px=images.shape[-1])
    with torch.no_grad():
        return classifier.head(extractor(images))


def _images_of(data: DataConfig) -> dict[str, Any]:
    """What the images of every split depend on, without the place of the source."""
    names = ("resolution", "channels", "fit", *_SPLIT_SETTINGS)
    return {"source": source_identity(data), **{name: getattr(data, name) for name in names}}


def _open(folder: Path, data: DataConfig, device: Device) -> Judge:
    about = read_json(folder / "judge.json")
    file = folder / "classifier.safetensors"
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
            f"The judge in {folder} is damaged ({str(error).rstrip('.')}).",
            hint="Remove that folder; the command that made it makes it again.",
        ) from error
    _check_form(own, data, folder)
    # Its own split, where it is of this data set: so it is never measured on what it was tuned on.
    if own["source"] == source_identity(data):
        data = data.model_copy(update={name: own[name] for name in _SPLIT_SETTINGS})
    reference = load_records(data, "reference")
    rows = match_classes(names, reference.class_names, whose=f"The judge in {folder}")
    whose = folder.resolve()  # a run's judge is called by the name of the run
    whose = whose.parent if whose.name == RESULT else whose
    identity = f"{whose.name} sha256:{about['sha256'][:16]}"
    return _judge(
        classifier_features(
            classifier, identity=identity, image_px=own["resolution"], device=device
        ),
        _head(classifier.head, rows, temperature=temperature),
        reference,
        identity=identity,
        description=f"ResNet of {_size(classifier):,} weights trained on {about['trained_on']}",
    )


def _check_form(own: dict[str, Any], data: DataConfig, folder: Path) -> None:
    """`InputError` where the judge was made for images of another size, or grey ones alone."""
    assert data.channels != "auto"
    if own["resolution"] == data.resolution and own["channels"] >= data.channels:
        return

    def form(resolution: Any, channels: Any) -> str:
        return f"{resolution}x{resolution} {'grey' if channels == 1 else 'RGB'}"

    raise InputError(
        f"The judge in {folder} was trained on {form(own['resolution'], own['channels'])} images, "
        f"but those to be judged are {form(data.resolution, data.channels)}.",
        hint=f"Train one for them: sfumato train classifier {data.source} --set "
        f"data.resolution={data.resolution} --set data.channels={data.channels}",
    )


# Of transformers ----------------------------------------------------------------------------------


def _of_transformers(location: str, reference: Records, device: Device) -> Judge:
    from sfumato.evaluation.extractors.vision import load_image_classifier

    try:
        model = load_image_classifier(location, device=device, may_download=True)
    except WeightsNotAtHandError as error:
        raise InputError(
            f"There is no judge in {location}: no such folder is here. As a name of the Hub: "
            f"{error.what}",
            hint="`sfumato train classifier DATASET --out FOLDER` makes one; without "
            "evaluation.judge the data set's own is taken, or trained once.",
        ) from error
    rows = match_classes(model.labels, reference.class_names, whose=location)
    description = f"image classifier of {len(model.labels):,} classes, by transformers"
    if len(rows) < len(model.labels):
        description += f", asked for {len(rows):,} of them"
    return _judge(
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
        "that they agree, or choose another judge.",
    )


def _words(name: str) -> tuple[str, ...]:
    words = re.findall(r"[^\W_]+", name.lower())
    return tuple(dict.fromkeys(in_words(word) for word in words))


def _listed(names: Sequence[str], most: int = 20) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(f"'{name}'" for name in names[:most]) + more


# Untrained ----------------------------------------------------------------------------------------


def _untrained(data: DataConfig, reference: Records, seed: str, device: Device) -> Judge:
    if not seed.isdecimal():
        raise InputError(f"untrained:{seed}: a seed is a number.", hint="Such as untrained:0.")
    classifier = _random_weights(reference, seed=int(seed))
    identity = f"untrained:{seed} sha256:{weights_sha256(classifier)[:16]}"
    return _judge(
        classifier_features(
            classifier, identity=identity, image_px=reference.images.shape[-1], device=device
        ),
        _head(classifier.head, range(len(reference.class_names))),
        reference,
        identity=identity,
        description=f"ResNet of {_size(classifier):,} weights drawn from seed {seed}, never "
        "trained",
    )


@dataclass(frozen=True, kw_only=True)
class UntrainedHeads:
    """Accuracy of judges with random weights, by their seeds 0, 1, ..., beside that of guessing."""

    accuracies: tuple[Proportion, ...]
    chance: float

    @classmethod
    def of(
        cls, logits: Callable[[int], Tensor], labels: Tensor, *, classes: int, count: int = 20
    ) -> "UntrainedHeads":
        """From `logits(seed)`, (N, classes) each, of images of the classes `labels` (N,)."""
        right = [int((logits(seed).argmax(1) == labels).sum()) for seed in range(count)]
        return cls(
            accuracies=tuple(wilson(found, len(labels)) for found in right), chance=1 / classes
        )

    @property
    def mean(self) -> float:
        return fmean(accuracy.value for accuracy in self.accuracies)

    @property
    def lowest(self) -> float:
        return min(accuracy.value for accuracy in self.accuracies)

    @property
    def highest(self) -> float:
        return max(accuracy.value for accuracy in self.accuracies)


def untrained_heads(
    data: DataConfig, images: Tensor, labels: Tensor, *, count: int = 20
) -> UntrainedHeads:
    """What `count` judges of the paper's kind, `untrained:0` and on, say of `images`.

    `images`: uint8 (N, C, H, W) of the classes of `data`, real or generated; `labels`: (N,).
    """
    reference = load_records(resolve(data), "reference")
    check_classes(reference, data)
    return UntrainedHeads.of(
        lambda seed: _logits(_random_weights(reference, seed=seed), images),
        labels,
        classes=len(reference.class_names),
        count=count,
    )


def _random_weights(records: Records, *, seed: int) -> Classifier:
    return build_classifier(
        channels=records.images.shape[1], classes=len(records.class_names), seed=seed
    )


# Parts of all -------------------------------------------------------------------------------------


def _judge(
    extractor: BatchedExtractor,
    head: nn.Linear,
    reference: Records,
    *,
    identity: str,
    description: str,
) -> Judge:
    """The judge with its accuracy on `reference`."""
    predicted = head(extractor(reference.images[:])).argmax(1)
    return Judge(
        identity=identity,
        description=description,
        test_accuracy=wilson(int((predicted == reference.labels).sum()), len(reference)),
        class_names=reference.class_names,
        extractor=extractor,
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
