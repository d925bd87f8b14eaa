"""What each network evaluation buys: quality over NFE, of samplers and of distilled students."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from sfumato.base.errors import InputError
from sfumato.base.files import sibling
from sfumato.base.lock import locked
from sfumato.config.sections import DataConfig
from sfumato.diffusion.solvers.registry import SAMPLERS
from sfumato.evaluation.image_set import ImageSet, OnImages
from sfumato.evaluation.metrics.intervals import Estimate
from sfumato.evaluation.metrics.paired import share_difference
from sfumato.evaluation.metrics.registry import title_of
from sfumato.evaluation.sampled_images import complete
from sfumato.generation.model import Model
from sfumato.report.grids import labelled_grid
from sfumato.report.page import markdown_table
from sfumato.studies.charts import Line, format_estimate, real_rows, scale_panels, study_text
from sfumato.studies.study import (
    ACCURACY,
    DIVERSITY,
    FRECHET,
    SetMetrics,
    Study,
    StudyCard,
    StudyConfig,
)

SHOWN = 10
PANELS = (ACCURACY, FRECHET, DIVERSITY, "saturated")
COLOURS = ("#1f618d", "#b9770e", "#1e8449", "#7d3c98", "#717d7e", "#c0392b", "#16a085", "#2c3e50")


class NfeConfig(StudyConfig):
    """What is sampled at every number of evaluations."""

    nfe: tuple[int, ...] = Field(default=(1, 2, 4, 6, 8, 10, 20, 50), min_length=1)
    """Network evaluations an image; a sampler takes the most steps that need no more."""
    samplers: tuple[str, ...] = Field(default=("DPMSolver++", "DDIM"), min_length=1)


class NfePoint(SetMetrics):
    """One setting. `against_most`: class accuracy minus that of the sampler with the most
    evaluations, paired by seed and caption."""

    name: str
    """The sampler, or the path of the student."""
    student: bool
    guidance_scale: float
    steps: int
    asked: int
    """The number of evaluations that this point stands for."""
    weights_sha256: str
    against_most: Estimate


class NfeCard(StudyCard):
    """Every point, and everything that they depend on; `model` is the teacher."""

    NAME: ClassVar[str] = "nfe"
    FORMAT: ClassVar[int] = 3

    points: list[NfePoint]
    guidance: str
    guidance_scale: float
    shown: list[str]
    config: NfeConfig
    most: int
    """Which point the others are compared with."""

    @property
    def how(self) -> str:
        others = [
            f"{one.name} at its own w = {one.guidance_scale:g}"
            for one in self.points
            if one.guidance_scale != self.guidance_scale
        ]
        first = f"{self.guidance} at w = {self.guidance_scale:g}"
        return f"{first}, but {', '.join(others)}" if others else first


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A model as it is sampled for one point; `name`: as of `NfePoint`."""

    name: str
    asked: int
    model: Model

    @property
    def student(self) -> bool:
        return self.model.sampling.form.folded


def usual_samplers(model: Model) -> list[str]:
    """The samplers of a curve of which none are named: those of `NfeConfig` where the model's
    process has them, else all that it has."""
    there = SAMPLERS[model.process.process]
    return [name for name in NfeConfig().samplers if name in there] or list(there)


def settings_of(model: Model, students: Mapping[str, Model], config: NfeConfig) -> list[Setting]:
    """Every point of the curve: each sampler at each number of evaluations that it can take, then
    the `students`, by their paths, at theirs, and at the guidance scale of `model` where they take
    it. `InputError` for a student of another data set's size, and where no sampler can take so few
    evaluations."""
    found = []
    for sampler in config.samplers:
        for asked in sorted(set(config.nfe)):
            fitting = with_nfe(model.with_(sampler=sampler), asked)
            if fitting is not None:
                found.append(Setting(name=sampler, asked=asked, model=fitting))
    if not found:
        raise InputError(
            f"One step takes more than {max(config.nfe)} network evaluations.",
            hint="Give larger numbers in --nfe: guidance asks the network twice in a step.",
        )
    for path, student in students.items():
        if not student.sampling.form.folded:
            raise InputError(
                f"{path} is not a student.",
                hint="Give the model, then students of it that `sfumato distil` made.",
            )
        if student.shape != model.shape:
            raise InputError(
                f"{path} makes images of {student.shape}, the model of {model.shape}.",
                hint="Give students of this model.",
            )
        (scale, *_) = student.sampling.scales_among([model.sampling.guidance_scale])
        own = student.with_(guidance=scale)
        found.append(Setting(name=path, asked=own.nfe(), model=own))
    return found


def with_nfe(model: Model, nfe: int) -> Model | None:
    """The model with the most steps that need at most `nfe` evaluations an image; None where one
    step needs more, or where they need so few that they do not stand for `nfe`."""
    best = None
    for steps in range(1, nfe + 1):
        try:
            one = model.with_(steps=steps)
            if one.nfe() > nfe:
                break
        except InputError:  # more steps than noise levels
            break
        best = one
    return None if best is None or best.nfe() <= nfe - max(2, nfe // 4) else best


def measure_nfe(
    model: Model,
    students: Mapping[str, Model],
    config: NfeConfig,
    *,
    base: Path,
    data: DataConfig | None = None,
    log: Callable[[str], None] = lambda text: None,
    on_images: OnImages = lambda what, done, total: None,
) -> NfeCard:
    """Sample every setting with the same seeds and captions, score every set once, and write card
    and pictures into `base`, or into `base`-2, ... where that holds another.

    Images lie in `base`-images and are not sampled again. Raises as `Study.of` and `settings_of`.
    """
    settings = settings_of(model, students, config)
    study = Study.of(model, config, data=data, log=log)
    store = sibling(base, "images")
    images = [study.sampled(one.model, store) for one in settings]
    request = {
        "points": [[one.name, own.key] for one, own in zip(settings, images, strict=True)],
        **study.request(),
    }
    folder, card = NfeCard.at(base, request, log)
    if card is not None:
        return card
    complete(images, on_images, what="network evaluations")
    with locked(folder):
        return _write(study, model, list(zip(settings, images, strict=True)), folder)


def _write(
    study: Study, model: Model, sampled: Sequence[tuple[Setting, ImageSet]], folder: Path
) -> NfeCard:
    scores = [study.score(images) for _, images in sampled]
    most = max(
        (place for place, (one, _) in enumerate(sampled) if not one.student),
        key=lambda place: (sampled[place][0].asked, -place),
    )
    right = [one.values[ACCURACY].bool() for one in scores]
    names = study.reference.records.examples(SHOWN)[1]
    assert isinstance(study.config, NfeConfig)
    card = NfeCard(
        points=[
            NfePoint.of(
                images,
                score.metrics,
                name=setting.name,
                student=setting.student,
                guidance_scale=setting.model.sampling.guidance_scale,
                steps=setting.model.sampling.steps,
                asked=setting.asked,
                weights_sha256=setting.model.provenance.get("weights_sha256", ""),
                against_most=share_difference(hits, right[most]),
            )
            for (setting, images), score, hits in zip(sampled, scores, right, strict=True)
        ],
        guidance=model.sampling.guidance,
        guidance_scale=model.sampling.guidance_scale,
        shown=names,
        most=most,
        folder=folder,
        **study.card_fields(model, **study.baselines()),
    )
    card.write(markdown(card), {"nfe": chart(card), "examples": _examples(card, sampled)})
    return card


# Writing ------------------------------------------------------------------------------------------


def lines_of(card: NfeCard) -> dict[str, list[NfePoint]]:
    """The points of each sampler, fewest evaluations first, then the one of each student."""
    names = dict.fromkeys(point.name for point in card.points)
    return {
        name: sorted((one for one in card.points if one.name == name), key=lambda one: one.nfe)
        for name in names
    }


def chart(card: NfeCard) -> bytes:
    """PNG: each of `PANELS` over the number of evaluations, a line for each sampler, a diamond for
    each student."""
    lines = [
        Line(
            label=name,
            points={point.nfe: point.metrics for point in points},
            colour=COLOURS[place % len(COLOURS)],
            marker="D" if points[0].student else "o",
        )
        for place, (name, points) in enumerate(lines_of(card).items())
    ]
    return scale_panels(lines, card, PANELS, count=card.config.count, over="network evaluations")


def _examples(card: NfeCard, sampled: Sequence[tuple[Setting, ImageSet]]) -> bytes:
    """The first image of each class, a row for each setting."""
    return labelled_grid(
        [list(images.images(range(len(card.shown)))) for _, images in sampled],
        row_labels=[f"{one.name}, {one.model.nfe()}" for one, _ in sampled],
        column_labels=card.shown,
        settings=[{"first_seed": card.config.first_seed}],
    )


def markdown(card: NfeCard) -> str:
    """Every point with its intervals, what real images score, and how it came about."""
    rows = [
        [
            point.name,
            f"{point.nfe}",
            f"{point.steps}",
            *(format_estimate(key, point.metrics.get(key)) for key in PANELS),
            f"{point.against_most}",
        ]
        for points in lines_of(card).values()
        for point in points
    ]
    header = ["sampler", "NFE", "steps", *map(title_of, PANELS), "accuracy, paired difference"]
    sampled = (
        f"{card.config.count:,} images of each setting, seeds from {card.config.first_seed}; "
        f"differences to {card.points[card.most].name} at {card.points[card.most].nfe} NFE"
    )
    table = markdown_table(header, rows + real_rows(card, PANELS, before=2, after=1), left=1)
    return study_text(card, sampled, table)
