"""The metric card: every figure of an evaluation, and everything that it depends on, as JSON."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from sfumato import __version__
from sfumato.base.environment import hardware, now
from sfumato.base.errors import DamagedDataError
from sfumato.base.files import read_json, write_json
from sfumato.base.section import Section
from sfumato.evaluation.classifier import Judge
from sfumato.evaluation.metrics.agreement import Agreement

SCHEMA_VERSION = 2
FILE_NAME = "card.json"


class Figure(Section):
    """A value, with its 95 % interval where it has one. Never NaN: what cannot be measured is left
    out, and `notes` say why."""

    value: float
    low: float | None = None
    high: float | None = None


class Spread(Section):
    """Mean and standard deviation over real sets."""

    mean: float
    std: float


class FeatureFigures(Section):
    """One set of images against the reference, on the features of one extractor."""

    frechet: Figure
    """Frechet distance; its interval holds the error of the images drawn, not the bias of few."""
    frechet_infinity: Figure | None = None
    """Extrapolated to endlessly many images on both sides; needs five times D images."""
    kernel: Figure | None = None
    """KID: unbiased squared maximum mean discrepancy, cubic kernel."""
    precision: Figure | None = None
    recall: Figure | None = None
    density: Figure | None = None
    coverage: Figure | None = None
    diversity: Figure | None = None
    """Mean distance of two images of one class, in the features' units."""


class FeatureFloor(Section):
    """Real sets of `count` images measured as a generated set is: what a perfect model scores."""

    count: int
    reference_count: int
    pairs: int
    disjoint: Literal["both", "sets", "none"]
    """both: pairs share no image; sets: the real sets share none, the reference is one; none: the
    sets were drawn again from too few images, so that the spread is a lower bound."""
    balanced: bool = False
    """Whether the real sets hold as many images of each class, as the generated ones do."""
    frechet: Spread | None = None
    kernel: Spread | None = None
    precision: Spread | None = None
    recall: Spread | None = None
    density: Spread | None = None
    coverage: Spread | None = None
    diversity: Figure | None = None
    """Diversity within a class of the reference images."""


class Yardstick(Section):
    """Frechet distance of `count` real test images, altered a little, from the reference."""

    title: str
    frechet: float
    count: int
    of_reference: bool
    """Whether the images are the reference's own, which makes their distance smaller."""


class ScoreOfInception(Section):
    """Inception score: mean and deviation over ten parts, and of all images as one."""

    value: float
    std: float
    whole: float


class Classes(Section):
    """Agreement class by class: `confusion[asked][seen]`."""

    names: list[str]
    agreement: list[Figure | None]
    confusion: list[list[int]]


class Untrained(Section):
    """Accuracy of 20 judges with random weights, the paper's setup, on one set of images."""

    mean: float
    lowest: float
    highest: float
    chance: float


class RowFigures(Section):
    """What is said of one set of images, generated or real."""

    agreement: Figure | None = None
    """Share in which the judge sees the class that was asked for; Wilson's interval."""
    saturated: float
    """Share of pixel values at 0 or 255."""
    clip_score: dict[str, Figure] = Field(default_factory=dict)
    """100 max(cos, 0) between image and caption, by extractor."""
    inception_score: dict[str, ScoreOfInception] = Field(default_factory=dict)
    """By extractor."""
    untrained: Untrained | None = None
    """Where an untrained judge was asked for: what such judges are worth on these images."""


class Memorised(Section):
    """Nearest training images of the generated ones."""

    extractor: str
    share: Figure
    """Share of generated images as close to a training image as the closest `quantile` of real
    test images are: about `quantile` for a model that does not copy."""
    quantile: float
    training_count: int


class Row(RowFigures):
    """One set of generated images."""

    title: str
    count: int
    settings: dict[str, Any]
    """Guidance scale, form and convention, scheduler, steps, seeds, weights, device."""
    calls: int | None = None
    """Network evaluations an image; a guided step takes two."""
    seconds: float | None = None
    """Time of drawing them."""
    features: dict[str, FeatureFigures] = Field(default_factory=dict)
    """By extractor."""
    classes: Classes | None = None
    memorised: Memorised | None = None
    notes: list[str] = Field(default_factory=list)
    """What could not be measured, and why."""


class ExtractorInfo(Section):
    """One network of features: its name states weights by hash, layer and resize rule."""

    key: str
    title: str
    """What the Frechet distance on it is called: FID on the published Inception alone."""
    name: str = ""
    dim: int = 0
    missing: str = ""
    """Why there are no figures on it."""
    hint: str = ""


class JudgeInfo(Section):
    """Who reads the classes."""

    identity: str
    description: str
    test_count: int

    @classmethod
    def of(cls, judge: Judge) -> "JudgeInfo":
        return cls(
            identity=judge.identity,
            description=judge.description,
            test_count=judge.test_accuracy.count,
        )


class ReferenceInfo(Section):
    """The real images on the other side."""

    description: str
    """Source, split, encoding (compression), sizes and resize rule."""
    digest: str
    """Changes with the data, the split and every setting of how they are read."""
    count: int
    training_description: str


class Subjects(Section):
    """What was measured."""

    kind: Literal["run", "pipeline", "folder", "npz"]
    name: str
    provenance: dict[str, Any] = Field(default_factory=dict)
    captions: list[str] = Field(default_factory=list)
    """Caption templates that the images were asked for by."""
    labels: Literal["balanced", "random", "as found"]


class MetricCard(Section):
    """All figures of one evaluation. `features` of rows under one key are comparable; across cards
    only where `reference`, `judge` and the extractor's name are the same (`sfumato compare`)."""

    schema_version: Literal[2] = SCHEMA_VERSION
    subject: Subjects
    reference: ReferenceInfo
    judge: JudgeInfo | None
    extractors: list[ExtractorInfo]
    rows: list[Row]
    real: RowFigures
    """Of the reference images themselves, with their own classes and captions."""
    floors: dict[str, FeatureFloor]
    yardsticks: dict[str, list[Yardstick]] = Field(default_factory=dict)
    """By extractor: how far real test images lie when they are moved, noised or blurred."""
    confidence: float = 0.95
    warnings: list[str] = Field(default_factory=list)
    sfumato: str = __version__
    date: str = Field(default_factory=now)
    hardware: dict[str, Any] = Field(default_factory=hardware)
    command: str = ""

    @property
    def measured(self) -> list[ExtractorInfo]:
        """The extractors that there are figures on."""
        return [info for info in self.extractors if not info.missing]

    def save(self, folder: Path) -> Path:
        """Write `card.json` into `folder`."""
        write_json(folder / FILE_NAME, self.model_dump(mode="json"))
        return folder / FILE_NAME


def read_card(folder: Path) -> MetricCard:
    """The card in `folder`; `DamagedDataError` where it is of another schema."""
    values = read_json(folder / FILE_NAME)
    version = values.get("schema_version") if isinstance(values, dict) else None
    if version != SCHEMA_VERSION:
        raise DamagedDataError(
            f"{folder / FILE_NAME} is not a metric card of version {SCHEMA_VERSION}"
            + (f", but {version}." if version else "."),
            hint="Run `sfumato evaluate` again.",
        )
    try:
        return MetricCard.model_validate(values)
    except ValidationError as error:
        raise DamagedDataError(
            f"{folder / FILE_NAME} is damaged: {error.errors()[0]['loc']}: "
            f"{error.errors()[0]['msg']}.",
            hint="Run `sfumato evaluate` again.",
        ) from error


def classes_of(found: Agreement, names: list[str]) -> Classes:
    """Agreement class by class, for the card."""
    return Classes(
        names=names,
        agreement=[figure(share) if share else None for share in found.classes],
        confusion=found.confusion.tolist(),
    )


def figure(found: Any) -> Figure:
    """Anything with `value`, `low` and `high`."""
    return Figure(value=found.value, low=found.low, high=found.high)
