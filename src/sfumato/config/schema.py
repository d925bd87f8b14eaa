"""The experiments that can be trained: each is the whole configuration of a run."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar, Union, overload

import yaml
from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from sfumato.base.errors import ConfigError, InputError, nearest
from sfumato.base.section import Count, NotNegative, Positive, Section, Share, check_rules
from sfumato.config.adversarial import CanNetworkConfig, CanTrainingConfig
from sfumato.config.autoencoding import VaeNetworkConfig, VaeTrainingConfig
from sfumato.config.finetuning import DistillationConfig, OriginConfig
from sfumato.config.overrides import build, read_values
from sfumato.config.sections import (
    AverageConfig,
    ClassifierConfig,
    CodecConfig,
    DataConfig,
    EvaluationConfig,
    Fit,
    OptimizerConfig,
    Precision,
    TextConfig,
    TowersConfig,
    Trackers,
    TrainingConfig,
    UNetConfig,
)
from sfumato.diffusion.process import PROCESSES, Process, VariancePreserving
from sfumato.diffusion.solvers.registry import Sampling, check_sampling

CHANGEABLE_ON_RESUME = {
    "about": "a description",
    "data.accept_changes": "permission",
    "data.workers": "speed",
    "origin.model": "another place of the same weights",
    "sampling": "used after training",
    "evaluation": "used after training",
    "training.images": "length",
    "training.epochs": "length",
    "training.log_every_images": "cadence",
    "training.sample_every_images": "cadence",
    "training.accuracy_every_images": "cadence",
    "training.checkpoint_every_images": "cadence",
    "training.checkpoint_epochs": "cadence",
    "training.keep_checkpoints": "output",
    "training.trackers": "output",
}
"""Settings that may differ when a run is resumed; others make another experiment."""
CODEC_SETTINGS = {
    "factor": ("linear", "vae"),
    "channels": ("linear", "vae"),
    "vae": ("vae",),
    "posterior": ("vae",),
}
"""Settings of the section `codec`, with the kinds of codec that use them."""
UNUSED_BY_STUDENTS = {
    "caption_dropout": 0,
    "mirrored": False,
    "loss_weight": "uniform",
    "min_snr_gamma": 5,
}
"""Settings of training that have no effect on a student, with the values that say so."""


class Experiment(Section):
    """What `sfumato train` can train: `experiment.yaml` in the run folder holds it, resolved.

    A method of training is a subclass and an entry in `methods.METHODS`.
    """

    changeable_on_resume: ClassVar[Mapping[str, str]]
    """Settings that may differ when a run is resumed; others make another experiment."""

    name: str
    """The preset's name."""
    about: str = ""
    """One line of description."""
    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    """Seed of weights, order, noise and dropped captions."""

    def length(self, data_set_size: int) -> tuple[int, int]:
        """Length of the run and of a batch, in images."""
        raise NotImplementedError

    def may_change(self, setting: str) -> bool:
        """Whether the setting of that dotted name may differ when a run is resumed."""
        return any(
            setting == key or setting.startswith(f"{key}.") for key in self.changeable_on_resume
        )

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _process_name(values: Any) -> str:
    if isinstance(values, Mapping):
        return str(values.get("process", "variance_preserving"))
    return str(getattr(values, "process", values))


if TYPE_CHECKING:
    DiffusionSection = Process
else:
    DiffusionSection = Annotated[
        Union[tuple(Annotated[process, Tag(name)] for name, process in PROCESSES.items())],  # noqa: UP007
        Discriminator(_process_name),
    ]
    """The `diffusion` section: one of the processes, by its `process`."""


class DiffusionExperiment(Experiment):
    """Everything that a diffusion run depends on."""

    example: ClassVar = "digits"
    changeable_on_resume = CHANGEABLE_ON_RESUME

    method: Literal["diffusion"] = "diffusion"
    """What is trained."""
    origin: OriginConfig | None = None
    """The trained model that the run begins with; null: from random weights."""
    distillation: DistillationConfig | None = None
    """Of a student: what it learns from; null for a model that learns from images."""
    data: DataConfig
    codec: CodecConfig = CodecConfig()
    text: TextConfig = TextConfig()
    model: UNetConfig
    diffusion: DiffusionSection = VariancePreserving()
    training: TrainingConfig
    sampling: Sampling = Sampling()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _fits(self) -> "DiffusionExperiment":
        problems = (
            self._sampling_problems,
            self._adapter_problems,
            self._student_problems,
            self._codec_problems,
        )
        check_rules([problem for found in problems for problem in found()])
        return self

    def _sampling_problems(self) -> Iterator[str]:
        try:
            check_sampling(self.sampling, self.diffusion)
        except InputError as error:
            yield f"sampling: {error}"
        steps, levels = self.sampling.steps, getattr(self.diffusion, "num_train_timesteps", None)
        if levels is not None and steps > levels:
            yield f"sampling.steps is at most diffusion.num_train_timesteps, {levels} (got {steps})"

    def _adapter_problems(self) -> Iterator[str]:
        training = self.training
        if training.lora is not None and self.origin is None:
            yield "training.lora adapts a trained model: name it with --from MODEL"
        if training.lora is not None and training.sharding != "none":
            yield "training.lora is trained with training.sharding=none"

    def _student_problems(self) -> Iterator[str]:
        student, folded = self.distillation, self.sampling.form.folded
        if (student is not None) != folded:
            yield "sampling.guidance is folded for a student of `sfumato distil`, and only for that"
        if student is None:
            return
        if student.nfe != self.sampling.steps:
            yield "sampling.steps is distillation.nfe"
        if self.training.lora is not None and self.model.scale_embedding is not None:
            yield "training.lora does not train the input of w: leave out training.lora or --scales"
        used = [
            f"training.{name}={str(unused).lower()}"
            for name, unused in UNUSED_BY_STUDENTS.items()
            if getattr(self.training, name) != unused
        ]
        if used:
            yield f"a student, which learns from trajectories, has to have {', '.join(used)}"

    def _codec_problems(self) -> Iterator[str]:
        kind, defaults = self.codec.kind, CodecConfig()
        for name, kinds in CODEC_SETTINGS.items():
            if kind not in kinds and getattr(self.codec, name) != getattr(defaults, name):
                yield f"codec.{name} is for codec.kind={' or '.join(kinds)} (got {kind})"
        if kind == "pixel":
            return
        if kind == "vae" and not self.codec.vae:
            yield "codec.vae names the AutoencoderKL: a folder or a Hub name"
        if self.sampling.form.needs_range:
            yield f"sampling.guidance: {self.sampling.form.form} is for pixels, not for latents"
        if self.distillation is not None and self.distillation.features > 0:
            yield "distillation.features compares pixels: set it to 0 for latents"
        if self.data.resolution != "auto":
            try:
                self.codec.network_shape(3, self.data.resolution)
            except ValueError as error:
                yield str(error)

    @property
    def network_shape(self) -> tuple[int, int]:
        """Channels and side of what the network sees; `data` has no auto. `ConfigError` where the
        codec's factor does not divide the resolution."""
        data = self.data
        assert data.channels != "auto"
        assert data.resolution != "auto"
        try:
            return self.codec.network_shape(data.channels, data.resolution)
        except ValueError as error:
            raise ConfigError(
                f"{error}.", hint="Choose data.resolution=N that codec.factor divides."
            ) from error

    def length(self, data_set_size: int) -> tuple[int, int]:
        return self.training.total_images(data_set_size), self.training.batch_size

    def may_change(self, setting: str) -> bool:
        if self.distillation is not None and setting.startswith("sampling."):
            return False  # a student samples as it was trained to
        return super().may_change(setting)


class ClassSet(Section):
    """Data sets that share their classes, with the captions of those."""

    sources: tuple[str, ...]
    """Data sources with the same classes: digits, a Hub name or a folder."""
    mirrored: bool
    """Whether an image keeps its meaning when it is mirrored: not so for digits."""
    caption: tuple[str, ...]
    """Caption templates that are trained on."""
    held_out: tuple[str, ...]
    """Templates that are never trained on and serve the zero-shot test."""
    phrases: tuple[str, ...] = ()
    """Noun phrases, such as "the digit {label}": English sentences around them are about half of
    the captions, so that the towers find the class in any sentence."""
    images: Count | None = None
    """Images of an epoch: the first so many, repeated where there are fewer; null for each once."""
    label_column: str = "auto"
    """Parquet: the column of classes; auto finds it by its type."""
    fit: Fit = "crop"
    """How images that are not square become so: crop (the centre) or squash."""
    without: tuple[str, ...] = ()
    """Classes that are left out, such as "Unknown Genre"."""
    fewest: Count = 1
    """Classes with fewer training images than that are left out."""

    @field_validator("sources", "caption", "held_out")
    @classmethod
    def _some(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("give at least one")
        return value


class ClipTrainingConfig(Section):
    """Length, batches, optimizer, and what is logged and kept."""

    batch_size: Count
    """Images of one optimizer step, over all ranks."""
    images: Count
    """Length of the run in images."""
    captions_per_class: Count = 2
    """Captions of every class that the images of a step meet."""
    distractors: int = Field(default=3, ge=0)
    """Half of the captions get up to so many unrelated words, which teaches the towers to ignore
    words that say nothing of the class."""
    precision: Precision = "float32"
    """Arithmetic of the towers; weights stay float32."""
    optimizer: OptimizerConfig
    log_every_images: Count = 10_000
    """Images between two lines of metrics.jsonl."""
    checkpoint_every_images: Count = 50_000
    """Images between two checkpoints."""
    keep_checkpoints: Count = 2
    """The newest checkpoints that are kept."""
    trackers: Trackers = ()
    """Where the run is sent too, of tensorboard, mlflow and wandb (docs/tracking.md)."""


class ClipExperiment(Experiment):
    """Everything that training a CLIP depends on."""

    example: ClassVar = "clip"
    changeable_on_resume: ClassVar = {
        "about": "a description",
        "training.log_every_images": "cadence",
        "training.checkpoint_every_images": "cadence",
        "training.keep_checkpoints": "output",
        "training.trackers": "output",
    }

    method: Literal["clip"]
    """What is trained."""
    towers: TowersConfig = TowersConfig()
    vocabulary: int = 1280
    """Most tokens of the tokenizer."""
    text_from: str | None = None
    """The folder of a CLIP of `sfumato train clip` to begin with: its text tower and tokenizer are
    kept as they are, so that models conditioned on it still fit, and its image tower is trained
    further; null: both towers from random weights."""
    datasets: dict[str, ClassSet]
    """Sets of classes by name; captions are contrasted over all of them."""
    training: ClipTrainingConfig

    def length(self, data_set_size: int) -> tuple[int, int]:
        return self.training.images, self.training.batch_size


class ClassifierTrainingConfig(Section):
    """Length, batches, augmentation, optimizer, and what is logged and kept."""

    batch_size: int = Field(default=64, ge=2)
    """Images of one optimizer step, two or more for batch norm."""
    epochs: Positive = 20
    """Length of the run in passes over the data."""
    affine: NotNegative = 0.1
    """Size of random affine changes: 0.1 scales and shears by 10 %, shifts by 5 %; 0 for none.

    It interpolates, which blurs small photos; `shift` does not.
    """
    shift: int = Field(default=0, ge=0)
    """Images are shifted by up to this many whole pixels each way, their edges repeated."""
    mirrored: bool = False
    """Whether half of the images are mirrored: true suits photos, false anything with writing."""
    label_smoothing: Share = 0.05
    """Share of the target that is spread over all classes."""
    optimizer: OptimizerConfig = OptimizerConfig(
        lr=4e-3, weight_decay=0.05, warmup_images=1_000, decay="cosine"
    )
    averaging: AverageConfig = AverageConfig(halflife_images=5_000)
    log_every_images: Count = 1_000
    """Images between two lines of metrics.jsonl."""
    checkpoint_every_images: Count = 50_000
    """Images between two checkpoints."""
    keep_checkpoints: Count = 2
    """The newest checkpoints that are kept."""
    trackers: Trackers = ()
    """Where the run is sent too, of tensorboard, mlflow and wandb (docs/tracking.md)."""

    def total_images(self, data_set_size: int) -> int:
        """Length of the run in images."""
        return round(self.epochs * data_set_size)


class ClassifierExperiment(Experiment):
    """Everything that training a classifier depends on."""

    example: ClassVar = "classifier"
    changeable_on_resume: ClassVar = {
        "about": "a description",
        "data.accept_changes": "permission",
        "training.log_every_images": "cadence",
        "training.checkpoint_every_images": "cadence",
        "training.keep_checkpoints": "output",
        "training.trackers": "output",
    }

    method: Literal["classifier"]
    """What is trained."""
    data: DataConfig
    network: ClassifierConfig = ClassifierConfig()
    training: ClassifierTrainingConfig = ClassifierTrainingConfig()

    def length(self, data_set_size: int) -> tuple[int, int]:
        return self.training.total_images(data_set_size), self.training.batch_size


class CanExperiment(Experiment):
    """Everything that training a creative adversarial network depends on."""

    example: ClassVar = "can"
    changeable_on_resume: ClassVar = {
        "about": "a description",
        "data.accept_changes": "permission",
        "training.log_every_images": "cadence",
        "training.sample_every_images": "cadence",
        "training.checkpoint_every_images": "cadence",
        "training.keep_checkpoints": "output",
        "training.trackers": "output",
    }

    method: Literal["can"]
    """What is trained."""
    data: DataConfig
    network: CanNetworkConfig
    text: TextConfig = TextConfig()
    """Of network.condition=caption alone."""
    training: CanTrainingConfig

    def length(self, data_set_size: int) -> tuple[int, int]:
        return self.training.images, self.training.batch_size


class VaeExperiment(Experiment):
    """Everything that training an autoencoder depends on."""

    example: ClassVar = "vae"
    changeable_on_resume: ClassVar = {
        "about": "a description",
        "data.accept_changes": "permission",
        "data.workers": "speed",
        "training.log_every_images": "cadence",
        "training.sample_every_images": "cadence",
        "training.measure_every_images": "cadence",
        "training.checkpoint_every_images": "cadence",
        "training.keep_checkpoints": "output",
        "training.trackers": "output",
    }

    method: Literal["vae"]
    """What is trained."""
    data: DataConfig
    network: VaeNetworkConfig = VaeNetworkConfig()
    training: VaeTrainingConfig

    @model_validator(mode="after")
    def _fits(self) -> "VaeExperiment":
        side, factor = self.data.resolution, self.network.factor
        if side != "auto" and side % factor:
            levels = len(self.network.block_out_channels)
            raise ValueError(
                f"network.block_out_channels: {levels} levels make a latent of {factor} x {factor} "
                f"pixels, which do not fill images of {side} x {side}"
            )
        return self

    def length(self, data_set_size: int) -> tuple[int, int]:
        return self.training.images, self.training.batch_size


WithImages = DiffusionExperiment | ClassifierExperiment | CanExperiment | VaeExperiment
"""Experiments with a section `data`."""
E = TypeVar("E", bound=Experiment)
SCHEMAS: dict[str, type[Experiment]] = {
    "diffusion": DiffusionExperiment,
    "clip": ClipExperiment,
    "classifier": ClassifierExperiment,
    "can": CanExperiment,
    "vae": VaeExperiment,
}
"""Experiments by their `method`."""


@overload
def load_experiment(name: str | Path, overrides: Sequence[str] = ()) -> Experiment: ...
@overload
def load_experiment(name: str | Path, overrides: Sequence[str] = (), *, schema: type[E]) -> E: ...
def load_experiment(
    name: str | Path, overrides: Sequence[str] = (), *, schema: type[Experiment] = Experiment
) -> Experiment:
    """An experiment from a preset's name or a YAML file, with overrides.

    `schema`: the kind of experiment that is expected. Raises `ConfigError` for another kind, and
    with the nearest match for whatever is not known.
    """
    values, source = read_values(str(name))
    method = str(values.get("method", "diffusion"))
    if method not in SCHEMAS:
        raise ConfigError(
            f"{source}: method: nothing named '{method}' can be trained.",
            hint=nearest(method, sorted(SCHEMAS)),
        )
    if not issubclass(SCHEMAS[method], schema):
        wanted = next(name for name, one in SCHEMAS.items() if one is schema)
        raise ConfigError(
            f"{source} is an experiment of the method '{method}'; '{wanted}' is needed here.",
            hint="`sfumato presets list` shows the presets.",
        )
    return build(SCHEMAS[method], values, overrides, source=source)
