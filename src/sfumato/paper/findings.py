"""The paper's findings on guidance (section 3.2.7), measured and decided; to be read from the top.

Variants are models and ways from their samples to pixels; each claim is decided from the paired
differences of two (variant, scale) on the same seeds and captions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import field_validator
from torch import Tensor

from sfumato.base.files import sibling
from sfumato.base.images import ValueRange
from sfumato.base.lock import locked
from sfumato.base.section import Section
from sfumato.config.sections import DataConfig
from sfumato.data.records import load_records
from sfumato.evaluation.image_set import ImageSet, OnImages
from sfumato.evaluation.metrics.intervals import Estimate, wilson
from sfumato.evaluation.metrics.pixels import BORDER_PX, EDGE_PX
from sfumato.evaluation.prompt_set import PromptSet
from sfumato.evaluation.reference import Scores
from sfumato.evaluation.sampled_images import complete
from sfumato.generation.model import Model
from sfumato.generation.runs import experiment_of_run
from sfumato.paper.claims import EARLY_EPOCHS, GUIDED, NONE, PaperEvidence, paper_claims
from sfumato.paper.run_pair import check_pair, differences_of, run_of
from sfumato.studies.study import ACCURACY, SetMetrics, Study, StudyCard, StudyConfig, at_checkpoint
from sfumato.studies.verdicts import RULE, Claim
from sfumato.training.checkpoint import Checkpoints
from sfumato.training.records import read_records

DIGITS = ("4", "5")
CLIPPED: ValueRange = (-1.0, 1.0)
"""What diffusers' DDPMScheduler clips x0 to unless set otherwise."""


class FindingsConfig(StudyConfig):
    """What is sampled for the findings."""

    guidance_scales: tuple[float, ...] = (0, 1, 2, 3, 5, 10, 20)
    """Of the main variants; 1 and 5, which the paper compares, must be among them."""
    clipped_scales: tuple[float, ...] = (NONE, GUIDED)
    """Of the variant whose x0 is clipped as the paper's scheduler does."""

    @field_validator("guidance_scales", "clipped_scales")
    @classmethod
    def _compared(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not {NONE, GUIDED} <= set(value):
            raise ValueError("1 and 5, which the paper compares, must be among them")
        return tuple(sorted(set(value)))


class ScaleMetrics(SetMetrics):
    """What a variant scores at one guidance scale."""

    guidance_scale: float
    images: str
    """The folder of the images."""


class VariantMetrics(Section):
    """One model and one way from its samples to pixels, at each guidance scale."""

    key: str
    title: str
    settings: dict[str, Any]
    scales: list[ScaleMetrics]


class Findings(StudyCard):
    """Every claim with its verdict, every metric, and everything that they depend on.

    The model and its sampler are those of the first run.
    """

    NAME: ClassVar[str] = "findings"
    FORMAT: ClassVar[int] = 4

    claims: list[Claim]
    variants: list[VariantMetrics]
    real_count: int
    config: FindingsConfig
    seeds: tuple[int, int]
    captions: list[str]
    also_differ: list[str]
    """What the two models differ in beside caption dropout: setting, value, value."""
    notes: list[str]
    rule: str = RULE
    confidence: float = 0.95


@dataclass(frozen=True, kw_only=True)
class _Variant:
    key: str
    title: str
    sets: Mapping[float, ImageSet]


@dataclass(frozen=True, kw_only=True)
class _Runs:
    """The models that are compared: a run `without` dropout, its older checkpoint `early`, and a
    run of the same data with it."""

    without: Model
    early: Model | None
    with_dropout: Model | None
    folder: Path
    """Of the run without."""


def measure_findings(
    without: Model,
    with_dropout: Model | None,
    config: FindingsConfig,
    *,
    base: Path,
    log: Callable[[str], None] = lambda text: None,
    on_images: OnImages = lambda what, done, total: None,
) -> Findings:
    """Sample every variant, score every set once, decide every claim, write pictures and findings.

    `without`: a run without caption dropout, sampled with its own settings; `with_dropout`: one
    with it, of the same data. The findings belong in `base`, or in `base`-2, ... where that holds
    others; images lie in `base`-images and are shared by all. Killed and started again with the
    same arguments it goes on; what was saved before is read. `InputError` for runs that are no
    pair, or too few images.
    """
    run_folder, data = run_of(without, dropout=False)
    if with_dropout is not None:
        check_pair(data, run_of(with_dropout, dropout=True)[1])
    study = Study.of(without, config, data=data, log=log)
    early = _earlier(without, run_folder, data)
    runs = _Runs(without=without, early=early, with_dropout=with_dropout, folder=run_folder)
    variants = _variants(runs, study, config, sibling(base, "images"))
    request = {
        "variants": {one.key: [images.key for images in one.sets.values()] for one in variants},
        **study.request(),
    }
    folder, findings = Findings.at(base, request, log)
    if findings is not None:
        return findings
    # The stretched variant's images lie in the files of the clipped one.
    sampled = {images.name: images for one in variants for images in one.sets.values()}
    from sfumato.paper.findings_page import write_findings

    with locked(folder):
        complete(list(sampled.values()), on_images, what="network evaluations")
        findings = _findings(study, config, runs, variants, folder)
        losses = read_records(run_folder / "metrics.jsonl")
        write_findings(findings, _shown(variants, study), losses)
    return findings


def _evidence(
    study: Study, runs: _Runs, scores: Mapping[tuple[str, float], Scores]
) -> PaperEvidence:
    reference, real = study.reference, study.real_images
    size = len(load_records(reference.data, "train"))
    digits = _places(reference.records.class_names, DIGITS)
    assert study.prompts.labels is not None  # the data have classes
    assert real.labels is not None
    without, early, with_dropout = runs.without, runs.early, runs.with_dropout
    epochs = None
    if early is not None:
        seen, newest = (model.provenance["images_seen"] for model in (early, without))
        epochs = (seen / size, newest / size)
    return PaperEvidence(
        scores=scores,
        labels=study.prompts.labels,
        real=_with_digits(study.real, real.labels, digits),
        digits=digits,
        also_differ=[] if with_dropout is None else differences_of(without, with_dropout),
        epochs=epochs,
        losses=read_records(runs.folder / "metrics.jsonl"),
        total_images=experiment_of_run(runs.folder).training.total_images(size),
        value_range=without.codec.x0_range,
    )


def _findings(
    study: Study,
    config: FindingsConfig,
    runs: _Runs,
    variants: Sequence[_Variant],
    folder: Path,
) -> Findings:
    scores = {
        (one.key, scale): study.score(images)
        for one in variants
        for scale, images in one.sets.items()
    }
    evidence, records = _evidence(study, runs, scores), study.reference.records
    return Findings(
        claims=paper_claims(evidence),
        variants=[_variant_metrics(one, evidence) for one in variants],
        real_count=len(study.real_images),
        seeds=(config.first_seed, config.first_seed + config.count - 1),
        captions=[records.class_captions[label] for label in records.present],
        also_differ=list(evidence.also_differ),
        notes=_notes(study.real, study.reference.data),
        folder=folder,
        **study.card_fields(runs.without, real=dict(evidence.real)),
    )


def _variant_metrics(variant: _Variant, evidence: PaperEvidence) -> VariantMetrics:
    scales = []
    for scale, images in variant.sets.items():
        assert images.folder is not None
        scores = evidence.scores[variant.key, scale]
        scales.append(
            ScaleMetrics.of(
                images,
                _with_digits(scores, evidence.labels, evidence.digits),
                guidance_scale=scale,
                images=f"{images.folder.parent.name}/{images.folder.name}",
            )
        )
    settings = dict(next(iter(variant.sets.values())).settings)
    settings.pop("guidance_scale")
    return VariantMetrics(key=variant.key, title=variant.title, settings=settings, scales=scales)


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


# What is sampled ----------------------------------------------------------------------------------


def _variants(runs: _Runs, study: Study, config: FindingsConfig, store: Path) -> list[_Variant]:
    """Every (variant, scale), the clipped one once for its two ways to pixels."""
    found: list[_Variant] = []

    def add(key: str, title: str, model: Model, scales: Sequence[float], **options: Any) -> None:
        prompts = study.prompts
        if model.data is not None and model.data.caption != study.reference.data.caption:
            own = load_records(model.data, "reference")  # each gets the captions it was trained on
            prompts = PromptSet.of(own, config.count, seed=config.first_seed)
        sets = {
            scale: study.sampled(model, store, prompts, guidance=scale, **options)
            for scale in scales
        }
        found.append(_Variant(key=key, title=title, sets=sets))

    scales, clipped = config.guidance_scales, config.clipped_scales
    without, early, with_dropout = runs.without, runs.early, runs.with_dropout
    add("without", "no dropout", without, scales)
    if without.codec.x0_range not in (None, CLIPPED):  # else the paper's clipping changes nothing
        title = "no dropout, x0 in [-1, 1]"
        add("clipped", title, without, clipped, x0_range=CLIPPED)
        stretched = {"x0_range": CLIPPED, "tensor": "stretched"}
        add("stretched", f"{title}, min-max", without, clipped, **stretched)
    if early is not None:
        title = f"no dropout, after {early.provenance['images_seen']:,} images"
        add("early", title, early, (NONE, GUIDED))
    if with_dropout is not None:
        share = with_dropout.provenance["caption_dropout"]
        add("with", f"dropout {100 * share:g} %", with_dropout, scales)
    return found


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
    return at_checkpoint(model, min(older, key=lambda images: abs(images - aim)))


def _places(names: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """The classes called `wanted`, all or none: "4", "4 - four"."""
    first = [str(name).split()[0] if str(name).split() else "" for name in names]
    return [first.index(name) for name in wanted] if set(wanted) <= set(first) else []


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


def _shown(variants: Sequence[_Variant], study: Study) -> dict[str, Tensor]:
    """One image of each class at w = 1 and 5 of each variant, and real ones: (classes, C, H, W)."""
    classes = len(study.reference.records.present)
    rows = {
        f"{one.title}, w = {scale:g}": one.sets[scale].images(range(classes))
        for one in variants
        for scale in (NONE, GUIDED)
    }
    labels = study.real_images.labels
    assert labels is not None
    first = [int((labels == label).nonzero()[0]) for label in labels.unique().tolist()]
    return rows | {"real": study.real_images.images(first[:classes])}
