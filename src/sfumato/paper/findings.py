"""The paper's findings on guidance (section 3.2.7), measured and decided; to be read from the top.

Arms are models and ways from their samples to pixels; each claim is decided from the paired
differences of two (arm, scale) on the same seeds and captions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, field_validator
from torch import Tensor

from sfumato import __version__
from sfumato.base.environment import command, hardware, now
from sfumato.base.errors import InputError
from sfumato.base.files import folder_for, read_json, sibling, write_json
from sfumato.base.images import ValueRange
from sfumato.base.section import Section, validate
from sfumato.config.sections import DataConfig
from sfumato.data.records import load_records, source_identity
from sfumato.evaluation.card import ClassifierInfo
from sfumato.evaluation.image_set import ImageSet, OnImages
from sfumato.evaluation.metrics.intervals import Estimate, wilson
from sfumato.evaluation.metrics.pixels import BORDER_PX, EDGE_PX
from sfumato.evaluation.prompt_set import PromptSet
from sfumato.evaluation.reference import Scores
from sfumato.evaluation.sampled_images import complete
from sfumato.generation.loading import load
from sfumato.generation.model import Model
from sfumato.generation.runs import experiment_of_run
from sfumato.paper.claims import EARLY_EPOCHS, GUIDED, NONE, Evidence
from sfumato.studies.study import ACCURACY, Study, StudyConfig, real_images
from sfumato.studies.verdicts import RULE, Claim
from sfumato.training.checkpoint import Checkpoints
from sfumato.training.records import read_records

FILE_NAME = "findings.json"
FORMAT = 3
DIGITS = ("4", "5")
CLIPPED: ValueRange = (-1.0, 1.0)
"""What diffusers' DDPMScheduler clips x0 to unless set otherwise."""


class FindingsConfig(StudyConfig):
    """What is sampled for the findings."""

    guidance_scales: tuple[float, ...] = (0, 1, 2, 3, 5, 10, 20)
    """Of the main arms; 1 and 5, which the paper compares, must be among them."""
    clipped_scales: tuple[float, ...] = (NONE, GUIDED)
    """Of the arm whose x0 is clipped as the paper's scheduler does."""

    @field_validator("guidance_scales", "clipped_scales")
    @classmethod
    def _compared(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not {NONE, GUIDED} <= set(value):
            raise ValueError("1 and 5, which the paper compares, must be among them")
        return tuple(sorted(set(value)))


class ScaleMetrics(Section):
    """What an arm scores at one guidance scale."""

    guidance_scale: float
    nfe: int
    """Network evaluations an image; a guided step takes two."""
    seconds: float
    """Time of sampling."""
    images: str
    """The folder of the images."""
    metrics: dict[str, Estimate]


class ArmMetrics(Section):
    """One model and one way from its samples to pixels, at each guidance scale."""

    key: str
    title: str
    settings: dict[str, Any]
    scales: list[ScaleMetrics]


class Findings(Section):
    """Every claim with its verdict, every metric, and everything that they depend on."""

    format: int = FORMAT
    claims: list[Claim]
    arms: list[ArmMetrics]
    real: dict[str, Estimate]
    real_count: int
    reference: str
    classifier: ClassifierInfo
    config: FindingsConfig
    seeds: tuple[int, int]
    captions: list[str]
    also_differ: list[str]
    """What the two models differ in beside caption dropout: setting, value, value."""
    notes: list[str]
    rule: str = RULE
    confidence: float = 0.95
    hardware: dict[str, Any] = Field(default_factory=hardware)
    sfumato: str = __version__
    date: str = Field(default_factory=now)
    command: str = ""
    folder: Path | None = Field(default=None, exclude=True)
    from_cache: bool = Field(default=False, exclude=True)


@dataclass(frozen=True, kw_only=True)
class _Arm:
    key: str
    title: str
    sets: Mapping[float, ImageSet]


def measure_findings(
    without: Model,
    with_dropout: Model | None,
    config: FindingsConfig,
    *,
    base: Path,
    log: Callable[[str], None] = lambda text: None,
    on_images: OnImages = lambda what, done, total: None,
) -> Findings:
    """Sample every arm, score every set once, decide every claim, write pictures and findings.

    `without`: a run without caption dropout, sampled with its own settings; `with_dropout`: one
    with it, of the same data. The findings belong in `base`, or in `base`-2, ... where that holds
    others; images lie in `base`-images and are shared by all. Killed and started again with the
    same arguments it goes on; what was saved before is read. `InputError` for runs that are no
    pair, or too few images.
    """
    run_folder, data = _run_of(without, dropout=False)
    if with_dropout is not None:
        _check_pair(data, _run_of(with_dropout, dropout=True)[1])
    study = Study.of(without, config, data=data, log=log)
    early = _earlier(without, run_folder, data)
    store = sibling(base, "images")
    arms = _arms(without, with_dropout, early, study, store)
    request = {
        "format": FORMAT,
        "arms": {arm.key: [images.key for images in arm.sets.values()] for arm in arms},
        **study.request(),
    }
    folder = folder_for(base, request, say=log)
    if (folder / FILE_NAME).exists():
        return read_findings(folder).model_copy(update={"from_cache": True})
    # The stretched arm's images lie in the files of the clipped one.
    sampled = {images.name: images for arm in arms for images in arm.sets.values()}
    complete(list(sampled.values()), on_images, what="network evaluations")
    scores = {
        (arm.key, scale): study.score(images) for arm in arms for scale, images in arm.sets.items()
    }
    evidence = _evidence(study, scores, run_folder, without, early, with_dropout)
    findings = _findings(study, evidence, arms, folder)
    from sfumato.paper.findings_page import write_findings

    write_findings(findings, _shown(arms, study), run_folder)
    write_json(folder / FILE_NAME, findings.model_dump(mode="json"))
    return findings


def _evidence(
    study: Study,
    scores: Mapping[tuple[str, float], Scores],
    run_folder: Path,
    without: Model,
    early: Model | None,
    with_dropout: Model | None,
) -> Evidence:
    reference = study.reference
    size = len(load_records(reference.data, "train"))
    real = real_images(reference)
    digits = _places(reference.records.class_names, DIGITS)
    assert study.prompts.labels is not None  # the data have classes
    assert real.labels is not None
    epochs = None
    if early is not None:
        seen, newest = (model.provenance["images_seen"] for model in (early, without))
        epochs = (seen / size, newest / size)
    return Evidence(
        scores=scores,
        labels=study.prompts.labels,
        real=_with_digits(study.real, real.labels, digits),
        digits=digits,
        also_differ=[] if with_dropout is None else _differences(without, with_dropout),
        epochs=epochs,
        losses=read_records(run_folder / "metrics.jsonl"),
        total_images=experiment_of_run(run_folder).training.total_images(size),
        value_range=without.codec.x0_range,
    )


def _findings(study: Study, evidence: Evidence, arms: Sequence[_Arm], folder: Path) -> Findings:
    reference, config = study.reference, study.config
    assert isinstance(config, FindingsConfig)
    assert reference.classifier is not None  # the data have classes
    real = study.real.values["saturated"]
    return Findings(
        claims=evidence.claims(),
        arms=[_arm_metrics(arm, evidence) for arm in arms],
        real=dict(evidence.real),
        real_count=len(real),
        reference=reference.records.description,
        classifier=ClassifierInfo.of(reference.classifier),
        config=config,
        seeds=(config.first_seed, config.first_seed + config.count - 1),
        captions=list(reference.records.class_captions),
        also_differ=list(evidence.also_differ),
        notes=_notes(study.real, reference.data),
        command=command(),
        folder=folder,
    )


def _arm_metrics(arm: _Arm, evidence: Evidence) -> ArmMetrics:
    settings = next(iter(arm.sets.values())).settings
    scales = []
    for scale, images in arm.sets.items():
        assert images.nfe is not None
        assert images.folder is not None
        scores = evidence.scores[arm.key, scale]
        scales.append(
            ScaleMetrics(
                guidance_scale=scale,
                nfe=images.nfe,
                seconds=images.seconds or 0,
                images=f"{images.folder.parent.name}/{images.folder.name}",
                metrics=_with_digits(scores, evidence.labels, evidence.digits),
            )
        )
    return ArmMetrics(
        key=arm.key,
        title=arm.title,
        settings={name: value for name, value in settings.items() if name != "guidance_scale"},
        scales=scales,
    )


def _with_digits(scores: Scores, labels: Tensor, digits: Sequence[int]) -> dict[str, Estimate]:
    """The metrics, with the class accuracy of `digits` and of the others apart, where the data have
    such classes."""
    found = dict(scores.metrics)
    if digits:
        right, chosen = scores.values[ACCURACY], torch.isin(labels, torch.tensor(digits))
        for name, own in (("4 and 5", right[chosen]), ("others", right[~chosen])):
            if len(own):
                found[f"{ACCURACY}.{name}"] = wilson(int(own.sum()), len(own))
    return found


def read_findings(folder: Path) -> Findings:
    """The findings in `folder`; `ConfigError` where they are of another form."""
    values = {**read_json(folder / FILE_NAME), "folder": folder}
    return validate(Findings, values, source=str(folder / FILE_NAME))


# What is sampled ----------------------------------------------------------------------------------


def _run_of(model: Model, *, dropout: bool) -> tuple[Path, DataConfig]:
    """The run's folder and data; `InputError` for a pipeline, or where dropout is the other way."""
    if model.folder is None or model.data is None:
        raise InputError(
            "Findings are of runs: a pipeline has no record of its training.",
            hint="Give the folder of the run that it came from.",
        )
    share = model.provenance["caption_dropout"]
    if (share > 0) != dropout:
        first = f"{model.folder} was trained with caption_dropout = {share:g}"
        raise InputError(
            f"{first}, but {'the second' if dropout else 'the first'} run is the one "
            f"{'with' if dropout else 'without'} dropout.",
            hint="sfumato findings RUN_WITHOUT_DROPOUT [RUN_WITH_DROPOUT]",
        )
    return model.folder, model.data


def _check_pair(first: DataConfig, second: DataConfig) -> None:
    unlike = [
        f"data.{name}: {getattr(first, name)} and {getattr(second, name)}"
        for name in ("resolution", "channels", "fit", "split_seed", "test_share", "tuning_share")
        if getattr(first, name) != getattr(second, name)
    ]
    if source_identity(first) != source_identity(second):
        unlike.insert(0, f"data.source: {first.source} and {second.source}")
    if unlike:
        raise InputError(
            "The two runs have no common real images:\n  " + "\n  ".join(unlike),
            hint="Train both on the same data.",
        )


def _arms(
    without: Model, with_dropout: Model | None, early: Model | None, study: Study, store: Path
) -> list[_Arm]:
    """Every (arm, scale), the clipped one once for its two ways to pixels."""
    config = study.config
    assert isinstance(config, FindingsConfig)

    def sets(model: Model, scales: Sequence[float], **options: Any) -> dict[float, ImageSet]:
        prompts = study.prompts
        if model.data is not None and model.data.caption != study.reference.data.caption:
            own = load_records(model.data, "reference")  # each gets the captions it was trained on
            prompts = PromptSet.of(own, config.count, seed=config.first_seed)
        seeds = range(config.first_seed, config.first_seed + config.count)
        return {
            scale: ImageSet.sampled(model, prompts, seeds, guidance=scale, folder=store, **options)
            for scale in scales
        }

    def arm(key: str, title: str, own: dict[float, ImageSet]) -> _Arm:
        return _Arm(key=key, title=title, sets=own)

    scales, clipped = config.guidance_scales, config.clipped_scales
    arms = [arm("without", "no dropout", sets(without, scales))]
    if tuple(without.codec.x0_range) != CLIPPED:  # else the paper's clipping changes nothing
        title = "no dropout, x0 in [-1, 1]"
        arms.append(arm("clipped", title, sets(without, clipped, x0_range=CLIPPED)))
        own = sets(without, clipped, x0_range=CLIPPED, tensor="stretched")
        arms.append(arm("stretched", f"{title}, min-max", own))
    if early is not None:
        images = early.provenance["images_seen"]
        title = f"no dropout, after {images:,} images"
        arms.append(arm("early", title, sets(early, (NONE, GUIDED))))
    if with_dropout is not None:
        share = with_dropout.provenance["caption_dropout"]
        arms.append(arm("with", f"dropout {100 * share:g} %", sets(with_dropout, scales)))
    return arms


def _earlier(model: Model, run: Path, data: DataConfig) -> Model | None:
    """The run's older checkpoint nearest `EARLY_EPOCHS`, with the same sampler; None if none is."""
    aim = EARLY_EPOCHS * len(load_records(data, "train"))
    older = [
        checkpoint.images_seen
        for checkpoint in Checkpoints(run / "checkpoints").all()
        if checkpoint.images_seen < model.provenance["images_seen"]
    ]
    if not older:
        return None
    nearest = min(older, key=lambda images: abs(images - aim))
    sampling = model.sampling
    return load(run, device=str(model.device), checkpoint=nearest).with_(
        form=sampling.guidance,
        sampler=sampling.sampler,
        steps=sampling.steps,
        timestep_spacing=sampling.timestep_spacing,
    )


def _places(names: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """The classes called `wanted`, all or none: "4", "4 - four"."""
    first = [str(name).split()[0] if str(name).split() else "" for name in names]
    return [first.index(name) for name in wanted] if set(wanted) <= set(first) else []


_NO_MATTER = {
    "name",
    "data.source",
    "data.held_out",
    "data.loading",
    "data.workers",
    "data.max_damaged",
    "training.caption_dropout",
    "training.micro_batches",
    "sampling.guidance_scale",
}
"""Settings that change no image, or of which it is known."""
_CADENCE = ("_every_images", "keep_checkpoints", "checkpoint_epochs", "also_halflives_images")


def _differences(first: Model, second: Model) -> list[str]:
    """What the two models differ in beside dropout, as "setting: value and value"."""

    def settings(model: Model) -> dict[str, Any]:
        assert model.folder is not None
        flat: dict[str, Any] = {}

        def add(values: Mapping[str, Any], prefix: str) -> None:
            for name, value in values.items():
                if isinstance(value, dict):
                    add(value, f"{prefix}{name}.")
                else:
                    flat[prefix + name] = value

        values = experiment_of_run(model.folder).model_dump(mode="json")
        kept = ("name", "seed", "data", "text", "model", "diffusion", "training", "sampling")
        add({name: values[name] for name in kept}, "")
        used = ("sampler", "steps", "timestep_spacing")
        flat.update({f"sampling.{name}": getattr(model.sampling, name) for name in used})
        # Not what was asked for: how far the weights have come.
        flat = {k: v for k, v in flat.items() if k not in ("training.images", "training.epochs")}
        return flat | {"images seen": model.provenance["images_seen"]}

    one, other = settings(first), settings(second)
    return [
        f"{name}: {_short(one.get(name))} and {_short(other.get(name))}"
        for name in dict.fromkeys([*one, *other])
        if one.get(name) != other.get(name)
        and name not in _NO_MATTER
        and not name.endswith(_CADENCE)
    ]


def _short(value: object) -> str:
    return f"{len(value)} of them" if isinstance(value, list) and len(value) > 4 else str(value)


def _notes(real: Scores, data: DataConfig) -> list[str]:
    blank = {
        px: float((real.values[name] == 0).double().mean())
        for px, name in ((BORDER_PX, "border_rms"), (EDGE_PX, "edge_rms"))
    }
    return [
        f"The outer {px} pixels are black in {100 * share:.0f} % of the real images of "
        f"{data.resolution} pixels."
        for px, share in blank.items()
    ] + [
        "The differences are of images with the same seed and caption; w = 0 is unconditional, so "
        "its class accuracy is that of chance."
    ]


def _shown(arms: Sequence[_Arm], study: Study) -> dict[str, Tensor]:
    """One image of each class at w = 1 and 5 of each arm, and real ones: (classes, C, H, W)."""
    classes = len(study.reference.records.class_names)
    rows = {
        f"{arm.title}, w = {scale:g}": arm.sets[scale].images(range(classes))
        for arm in arms
        for scale in (NONE, GUIDED)
    }
    real = real_images(study.reference)
    assert real.labels is not None
    labels = real.labels
    first = [int((labels == label).nonzero()[0]) for label in labels.unique().tolist()]
    return rows | {"real": real.images(first[:classes])}
