"""Sections of a run that begins with the weights of a trained model."""

from pydantic import Field, field_validator

from sfumato.base.section import Count, NotNegative, Positive, Section, Share

LORA_TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"),
    *("conv1", "conv2", "time_emb_proj"),
)
"""Layers of diffusers' U-Net: attention, its MLP, and the ResNet blocks."""


class OriginConfig(Section):
    """The trained model that a run begins with; `--from` on the command line."""

    model: str = Field(min_length=1)
    """A run folder, an exported folder, or bundled:NAME; its averaged weights are taken."""
    weights_sha256: str = "auto"
    """Hash of these weights, as images and cards of that model record it; auto: of those found."""

    @property
    def is_resolved(self) -> bool:
        return self.weights_sha256 != "auto"


class LoraConfig(Section):
    """Low-rank adaptation (Hu et al. 2021): W + alpha / rank B A, where A and B alone are trained.

    It needs `pip install 'sfumato[lora]'` to train.
    """

    rank: Count = 8
    """Rows of A and columns of B."""
    alpha: Positive | None = None
    """Weight of the adapter, divided by the rank; null: the rank, so that it counts once."""
    targets: tuple[str, ...] = LORA_TARGETS
    """The layers that are adapted, by the end of their names."""

    @property
    def scale(self) -> float:
        return (self.rank if self.alpha is None else self.alpha) / self.rank

    @field_validator("targets")
    @classmethod
    def _some(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or not all(value):
            raise ValueError("give at least one layer")
        return value


class DistillationConfig(Section):
    """A student of few network evaluations that learns from its teacher's trajectories."""

    teacher: str = Field(min_length=1)
    """The model whose trajectories these are: a run, an exported folder or bundled:NAME."""
    trajectories: str = Field(min_length=1)
    """The folder of the trajectories; `sfumato distil` writes it."""
    nfe: Count
    """Steps of the student, one network evaluation each."""
    features: NotNegative = 0.0
    """Weight of the distance between features of the small CLIP's image tower, beside the squared
    error: that alone makes pictures smooth."""
    held_out: Share = 0.1
    """Share of the trajectories that is not trained on."""
    measure_every_images: Count = 1_000
    """Images between two measurements of the loss on held-out trajectories."""
    patience: Count = 5
    """Training ends when so many measurements in a row were no better than the best before."""
