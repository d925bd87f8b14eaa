"""Diffusion against creative adversarial networks, which the paper claims and shows no number of.

Every model samples with the same seeds and classes and is scored once, against the same images and
by one classifier that is neither's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any, ClassVar

import torch
from torch import Tensor

from sfumato.base.errors import InputError
from sfumato.base.files import sibling
from sfumato.base.lock import locked
from sfumato.base.section import Section
from sfumato.config.overrides import flattened
from sfumato.config.schema import load_experiment
from sfumato.config.sections import DataConfig
from sfumato.data.captions import CLASS_FIELDS, required_fields
from sfumato.data.opening import same_images, source_name
from sfumato.evaluation.baselines import changed_baselines
from sfumato.evaluation.card import PerturbationBaseline, Spread
from sfumato.evaluation.image_set import ImageSet, OnImages
from sfumato.evaluation.metrics.intervals import Estimate
from sfumato.evaluation.prompt_set import PromptSet, class_prompts
from sfumato.evaluation.reference import Scores
from sfumato.evaluation.sampled_images import complete
from sfumato.evaluation.store import digest_of
from sfumato.generation.can import CanModel
from sfumato.generation.model import Model
from sfumato.models.codec import Codec
from sfumato.paper.comparison_claims import CAN, LATENT, PIXELS, Measured, claims_of
from sfumato.paper.training_time import core_seconds
from sfumato.studies.study import (
    ACCURACY,
    SetMetrics,
    Study,
    StudyCard,
    StudyConfig,
    at_checkpoint,
)
from sfumato.studies.verdicts import RULE, Claim
from sfumato.text.encoder import NULL
from sfumato.training.checkpoint import Checkpoints

NAMES = (
    "frechet",
    "precision",
    "recall",
    "density",
    "coverage",
    "class_accuracy",
    "diversity",
    "style_ambiguity",
    "novelty",
)
"""What is measured."""
_ROWS = 50
"""Images that a codec gets at once."""


class ComparisonConfig(StudyConfig):
    """What each model samples; `curves`: at every kept checkpoint, too."""

    curves: bool = True


class ModelMetrics(SetMetrics):
    """One model: its size, its training, its images."""

    label: str
    """Experiment, guidance scale or classes, and settings that tell it from others of that name:
    runs of one label differ in their seeds."""
    conditional: bool
    """Whether it draws what it is asked for: a CAN with classes, diffusion but for w = 0."""
    kind: str
    """`PIXELS`, `LATENT` or `CAN`."""
    seed: int
    parameters: int
    """Of the network that samples."""
    images_seen: int
    core_seconds: float | None
    """Of training, up to the checkpoint; of a GPU where `device` names one."""
    device: str
    seconds_an_image: float
    settings: dict[str, Any]
    curve: list["CurvePoint"]


class CurvePoint(Section):
    """One checkpoint."""

    images_seen: int
    core_seconds: float | None
    metrics: dict[str, Estimate]


class Comparison(StudyCard):
    """Every model, the mean and spread of each label over its seeds, every claim.

    It lies in its folder as comparison.json beside comparison.md and comparison.png.
    """

    NAME: ClassVar[str] = "comparison"
    FORMAT: ClassVar[int] = 3

    models: list[ModelMetrics]
    groups: dict[str, dict[str, Spread]]
    """By label, of those with two seeds or more; by metric."""
    claims: list[Claim]
    rule: str = RULE
    config: ComparisonConfig

    @property
    def how(self) -> str:
        return f"seeds from {self.config.first_seed}, the same for all"


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """A model with its images; `earlier`: the same at older checkpoints."""

    model: Model
    label: str
    images: ImageSet
    earlier: Sequence[tuple[Model, ImageSet]]


def measure_comparison(
    models: Sequence[Model],
    config: ComparisonConfig,
    *,
    base: Path,
    data: DataConfig | None = None,
    log: Callable[[str], None] = lambda text: None,
    on_images: OnImages = lambda what, done, total: None,
) -> Comparison:
    """Sample with every model, score every set once, decide every claim, write page and card.

    `models`: at the guidance scales that they are set to; `data`: the real images, else those of
    the first. The card lies in `base`, or in `base`-2, ... where that holds another; images lie in
    `base`-images and are not sampled again. `InputError` for less than two models, the same one or
    the same seed of one label twice, models trained on other images, and data without classes.
    """
    _check(models)
    labels = labels_of(models)
    _check_seeds(models, labels)
    study = Study.of(models[0], config, data=data, log=log)
    store = sibling(base, "images")
    subjects = [
        _subject(model, label, study, config, store)
        for model, label in zip(models, labels, strict=True)
    ]
    sets = [one for own in subjects for one in (own.images, *(s for _, s in own.earlier))]
    request = {"images": [one.key for one in sets], **study.request()}
    folder, known = Comparison.at(base, request, log)
    if known is not None:
        return known
    from sfumato.paper.comparison_page import write_comparison

    with locked(folder):
        complete(sets, on_images, what="network evaluations")
        found = _comparison(study, config, subjects, folder)
        classes = range(min(10, config.count))
        write_comparison(found, [one.images.images(classes) for one in subjects])
    return found


def _check(models: Sequence[Model]) -> None:
    if len(models) < 2:
        raise InputError(
            "One model is no comparison.", hint="Give two or more runs, such as one CAN."
        )
    marks = [(model.provenance.get("weights_sha256"), model.title) for model in models]
    if len(set(marks)) < len(marks):
        raise InputError("The same model is there twice.", hint="Give each once: runs/a@1 runs/b.")
    shapes = {model.image_shape for model in models}
    if len(shapes) > 1:
        sizes = ", ".join(sorted("x".join(map(str, shape)) for shape in shapes))
        raise InputError(
            f"The models make images of different shapes: {sizes}.",
            hint="Train all on the same data at the same resolution.",
        )
    known = [model.data for model in models if model.data is not None]
    for data in known[1:]:
        if not same_images(known[0], data):
            raise InputError(
                f"The models were trained on different images: {_data_words(known[0])}; and "
                f"{_data_words(data)}.",
                hint="Train all with the same source, split_seed, test_share, also_train and "
                "left_out.",
            )


def _data_words(data: DataConfig) -> str:
    also = f", also_train {' '.join(data.also_train)}" if data.also_train else ""
    left = f", left_out {', '.join(map(str, data.left_out))}" if data.left_out else ""
    return (
        f"'{source_name(data)}', split_seed {data.split_seed}, test_share {data.test_share:g}{also}"
        f"{left}"
    )


def _check_seeds(models: Sequence[Model], labels: Sequence[str]) -> None:
    known = set()
    for model, label in zip(models, labels, strict=True):
        seed = _seed(model)
        if (label, seed) in known:
            raise InputError(
                f"Two runs of '{label}' have the seed {seed}: they do not differ as seeds do.",
                hint="Leave one of them out, or train it with another --seed.",
            )
        known.add((label, seed))


def _seed(model: Model) -> int:
    return model.provenance.get("seed", 0)


def _subject(
    model: Model, label: str, study: Study, config: ComparisonConfig, store: Path
) -> _Subject:
    prompts = prompts_for(model, study)
    seen, earlier = model.provenance.get("images_seen"), []
    if config.curves and model.folder is not None:
        counts = Checkpoints(model.folder / "checkpoints").counts()
        earlier = [at_checkpoint(model, count) for count in counts if count < seen]
    return _Subject(
        model=model,
        label=label,
        images=study.sampled(model, store, prompts),
        earlier=[(one, study.sampled(one, store, prompts)) for one in earlier],
    )


def prompts_for(model: Model, study: Study) -> PromptSet:
    """The study's classes in the words that `model` was trained with first; none where it takes
    none."""
    asked, data = study.prompts, model.data
    if isinstance(model, CanModel) and not model.conditional:
        return PromptSet(prompts=[NULL] * len(asked))
    if data is None or asked.labels is None:
        return asked
    templates = data.caption[:1]
    if not templates or required_fields(templates[0]) - CLASS_FIELDS:
        return asked
    own = class_prompts(study.reference.records, asked.labels, templates)
    if own == asked.prompts:
        return asked
    return PromptSet(prompts=own, labels=asked.labels, templates=templates, balanced=asked.balanced)


def _comparison(
    study: Study, config: ComparisonConfig, subjects: Sequence[_Subject], folder: Path
) -> Comparison:
    scores = [study.reference.score(one.images, NAMES) for one in subjects]
    models = [_metrics(study, *both) for both in zip(subjects, scores, strict=True)]
    measured = [_measured(*both) for both in zip(models, scores, strict=True)]
    real = study.reference.score(study.real_images, ("diversity", "style_ambiguity")).metrics
    assert study.reference.classifier is not None  # the data have classes
    of_none = {"sampler": "", "timestep_spacing": "", "steps": 0}
    baselines = study.baselines()
    of_codecs = {one.label: one.model.codec for one in subjects if _kind(one.model) == LATENT}
    baselines["perturbations"] += through_codecs(study, of_codecs)
    return Comparison(
        models=models,
        groups=_groups(models),
        claims=claims_of(measured),
        folder=folder,
        **study.card_fields(
            subjects[0].model,
            **baselines,
            real={ACCURACY: study.reference.classifier.test_accuracy, **real},
            **of_none,
        ),
    )


def through_codecs(study: Study, codecs: Mapping[str, Codec]) -> list[PerturbationBaseline]:
    """Real images that each codec encoded and decoded, equal codecs once: a model in its latents
    cannot be expected nearer to the reference. `codecs`: by the label of a model."""
    different: dict[str, str] = {}
    for label, codec in codecs.items():
        different.setdefault(digest_of(codec.to_dict()), label)
    changes = {
        f"real images through the codec of {label}": partial(_recoded, codecs[label])
        for label in different.values()
    }
    of = {"count": len(study.prompts), "balanced": study.balanced}
    return changed_baselines(study.reference, "classifier", changes, **of)


def _recoded(codec: Codec, images: Tensor) -> Tensor:
    """uint8 (N, C, H, W) encoded and decoded."""
    return torch.cat([codec.decode(codec.encode(part)) for part in images.split(_ROWS)]).cpu()


def _metrics(study: Study, subject: _Subject, scores: Scores) -> ModelMetrics:
    model, images = subject.model, subject.images
    seen, folder = model.provenance.get("images_seen", 0), model.folder
    seconds, device = core_seconds(folder, seen)
    points = [
        CurvePoint(
            images_seen=one.provenance["images_seen"],
            core_seconds=core_seconds(folder, one.provenance["images_seen"])[0],
            metrics=study.reference.score(own, NAMES).metrics,
        )
        for one, own in subject.earlier
    ]
    last = CurvePoint(images_seen=seen, core_seconds=seconds, metrics=scores.metrics)
    return ModelMetrics.of(
        images,
        scores.metrics,
        label=subject.label,
        kind=_kind(model),
        conditional=_conditional(model),
        seed=_seed(model),
        parameters=sum(one.numel() for one in model.network.parameters()),
        images_seen=seen,
        core_seconds=seconds,
        device=device,
        seconds_an_image=sum(float(images.part(one)["seconds"]) for one in images.parts)
        / images.count,
        settings=dict(images.settings),
        curve=[*points, last],
    )


def labels_of(models: Sequence[Model]) -> list[str]:
    """Of each model; where several have one name, with the settings in which they differ: `can,
    training.ambiguity_weight = 0`. An export does not say how it was trained: its weights do."""
    names = [_name(model) for model in models]
    settings = [None if model.folder is None else _settings(model) for model in models]
    found = []
    for name, own, model in zip(names, settings, models, strict=True):
        alike = [one for other, one in zip(names, settings, strict=True) if other == name]
        if own is not None:
            runs = [one for one in alike if one is not None]
            more = [
                f"{key} = {value}"
                for key, value in own.items()
                if any(one.get(key, ...) != value for one in runs)
            ]
        else:
            weights = str(model.provenance.get("weights_sha256"))
            more = [f"weights {weights[:8]}"] if len(alike) > 1 else []
        found.append(", ".join([name, *more]))
    return found


def _settings(model: Model) -> dict[str, Any]:
    """What a run was trained with, but its seed, and how it samples, by dotted name."""
    assert model.folder is not None
    experiment = load_experiment(model.folder / "experiment.yaml")
    changeable = experiment.changeable_on_resume
    left_out = ["seed", "data.source", *(k for k, why in changeable.items() if why != "length")]
    known = {
        key: value
        for key, value in flattened(experiment.model_dump(mode="json")).items()
        if not any(key == name or key.startswith(f"{name}.") for name in left_out)
    }
    images = {"images seen": model.provenance["images_seen"]}
    return {**known, **flattened({"sampling": asdict(model.sampling)}), **images}


def _name(model: Model) -> str:
    """`can`, `can, classes`, `mnist, w = 2`."""
    name = model.provenance.get("experiment", "model")
    if isinstance(model, CanModel):
        return f"{name}, classes" if model.conditional else name
    return f"{name}, {model.title}"


def _conditional(model: Model) -> bool:
    if isinstance(model, CanModel):
        return model.conditional
    return model.sampling.guidance_scale != 0


def _kind(model: Model) -> str:
    if isinstance(model, CanModel):
        return CAN
    return LATENT if model.codec.factor > 1 else PIXELS


def _measured(model: ModelMetrics, scores: Scores) -> Measured:
    return Measured(
        label=model.label,
        kind=model.kind,
        conditional=model.conditional,
        scale="" if model.kind == CAN else str(model.settings["guidance_scale"]),
        seed=model.seed,
        core_seconds=model.core_seconds,
        device=model.device,
        parameters=model.parameters,
        metrics=model.metrics,
        values=scores.values,
    )


def _groups(models: Sequence[ModelMetrics]) -> dict[str, dict[str, Spread]]:
    found = {}
    for label in dict.fromkeys(one.label for one in models):
        own = [one for one in models if one.label == label]
        if len(own) > 1:
            found[label] = {
                key: Spread(mean=mean(values), std=stdev(values))
                for key in own[0].metrics
                if len(values := [one.metrics[key].value for one in own if key in one.metrics]) > 1
            }
    return found
