"""What a run's kept checkpoints sample: quality over the images that training has seen."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sfumato.base.errors import DamagedDataError, InputError
from sfumato.base.files import folder_for, read_json, sibling, write_json
from sfumato.base.section import Section, validate
from sfumato.config.sections import DataConfig
from sfumato.evaluation.image_set import ImageSet, OnImages
from sfumato.evaluation.metrics.intervals import Estimate
from sfumato.evaluation.reference import Scores
from sfumato.evaluation.sampled_images import complete
from sfumato.generation.loading import load
from sfumato.generation.model import Model
from sfumato.studies.study import Study, StudyCard, StudyConfig
from sfumato.training.checkpoint import Checkpoints

FILE_NAME = "curve.json"
FORMAT = 2
SHOWN = 10


class CurveConfig(StudyConfig):
    """What each checkpoint samples."""


class CurvePoint(Section):
    """One checkpoint."""

    images_seen: int
    weights_sha256: str
    nfe: int
    """Network evaluations an image."""
    seconds: float
    """Time of sampling."""
    metrics: dict[str, Estimate]


class CurveCard(StudyCard):
    """Every point, and everything that they depend on; `model` is that of the last."""

    format: int = FORMAT
    points: list[CurvePoint]
    guidance: str
    guidance_scale: float
    shown: list[str]
    """What the first images are of: names of classes."""
    config: CurveConfig


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """One checkpoint's model and images."""

    model: Model
    images: ImageSet
    scores: Scores


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
    measured = _every_checkpoint(model, study, sibling(base, "images"), log, on_images)
    if not measured:
        raise InputError(
            f"{model.folder} has kept no checkpoint that can be sampled with.",
            hint="training.checkpoint_epochs and training.keep_checkpoints keep more.",
        )
    request = {
        "format": FORMAT,
        "weights": [one.model.provenance["weights_sha256"] for one in measured],
        "sampling": {**measured[-1].images.settings, "model": None},
        **study.request(),
    }
    folder = folder_for(base, request, say=log)
    if (folder / FILE_NAME).exists():
        return read_curve(folder).model_copy(update={"from_cache": True})
    names = list(study.reference.records.class_names[:SHOWN])
    card = CurveCard(
        points=[_point(one) for one in measured],
        guidance=model.sampling.guidance,
        guidance_scale=model.sampling.guidance_scale,
        shown=names,
        config=config,
        folder=folder,
        **study.card_fields(measured[-1].model),
    )
    from sfumato.studies.training_curve_page import write_curve

    write_curve(card, [one.images.images(range(len(names))) for one in measured])
    write_json(folder / FILE_NAME, card.model_dump(mode="json"))
    return card


def _every_checkpoint(
    model: Model,
    study: Study,
    store: Path,
    log: Callable[[str], None],
    on_images: OnImages,
) -> Sequence[_Measured]:
    """Those that can be sampled with."""
    assert model.folder is not None
    form = model.sampling.form
    after = int(dict(form.parameters)["images"]) if form.needs_weak_network else -1
    kept = [n for n in Checkpoints(model.folder / "checkpoints").counts() if n > after]
    measured = []
    for place, images_seen in enumerate(kept):
        try:
            own = _at_checkpoint(model, images_seen)
        except (InputError, DamagedDataError) as error:
            log(f"Left out: {error.what}")
            continue
        log(f"{images_seen:,} images seen")
        images = study.sampled(own, store)

        def on_all(what: str, done: int, total: int, place: int = place) -> None:
            on_images(what, place * total + done, len(kept) * total)

        complete([images], on_all, what="network evaluations")
        measured.append(_Measured(model=own, images=images, scores=study.score(images)))
    return measured


def _at_checkpoint(model: Model, images_seen: int) -> Model:
    """The same settings with the weights of another checkpoint."""
    assert model.folder is not None
    own = load(
        model.folder,
        device=str(model.device),
        checkpoint=images_seen,
        average=model.provenance.get("average"),
    )
    sampling = model.sampling
    return own.with_(
        guidance=sampling.guidance_scale,
        form=sampling.guidance,
        sampler=sampling.sampler,
        steps=sampling.steps,
        timestep_spacing=sampling.timestep_spacing,
    )


def _point(one: _Measured) -> CurvePoint:
    assert one.images.nfe is not None
    return CurvePoint(
        images_seen=one.model.provenance["images_seen"],
        weights_sha256=one.model.provenance["weights_sha256"],
        nfe=one.images.nfe,
        seconds=one.images.seconds or 0,
        metrics=one.scores.metrics,
    )


def read_curve(folder: Path) -> CurveCard:
    """The card in `folder`; `ConfigError` for one of another version."""
    values = {**read_json(folder / FILE_NAME), "folder": folder}
    return validate(CurveCard, values, source=str(folder / FILE_NAME))
