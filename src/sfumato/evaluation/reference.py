"""What drawn images are held against: real sets, a judge, and the captions that are asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import Field
from torch import Tensor

from sfumato import __version__
from sfumato.base.environment import command, hardware, now
from sfumato.base.errors import InputError
from sfumato.base.files import write_json
from sfumato.base.section import Section
from sfumato.diffusion.guidance import CONVENTION
from sfumato.diffusion.solvers.schedulers import sampler_of
from sfumato.evaluation.arms import Measured
from sfumato.evaluation.card import FeatureFloor, Figure, JudgeInfo, Yardstick
from sfumato.evaluation.classifier import Judge, load_judge
from sfumato.evaluation.figures import Features, ReferenceFeatures, feature_figures
from sfumato.evaluation.floors import RealSets, floor_of, reference_features, yardsticks_of
from sfumato.evaluation.real import OnImages, RealImages
from sfumato.evaluation.subjects import Asked, what_to_ask
from sfumato.generation.model import ImageGenerator

FEWEST_OF_CLASS = 3
MOST_REAL = 2_000


class GroundCard(Section):
    """What a card has beside its rows: what real images score, and what all of it depends on."""

    real: dict[str, Figure]
    floor: FeatureFloor | None
    yardsticks: list[Yardstick]
    reference: str
    reference_count: int
    judge: JudgeInfo
    scheduler: str
    timestep_spacing: str = ""
    steps: int
    model: dict[str, Any]
    convention: str = CONVENTION
    hardware: dict[str, Any] = Field(default_factory=hardware)
    sfumato: str = __version__
    date: str = Field(default_factory=now)
    command: str = ""


Card = TypeVar("Card", bound=GroundCard)


@dataclass(frozen=True, kw_only=True)
class Found(Generic[Card]):
    """A card, its folder, and images to show of each row; `before`: found earlier, with its
    pictures, so that `images` is empty."""

    file_name: ClassVar[str]

    card: Card
    folder: Path
    images: Sequence[Tensor] = ()
    before: bool = False

    def save(self) -> None:
        """Write the card: it comes last, as the sign that all is there."""
        write_json(self.folder / self.file_name, self.card.model_dump(mode="json"))


@dataclass(frozen=True, kw_only=True)
class Held:
    """Images held against real ones: every figure, and the pseudo-values (N,) whose mean is the
    Frechet distance."""

    measured: Measured
    figures: dict[str, Figure]
    distances: Tensor


@dataclass(frozen=True, kw_only=True)
class Ground:
    """The same for everything that one comparison draws: `asked.labels` are classes in turn."""

    real: RealSets
    judge: Judge
    asked: Asked
    on_images: OnImages
    """Told of real images that are read for the first time."""

    @classmethod
    def of(
        cls,
        generator: ImageGenerator,
        *,
        count: int,
        first_seed: int,
        judge: str,
        say: Callable[[str], None],
    ) -> "Ground":
        """`InputError` for a model without data or classes, or too few images."""
        data = generator.data
        if data is None:
            raise InputError(
                "This model does not say which data it was trained on.",
                hint="Give a run, or name the images with --data SOURCE.",
            )
        real = RealSets.load(data)
        check_enough(count, classes=len(real.reference.records.class_names))
        reader = load_judge(data, judge, device=generator.pipeline.device, on_training=say)
        asked = what_to_ask(
            real.reference.records,
            count=count,
            labels="balanced",
            templates=(),
            first_seed=first_seed,
        )
        assert asked.labels is not None  # the judge would have refused
        return cls(real=real, judge=reader, asked=asked, on_images=_once(say))

    @property
    def count(self) -> int:
        """Images of each set."""
        return len(self.asked.prompts)

    @cached_property
    def reference(self) -> ReferenceFeatures:
        return reference_features(self.real, self.judge.extractor, self.on_images)

    @cached_property
    def of_real(self) -> Measured:
        """The first real test images."""
        return real_measured(self.real.reference, self.real.count, self.judge)

    def hold(self, images: Tensor) -> Held:
        """Every figure of uint8 images (N, C, H, W) of the classes asked for."""
        assert self.asked.labels is not None
        measured = Measured.of(images, self.asked.labels, self.judge)
        features = Features.gathered([measured.features], measured.labels)
        found = feature_figures(features, self.reference, balanced=True)
        return Held(
            measured=measured,
            figures={**measured.figures(()), "frechet": found.figures.frechet},
            distances=found.values["frechet"],
        )

    def floor(self, pairs: int) -> FeatureFloor | None:
        """Real training sets of as many images; None where there are not so many."""
        return floor_of(
            self.real,
            self.judge.extractor,
            self.reference,
            self.count,
            pairs,
            self.on_images,
            balanced=True,
        )

    def card_fields(self, generator: ImageGenerator, *, floor_pairs: int) -> dict[str, Any]:
        """The fields of a `GroundCard` of what `generator` drew."""
        pipeline = generator.pipeline
        return {
            "real": self.of_real.figures(()),
            "floor": self.floor(floor_pairs),
            "yardsticks": self.yardsticks(),
            "reference": self.real.reference.records.description,
            "reference_count": self.real.count,
            "judge": JudgeInfo.of(self.judge),
            "scheduler": sampler_of(pipeline.scheduler)[0],
            "timestep_spacing": pipeline.scheduler.config["timestep_spacing"],
            "steps": pipeline.config["num_inference_steps"],
            "model": dict(generator.provenance),
            "command": command(),
        }

    def yardsticks(self) -> list[Yardstick]:
        """Altered real images, as many."""
        return yardsticks_of(
            self.real, self.judge.extractor, self.reference, self.count, balanced=True
        )


def check_enough(count: int, *, classes: int) -> None:
    """`InputError` for too few images."""
    least = FEWEST_OF_CLASS * classes
    if count < least:
        raise InputError(
            f"{count} images are too few: diversity needs {FEWEST_OF_CLASS} of each of {classes} "
            "classes.",
            hint=f"Give --count {least} or more.",
        )


def real_measured(images: RealImages, most: int, judge: Judge) -> Measured:
    """The first real images, at most `most`; classes of which one alone is there are left out,
    for diversity compares two."""
    count = min(len(images), most, MOST_REAL)
    labels = images.labels(count)
    rows = (labels.bincount()[labels] > 1).nonzero().squeeze(1)
    return Measured.of(images.at(rows), labels[rows], judge)


def _once(say: Callable[[str], None]) -> OnImages:
    """A sentence for each kind of real images: they are read once and kept."""
    told: set[str] = set()

    def on_images(what: str, done: int, total: int) -> None:
        if what not in told:
            told.add(what)
            say(f"Measuring {what} ({total:,}; kept for the next time) ...")

    return on_images
