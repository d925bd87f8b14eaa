"""What the studies of one model share: prompts and seeds, the reference, scores, and the card."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field

from sfumato import __version__
from sfumato.base.environment import command, hardware, now
from sfumato.base.errors import InputError
from sfumato.base.files import folder_for, read_json, write_bytes, write_json, write_text
from sfumato.base.section import Section, validate
from sfumato.config.sections import DataConfig, EvaluationConfig
from sfumato.data.records import load_records
from sfumato.diffusion.guidance import CONVENTION
from sfumato.evaluation.baselines import can_balance, perturbation_baselines, real_baseline
from sfumato.evaluation.card import Baseline, ClassifierInfo, PerturbationBaseline
from sfumato.evaluation.image_set import ImageSet
from sfumato.evaluation.metrics.intervals import Estimate
from sfumato.evaluation.metrics.registry import all_metrics
from sfumato.evaluation.prompt_set import PromptSet
from sfumato.evaluation.reference import Reference, Scores
from sfumato.evaluation.sampled_images import sampled_set
from sfumato.generation.can import CanModel
from sfumato.generation.loading import load
from sfumato.generation.model import Model

FEWEST_OF_CLASS = 3
MOST_REAL = 2_000
ACCURACY, FRECHET, DIVERSITY = "class_accuracy", "frechet.classifier", "diversity.classifier"
"""Keys of the metrics that every study has."""
OF_PIXELS = (
    "border_rms",
    "border_deviation",
    "edge_rms",
    "high_frequency",
    "saturated",
    "brightness",
)
MEASURED = (*OF_PIXELS, "class_accuracy", "frechet", "diversity")
"""Names of the metrics of a study."""


class StudyConfig(Section):
    """What is sampled for a study."""

    count: int = 500
    """Images of each setting, classes in turn."""
    first_seed: int = Field(default=0, ge=0)
    classifier: str = "auto"
    """As `evaluation.classifier`."""
    baseline_pairs: int = Field(default=10, ge=2)
    """As `evaluation.baseline_pairs`."""


class SetMetrics(Section):
    """What one set of sampled images scores, and what it cost."""

    nfe: int
    """Network evaluations an image."""
    seconds: float
    """Time of sampling."""
    metrics: dict[str, Estimate]

    @classmethod
    def of(cls, images: ImageSet, metrics: Mapping[str, Estimate], /, **fields: Any) -> Self:
        assert images.nfe is not None  # they are sampled
        seconds = images.seconds or 0
        return cls(nfe=images.nfe, seconds=seconds, metrics=dict(metrics), **fields)


class StudyCard(Section):
    """What a card has beside its rows: what real images score, and what all of it depends on.

    It lies in its folder as `NAME`.json beside `NAME`.md, `NAME`.png and examples.png.
    """

    NAME: ClassVar[str]
    FORMAT: ClassVar[int]

    real: dict[str, Estimate]
    baseline: Baseline | None
    perturbations: list[PerturbationBaseline]
    reference: str
    reference_count: int
    classifier: ClassifierInfo
    sampler: str
    timestep_spacing: str
    steps: int
    model: dict[str, Any]
    convention: str = CONVENTION
    hardware: dict[str, Any] = Field(default_factory=hardware)
    sfumato: str = __version__
    date: str = Field(default_factory=now)
    command: str = ""
    folder: Path | None = Field(default=None, exclude=True)
    from_cache: bool = Field(default=False, exclude=True)
    """Whether the same study was there before."""

    @property
    def how(self) -> str:
        """How the images were sampled, in a few words."""
        return f"{self.sampler}, {self.steps} steps"

    @classmethod
    def at(
        cls, base: Path, request: Mapping[str, Any], log: Callable[[str], None]
    ) -> tuple[Path, Self | None]:
        """The folder of a study with this `request`: `base`, or `base`-2, ... where that holds
        another; and its card, where it is there already."""
        folder = folder_for(base, {"format": cls.FORMAT, **request}, log=log)
        if not (folder / f"{cls.NAME}.json").exists():
            return folder, None
        return folder, cls.read(folder).model_copy(update={"from_cache": True})

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The card in `folder`; `ConfigError` for one of another version."""
        file = folder / f"{cls.NAME}.json"
        return validate(cls, {**read_json(file), "folder": folder}, source=str(file))

    def write(self, text: str, pictures: Mapping[str, bytes]) -> None:
        """`text` as Markdown, `pictures` by name without ending, and last the card."""
        assert self.folder is not None
        for name, png in pictures.items():
            write_bytes(self.folder / f"{name}.png", png)
        write_text(self.folder / f"{self.NAME}.md", text)
        write_json(self.folder / f"{self.NAME}.json", self.model_dump(mode="json"))


@dataclass(frozen=True, kw_only=True, eq=False)
class Study:
    """The same prompts and seeds for everything that one study samples, and its reference."""

    config: StudyConfig
    reference: Reference
    prompts: PromptSet

    @classmethod
    def of(
        cls,
        model: Model,
        config: StudyConfig,
        *,
        data: DataConfig | None = None,
        log: Callable[[str], None] = lambda text: None,
    ) -> "Study":
        """`data`: the real images, the model's own unless given. `InputError` for a model without
        data or classes, or too few images."""
        data = data or model.data
        if data is None:
            raise InputError(
                "The data set that this model was trained on is not known.",
                hint="Give a run, or name the images with --data SOURCE.",
            )
        records = load_records(data, "reference")
        _check_enough(config.count, classes=len(records.present))
        evaluation = EvaluationConfig(classifier=config.classifier, extractors=("classifier",))
        reference = Reference.load(
            data, evaluation, device=model.device, log=log, on_images=_once(log)
        )
        prompts = PromptSet.of(records, config.count, seed=config.first_seed)
        return cls(config=config, reference=reference, prompts=prompts)

    def sampled(
        self, model: Model, folder: Path, prompts: PromptSet | None = None, **options: Any
    ) -> ImageSet:
        """A set with the study's seeds, and its prompts unless given; `options` as for
        `sampled_set`."""
        first, prompts = self.config.first_seed, prompts or self.prompts
        seeds = range(first, first + len(prompts))
        return sampled_set(model, prompts, seeds, folder=folder, **options)

    def score(self, images: ImageSet) -> Scores:
        """Every metric of a study."""
        return self.reference.score(images, MEASURED)

    @cached_property
    def real_images(self) -> ImageSet:
        """The first reference images of classes of which there are two: diversity compares two."""
        return self.reference.pairs_of_each_class(MOST_REAL)

    @cached_property
    def real(self) -> Scores:
        """Every metric of real images, except the distance."""
        names = [name for name in MEASURED if all_metrics()[name].real]
        return self.reference.score(self.real_images, names)

    @cached_property
    def balanced(self) -> bool:
        """Whether the baselines have as many images of each class, as the prompts have."""
        return can_balance(self.reference, len(self.prompts))

    def request(self) -> dict[str, Any]:
        """What every result of the study depends on beside the images."""
        classifier = self.reference.classifier
        assert classifier is not None  # the data have classes
        return {
            "config": self.config.model_dump(mode="json"),
            "reference": self.reference.images.key,
            "classifier": classifier.identity,
        }

    def card_fields(self, model: Model, **fields: Any) -> dict[str, Any]:
        """The fields of a `StudyCard` of what `model` sampled, without baselines, and `fields`."""
        reference = self.reference
        assert reference.classifier is not None  # the data have classes
        return {
            "config": self.config,
            "real": self.real.metrics,
            "baseline": None,
            "perturbations": [],
            "reference": reference.records.description,
            "reference_count": reference.images.count,
            "classifier": ClassifierInfo.of(reference.classifier),
            "sampler": model.sampling.sampler,
            "timestep_spacing": model.sampling.timestep_spacing,
            "steps": model.sampling.steps,
            "model": dict(model.provenance),
            "command": command(),
            **fields,
        }

    def baselines(self) -> dict[str, Any]:
        """Real-vs-real and perturbation baselines, as fields of a `StudyCard`."""
        of = {"count": len(self.prompts), "balanced": self.balanced}
        pairs = self.config.baseline_pairs
        return {
            "baseline": real_baseline(self.reference, "classifier", pairs=pairs, **of),
            "perturbations": perturbation_baselines(self.reference, "classifier", **of),
        }


def at_checkpoint(model: Model, images_seen: int) -> Model:
    """The same settings with the weights of another checkpoint of its run."""
    assert model.folder is not None
    average = model.provenance.get("average")
    own = load(model.folder, device=str(model.device), checkpoint=images_seen, average=average)
    if isinstance(model, CanModel):
        return own
    sampling = model.sampling
    return own.with_(
        guidance=sampling.guidance_scale,
        form=sampling.guidance,
        sampler=sampling.sampler,
        steps=sampling.steps,
        timestep_spacing=sampling.timestep_spacing,
    )


def _check_enough(count: int, *, classes: int) -> None:
    least = FEWEST_OF_CLASS * classes
    if count < least:
        raise InputError(
            f"{count} images are too few: diversity needs {FEWEST_OF_CLASS} of each of {classes} "
            "classes.",
            hint=f"Give --count {least} or more.",
        )


def _once(log: Callable[[str], None]) -> Callable[[str, int, int], None]:
    """A line for each kind of real images: they are read once and kept."""
    logged: set[str] = set()

    def on_images(what: str, done: int, total: int) -> None:
        if what not in logged:
            logged.add(what)
            log(f"Measuring {what} ({total:,}; kept for the next time) ...")

    return on_images
