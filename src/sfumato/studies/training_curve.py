"""What a run's kept checkpoints sample, and their losses on images that were trained on and on
images that were not: quality over the images that training has seen."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from sfumato.base.errors import DamagedDataError, InputError
from sfumato.base.files import sibling
from sfumato.base.lock import locked
from sfumato.base.words import counted
from sfumato.config.sections import DataConfig
from sfumato.data.opening import same_images
from sfumato.data.records import load_records
from sfumato.data.survey import resolve
from sfumato.evaluation.image_set import ImageSet, OnImages
from sfumato.evaluation.level_losses import chosen, level_losses, levels_of
from sfumato.evaluation.metrics.intervals import Estimate
from sfumato.evaluation.metrics.registry import title_of
from sfumato.evaluation.sampled_images import complete
from sfumato.generation.model import Model
from sfumato.report.grids import labelled_grid
from sfumato.report.page import markdown_table
from sfumato.studies.charts import Line, format_estimate, real_rows, scale_panels, study_text
from sfumato.studies.loss_chart import loss_panels
from sfumato.studies.study import (
    ACCURACY,
    DIVERSITY,
    FRECHET,
    SetMetrics,
    Study,
    StudyCard,
    StudyConfig,
    at_checkpoint,
)
from sfumato.training.checkpoint import Checkpoints

SHOWN = 10
PANELS = (ACCURACY, FRECHET, DIVERSITY, "saturated")


class CurveConfig(StudyConfig):
    """What each checkpoint samples."""

    loss_images: int = Field(default=512, ge=2)
    """Images of the training and of the test part on which losses are measured."""


class CurvePoint(SetMetrics):
    """One checkpoint."""

    images_seen: int
    weights_sha256: str
    losses: dict[str, list[Estimate]]
    """Of `train` and `test` images: at each level of the card's `levels`."""


class CurveCard(StudyCard):
    """Every point, and everything that they depend on; `model` is that of the last."""

    NAME: ClassVar[str] = "curve"
    FORMAT: ClassVar[int] = 4

    points: list[CurvePoint]
    guidance: str
    guidance_scale: float
    shown: list[str]
    """What the first images are of: names of classes."""
    levels: list[float]
    """Noise levels of the losses, sigma = s / a; empty where none were measured."""
    config: CurveConfig


@dataclass(frozen=True, kw_only=True)
class _Checkpoint:
    """One checkpoint's model and images."""

    model: Model
    images: ImageSet


def measure_curve(
    model: Model,
    config: CurveConfig,
    *,
    base: Path,
    data: DataConfig | None = None,
    log: Callable[[str], None] = lambda text: None,
    on_images: OnImages = lambda what, done, total: None,
) -> CurveCard:
    """Sample with every checkpoint that the run of `model` has kept, by its settings and with the
    same seeds and captions; score every set once; write card and pictures.

    Autoguidance leads away from its weaker checkpoint, so this one and those before it are left
    out; so is one that is damaged, or removed meanwhile by training that goes on. The card lies in
    `base`, or in `base`-2, ... where that holds another; images lie in `base`-images and are not
    sampled again. `InputError` for a pipeline, a model without data or classes, too few images, or
    where no checkpoint is left.
    """
    if model.folder is None:
        raise InputError(
            "A curve is of a run: a pipeline has one set of weights.",
            hint="Give the folder of the run that it came from.",
        )
    study = Study.of(model, config, data=data, log=log)
    kept = _every_checkpoint(model, study, sibling(base, "images"), log, on_images)
    request = {
        "weights": [one.model.provenance["weights_sha256"] for one in kept],
        "sampling": {**kept[-1].images.settings, "model": None},
        **study.request(),
    }
    folder, card = CurveCard.at(base, request, log)
    if card is not None:
        return card
    with locked(folder):
        losses = _losses(study, [one.model for one in kept], config.loss_images, log)
        return _write(study, kept, losses, folder)


def _losses(
    study: Study, models: Sequence[Model], count: int, log: Callable[[str], None]
) -> list[dict[str, list[Estimate]]]:
    """Of each model, by the part of the data."""
    if models[-1].sampling.form.folded:
        log("Left out: losses, since a distilled student was trained for another one.")
        return [{} for _ in models]
    data = resolve(study.reference.data)
    parts = {"test": study.reference.records}
    own = models[-1].data
    if own is None or not same_images(own, data):
        log("Left out: losses on training images, since the model was trained on others.")
    elif data.loading == "stream":
        log("Left out: losses on training images, which are streamed.")
    else:
        parts["train"] = load_records(data, "train")
    log("Measuring losses ...")
    return [
        {name: level_losses(model, part, chosen(part, count)) for name, part in parts.items()}
        for model in models
    ]


def _write(
    study: Study,
    kept: Sequence[_Checkpoint],
    losses: Sequence[Mapping[str, list[Estimate]]],
    folder: Path,
) -> CurveCard:
    names = study.reference.records.examples(SHOWN)[1]
    last = kept[-1].model
    card = CurveCard(
        points=[
            CurvePoint.of(
                one.images,
                study.score(one.images).metrics,
                images_seen=one.model.provenance["images_seen"],
                weights_sha256=one.model.provenance["weights_sha256"],
                losses=own,
            )
            for one, own in zip(kept, losses, strict=True)
        ],
        guidance=last.sampling.guidance,
        guidance_scale=last.sampling.guidance_scale,
        shown=names,
        levels=last.process.noise_level(levels_of(last.process)).tolist() if losses[-1] else [],
        folder=folder,
        **study.card_fields(last, **study.baselines()),
    )
    examples = [one.images.images(range(len(names))) for one in kept]
    pictures = {"curve": chart(card), "examples": _examples(card, examples)}
    if card.levels:
        pictures["losses"] = loss_panels(
            card.levels, {point.images_seen: point.losses for point in card.points}
        )
    card.write(markdown(card), pictures)
    return card


def _every_checkpoint(
    model: Model,
    study: Study,
    store: Path,
    log: Callable[[str], None],
    on_images: OnImages,
) -> list[_Checkpoint]:
    """Those that can be sampled with, with their images; `InputError` if there is none."""
    assert model.folder is not None
    form = model.sampling.form
    after = int(dict(form.parameters)["images"]) if form.needs_weak_network else -1
    kept = [n for n in Checkpoints(model.folder / "checkpoints").counts() if n > after]
    found = []
    for place, images_seen in enumerate(kept):
        try:
            own = at_checkpoint(model, images_seen)
        except (InputError, DamagedDataError) as error:
            log(f"Left out: {error.what}")
            continue
        log(f"{counted(images_seen, 'image')} seen")
        images = study.sampled(own, store)

        def on_all(what: str, done: int, total: int, place: int = place) -> None:
            on_images(what, place * total + done, len(kept) * total)

        complete([images], on_all, what="network evaluations")
        found.append(_Checkpoint(model=own, images=images))
    if not found:
        raise InputError(
            f"{model.folder} has kept no checkpoint that can be sampled with.",
            hint="training.checkpoint_epochs and training.keep_checkpoints keep more.",
        )
    return found


# Writing ------------------------------------------------------------------------------------------


def chart(card: CurveCard) -> bytes:
    """PNG: each of `PANELS` over the images seen."""
    line = Line(
        label=f"{card.guidance} at w = {card.guidance_scale:g}",
        points={point.images_seen: point.metrics for point in card.points},
        colour="#1f618d",
    )
    count = card.config.count
    return scale_panels([line], card, PANELS, count=count, over="images seen", to_scale=True)


def _examples(card: CurveCard, examples: Sequence[Tensor]) -> bytes:
    """The first image of each class that is shown, a row for each checkpoint."""
    return labelled_grid(
        [list(images) for images in examples],
        row_labels=[f"{point.images_seen:,}" for point in card.points],
        column_labels=card.shown,
        settings=[{"first_seed": card.config.first_seed}],
    )


def markdown(card: CurveCard) -> str:
    """Every point with its intervals, what real images score, and how it came about."""
    rows = [
        [
            f"{point.images_seen:,}",
            *(format_estimate(key, point.metrics.get(key)) for key in PANELS),
        ]
        for point in card.points
    ]
    header = ["images seen", *map(title_of, PANELS)]
    sampled = (
        f"{card.config.count:,} images of each checkpoint, seeds from {card.config.first_seed}, "
        f"{card.guidance} at w = {card.guidance_scale:g}"
    )
    table = markdown_table(header, rows + real_rows(card, PANELS), left=0)
    return study_text(card, sampled, table, _losses_text(card))


def _losses_text(card: CurveCard) -> str:
    """Losses of each checkpoint on training and test images, a column for each noise level."""
    if not card.levels:
        return ""
    rows = [
        [f"{point.images_seen:,}", name, *(f"{one}" for one in point.losses[name])]
        for point in card.points
        for name in point.losses
    ]
    header = ["images seen", "images", *(f"sigma = {level:.3g}" for level in card.levels)]
    return (
        f"Losses on up to {card.config.loss_images:,} images of each part, the same images and "
        "noise for every checkpoint:\n\n" + markdown_table(header, rows, left=0)
    )
