"""The metric card: every metric of an evaluation, and everything that it depends on, as JSON."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from sfumato import __version__
from sfumato.base.environment import hardware, now
from sfumato.base.errors import DamagedDataError
from sfumato.base.files import read_json, write_json
from sfumato.base.section import Section
from sfumato.evaluation.classifier import ImageClassifier
from sfumato.evaluation.metrics.intervals import Estimate

SCHEMA_VERSION = 3
FILE_NAME = "card.json"


class Spread(Section):
    """Mean and standard deviation over real sets."""

    mean: float
    std: float


class Baseline(Section):
    """The real-vs-real baseline of one extractor: real sets of `count` images measured as a
    generated set is, which is what a perfect model scores."""

    count: int
    reference_count: int
    pairs: int
    disjoint: Literal["both", "sets", "none"]
    """both: pairs share no image; sets: the real sets share none, the reference is one; none: the
    sets are repeated samples of too few images, so the spread is a lower bound."""
    balanced: bool = False
    """Whether the real sets hold as many images of each class, as the generated ones do."""
    metrics: dict[str, Spread] = Field(default_factory=dict)
    """By the metric's name."""


class PerturbationBaseline(Section):
    """Frechet distance of `count` real test images, changed a little, from the reference."""

    title: str
    frechet: float
    count: int
    of_reference: bool
    """Whether the images are the reference's own, which makes their distance smaller."""


class Classes(Section):
    """Accuracy class by class; `confusion[label][predicted]`."""

    names: list[str]
    accuracy: list[Estimate | None]
    confusion: list[list[int]]


class Row(Section):
    """One set of images: `row.metrics["frechet.classifier"]`, `row.class_accuracy`."""

    title: str
    count: int
    settings: dict[str, Any] = Field(default_factory=dict)
    """Guidance scale, form and convention, sampler, steps, seeds, weights, device."""
    nfe: int | None = None
    """Network evaluations an image; a guided step takes two."""
    seconds: float | None = None
    """Time of sampling."""
    metrics: dict[str, Estimate] = Field(default_factory=dict)
    """By name, with ".EXTRACTOR" for those of features. Never NaN: what cannot be measured is left
    out, and `notes` say why."""
    classes: Classes | None = None
    images: str = ""
    """Where the sampled images lie, from the card's folder."""
    notes: list[str] = Field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        """A metric by its name alone, where there is one of that name."""
        metrics = self.__dict__.get("metrics", {})
        if name.startswith("_") or not metrics:
            raise AttributeError(name)
        keys = [key for key in metrics if name in (key, key.partition(".")[0])]
        if len(keys) == 1:
            return metrics[keys[0]]
        which = f"several: {', '.join(keys)}" if keys else f"none; it has {', '.join(metrics)}"
        raise AttributeError(f"the row '{self.title}' has no single metric '{name}' ({which})")


class ExtractorInfo(Section):
    """One network of features: its name states weights by hash, layer and resize rule."""

    key: str
    title: str
    """What the Frechet distance on it is called: FID on the published Inception alone."""
    name: str = ""
    dim: int = 0
    missing: str = ""
    """Why there are no metrics on it."""
    hint: str = ""


class ClassifierInfo(Section):
    """The classifier of the class accuracy."""

    identity: str
    description: str
    test_count: int

    @classmethod
    def of(cls, classifier: ImageClassifier) -> "ClassifierInfo":
        return cls(
            identity=classifier.identity,
            description=classifier.description,
            test_count=classifier.test_accuracy.count or 0,
        )


class ReferenceInfo(Section):
    """The real images on the other side."""

    description: str
    """Source, split, encoding (compression), sizes and resize rule."""
    digest: str
    """Changes with the data, the split and every setting of how they are read."""
    count: int
    training_description: str


class Subject(Section):
    """What was evaluated."""

    kind: Literal["run", "pipeline", "images"]
    name: str
    provenance: dict[str, Any] = Field(default_factory=dict)
    captions: list[str] = Field(default_factory=list)
    """Caption templates of the prompts."""
    labels: Literal["balanced", "random", "as found"] = "as found"


class Card(Section):
    """All metrics of one evaluation. Rows under one key are comparable; across cards only where
    `reference`, `classifier` and the extractor's name are the same (`sfumato compare`)."""

    schema_version: Literal[3] = SCHEMA_VERSION
    subject: Subject
    reference: ReferenceInfo
    classifier: ClassifierInfo | None
    extractors: list[ExtractorInfo]
    rows: list[Row]
    real: Row
    """Of the reference images themselves, with their own classes and captions."""
    baselines: dict[str, Baseline]
    """Real against real, by extractor."""
    perturbations: dict[str, list[PerturbationBaseline]] = Field(default_factory=dict)
    """By extractor: how far real test images lie when they are moved, noised or blurred."""
    blind: dict[str, str] = Field(default_factory=dict)
    """Metrics by key that say nothing on this data, and why: they are left out of `rows`."""
    confidence: float = 0.95
    warnings: list[str] = Field(default_factory=list)
    sfumato: str = __version__
    date: str = Field(default_factory=now)
    hardware: dict[str, Any] = Field(default_factory=hardware)
    command: str = ""
    folder: Path | None = Field(default=None, exclude=True)
    """Where the card lies."""
    from_cache: bool = Field(default=False, exclude=True)
    """Whether the same evaluation was there before."""

    @property
    def measured(self) -> list[ExtractorInfo]:
        """The extractors that there are metrics on."""
        return [info for info in self.extractors if not info.missing]

    def real_value(self, key: str) -> float | None:
        """What real images score: the mean of real against real, or that of the reference."""
        name, _, extractor = key.partition(".")
        baseline = self.baselines.get(extractor)
        if baseline is not None and name in baseline.metrics:
            return baseline.metrics[name].mean
        return self.real.metrics[key].value if key in self.real.metrics else None

    def save(self, folder: Path) -> "Card":
        """Write `card.json` into `folder`; the card with that folder."""
        write_json(folder / FILE_NAME, self.model_dump(mode="json"))
        return self.model_copy(update={"folder": folder})

    def __str__(self) -> str:
        from sfumato.evaluation.tables import format_card

        return format_card(self)


def read_card(folder: Path) -> Card:
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
        return Card.model_validate({**values, "folder": folder})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DamagedDataError(
            f"{folder / FILE_NAME} is damaged: {where}: {first['msg']}.",
            hint="Run `sfumato evaluate` again.",
        ) from error
