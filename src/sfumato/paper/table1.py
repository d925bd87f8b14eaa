"""Table 1 of the paper by its own protocol and by one that can be believed, of the same images.

The paper (section 3.3.6): 1,000 images, 100 a class, against 1,000 real test images, FID by
pytorch-fid, accuracy by an ImageNet ResNet-18 whose first and last layers were never trained. The
other: a trained judge, all reference images, intervals, and what real images score.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from pydantic import Field
from torch import Tensor

from sfumato import __version__
from sfumato.base.environment import command, now
from sfumato.base.errors import InputError
from sfumato.base.files import write_json
from sfumato.base.section import Section
from sfumato.config.sections import EvaluationConfig
from sfumato.evaluation.card import Figure, Untrained, figure
from sfumato.evaluation.classifier import UntrainedHeads, load_judge, untrained_heads
from sfumato.evaluation.extractors.extractor import FeatureExtractor, WeightsNotAtHandError
from sfumato.evaluation.extractors.registry import load_extractor
from sfumato.evaluation.extractors.vision import ResNetBody, load_resnet_body
from sfumato.evaluation.figures import (
    Features,
    ReferenceFeatures,
    feature_figures,
    in_turn,
    reference_of,
)
from sfumato.evaluation.floors import RealSets
from sfumato.evaluation.measure import Evaluated, untrained_of
from sfumato.evaluation.parts import Parts
from sfumato.evaluation.real import RealImages
from sfumato.evaluation.taken import PART_IMAGES, images_folder
from sfumato.evaluation.target import Target

FILE_NAME = "table1.json"
SCALES = (0.0, 2.0, 5.0, 10.0)
COUNT = 1_000
HEADS = 20
_INCEPTION = "inception-pytorch-fid"


class Paper(Section):
    """One set of images by the paper's protocol."""

    fid: Figure | None
    """pytorch-fid's, against as many real test images; None where its weights are not at hand."""
    frechet: Figure
    """The same on the judge's features, which are at hand everywhere."""
    first_head: Figure | None
    """Accuracy of the paper's classifier, seed 0; None where ResNet-18 is not at hand."""
    heads: Untrained | None
    """The same of 20 such classifiers, which differ in their random layers alone."""
    random_networks: Untrained
    """Accuracy of 20 small networks with random weights all through."""


class Table1Row(Section):
    """One guidance scale, or real images."""

    title: str
    paper: Paper
    frechet: Figure | None
    """On the judge's features, against all reference images."""
    agreement: Figure | None
    """Of the trained judge; None for real images, whose row is of the paper's protocol."""


class Table1(Section):
    """Both protocols side by side, and all that they depend on."""

    rows: list[Table1Row]
    count: int
    reference_count: int
    floor: Figure | None
    """Frechet distance of real training sets of `count` images against all reference images."""
    judge_accuracy: Figure
    """Of the trained judge on the reference images."""
    chance: float
    missing: dict[str, str]
    """What is not at hand, and why."""
    reference: str
    judge: str
    card: str
    """The evaluation that the images belong to."""
    drawn: str = ""
    """By which form of guidance, sampler and steps."""
    sfumato: str = __version__
    date: str = Field(default_factory=now)
    command: str = ""


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What the paper's protocol needs beside a judge, opened before anything is drawn. `missing`:
    what is not at hand, and why."""

    inception: FeatureExtractor | None
    body: ResNetBody | None
    missing: dict[str, str]

    @classmethod
    def open(cls, target: Target, config: EvaluationConfig) -> "Tools":
        """Raises for weights that are there and cannot be used, and where the real images are too
        few or the images drawn have no classes."""
        if target.subjects[0].labels is None:
            raise InputError("Table 1 needs images of known classes.")
        real = RealSets.load(target.data)
        for images in (real.reference, real.tuning or real.training):
            _rows_of_each_class(images, target.subjects[0].count)
        missing: dict[str, str] = {}
        inception = body = None
        try:
            inception = load_extractor(_INCEPTION, config.features)
        except WeightsNotAtHandError as error:
            missing["fid"] = f"{error.what} {error.hint}"
        try:
            body = load_resnet_body(
                config.features.resnet, may_download=config.features.may_download
            )
        except WeightsNotAtHandError as error:
            missing["resnet"] = f"{error.what} {error.hint}"
        return cls(inception=inception, body=body, missing=missing)


def measure_table1(
    target: Target,
    config: EvaluationConfig,
    evaluated: Evaluated,
    tools: Tools,
    *,
    say: Callable[[str], None] = lambda sentence: None,
) -> Table1:
    """Both protocols of the images of an evaluation, written beside its card as table1.json."""
    card = evaluated.card
    judge = load_judge(target.data, config.classifier, on_training=say)
    count = target.subjects[0].count
    real = RealSets.load(target.data)
    against = _Against.of(_of_each_class(real.reference, count)[0], tools, judge.extractor)
    measure = partial(_paper, target=target, tools=tools, judge=judge.extractor, against=against)
    rows = []
    for subject, row in zip(target.subjects, card.rows, strict=True):
        assert subject.labels is not None  # `Tools.open` saw to it
        say(f"Measuring {row.title} by the paper's protocol ...")
        parts = Parts(images_folder(evaluated.folder, subject.title), count=count, rows=PART_IMAGES)
        drawn = torch.cat([parts.get(part, subject.make)["images"] for part in parts])
        rows.append(
            Table1Row(
                title=row.title,
                paper=measure(drawn, subject.labels),
                frechet=row.features["judge"].frechet,
                agreement=row.agreement,
            )
        )
    others = real.tuning or real.training
    say("Measuring real images by the paper's protocol ...")
    other_images, other_labels = _of_each_class(others, count)
    rows.append(
        Table1Row(
            title="other real test images" if real.tuning else "real training images",
            paper=measure(other_images, other_labels),
            frechet=None,
            agreement=None,
        )
    )
    floor = card.floors.get("judge")
    spread = None if floor is None else floor.frechet
    table = Table1(
        rows=rows,
        count=count,
        reference_count=card.reference.count,
        floor=None
        if spread is None
        else Figure(value=spread.mean, low=spread.mean - spread.std, high=spread.mean + spread.std),
        judge_accuracy=figure(judge.test_accuracy),
        chance=rows[0].paper.random_networks.chance,
        missing=tools.missing,
        reference=card.reference.description,
        judge=judge.identity,
        card=evaluated.folder.name,
        drawn="{guidance}, {scheduler} in {steps} steps".format_map(card.rows[0].settings),
        command=command(),
    )
    write_json(evaluated.folder / FILE_NAME, table.model_dump(mode="json"))
    return table


@dataclass(frozen=True, kw_only=True)
class _Against:
    """The real test images of the paper's protocol."""

    inception: ReferenceFeatures | None
    judge: ReferenceFeatures

    @classmethod
    def of(cls, images: Tensor, tools: Tools, judge: FeatureExtractor) -> "_Against":
        inception = tools.inception
        return cls(
            inception=None if inception is None else reference_of(inception(images)),
            judge=reference_of(judge(images)),
        )


def _paper(
    images: Tensor,
    labels: Tensor,
    *,
    target: Target,
    tools: Tools,
    judge: FeatureExtractor,
    against: _Against,
) -> Paper:
    fid = heads = None
    if tools.inception is not None and against.inception is not None:
        fid = _distance(tools.inception(images), labels, against.inception)
    random_networks = untrained_heads(target.data, images, labels, count=HEADS)
    classes = round(1 / random_networks.chance)
    if tools.body is not None:
        body = tools.body
        heads = UntrainedHeads.of(
            lambda seed: body.logits(images, classes=classes, seed=seed),
            labels,
            classes=classes,
            count=HEADS,
        )
    return Paper(
        fid=fid,
        frechet=_distance(judge(images), labels, against.judge),
        first_head=None if heads is None else figure(heads.accuracies[0]),
        heads=None if heads is None else untrained_of(heads),
        random_networks=untrained_of(random_networks),
    )


def _distance(features: Tensor, labels: Tensor, against: ReferenceFeatures) -> Figure:
    own = Features.gathered([features], labels)
    return feature_figures(own, against, balanced=True).figures.frechet


def _of_each_class(real: RealImages, count: int) -> tuple[Tensor, Tensor]:
    """`count` images, as many of each class, and their classes."""
    rows = _rows_of_each_class(real, count)
    return real.at(rows), real.labels(len(real))[rows]


def _rows_of_each_class(real: RealImages, count: int) -> Tensor:
    shares = in_turn(real.labels(len(real)), count)
    if shares is None:
        raise InputError(
            f"Table 1 takes {count:,} real images, as many of each class; there are "
            f"{len(real):,} in {real.records.description}.",
            hint="Give --count a smaller number.",
        )
    return torch.cat([own[:share] for own, share in shares])
