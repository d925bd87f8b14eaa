"""The training loop, to be read from top to bottom.

The clock counts images. One step takes one global batch; what a step does belongs to the
objective, everything beside it to the hooks.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from pydantic import model_validator
from torch import Tensor

from sfumato.base.errors import ConfigError
from sfumato.base.section import Count, Positive, Section, Share
from sfumato.data.loading import Batch, Order
from sfumato.diffusion.targets import LossWeight
from sfumato.models.ema import AveragingConfig
from sfumato.training.checkpoint import Checkpoint, Checkpoints, warn_of_changed_environment
from sfumato.training.objectives import Objective, StepContext
from sfumato.training.optimizer import OptimizerConfig


class TrainingConfig(Section):
    """How long, in which batches, and what is kept."""

    batch_size: Count
    """Images of one optimizer step, over all ranks."""
    images: Count | None = None
    """Length of the run in images; or give `epochs`."""
    epochs: Positive | None = None
    """Length of the run in passes over the data; or give `images`."""
    micro_batches: Count = 1
    """Parts a rank's batch is computed in, to save memory."""
    caption_dropout: Share = 0.1
    """Share of captions replaced by the empty prompt, for classifier-free guidance."""
    mirrored: bool = False
    """Whether half of the images are mirrored: true suits photos, false anything with writing."""
    loss_weight: LossWeight = "uniform"
    """Weight of the loss over noise levels: uniform, or min_snr (min-SNR-gamma)."""
    min_snr_gamma: Positive = 5.0
    """gamma of min_snr: signal-to-noise ratios above it weigh no more."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the network; weights stay float32."""
    optimizer: OptimizerConfig
    averaging: AveragingConfig = AveragingConfig()
    log_every_images: Count = 1_000
    """Images between two lines of metrics.jsonl."""
    sample_every_images: Count = 10_000
    """Images between two grids of samples."""
    agreement_every_images: Count | None = None
    """Images between two quick evaluations (`evaluation.quick_count`), lines of agreement.jsonl;
    null for none. A judge that is not in the cache is trained first."""
    checkpoint_every_images: Count = 10_000
    """Images between two checkpoints."""
    keep_checkpoints: Count = 2
    """The newest checkpoints that are kept."""
    checkpoint_epochs: tuple[Positive, ...] = ()
    """Epochs at which a checkpoint is made too, and kept: the first step at or after so many."""

    @model_validator(mode="after")
    def _one_length(self) -> "TrainingConfig":
        if (self.images is None) == (self.epochs is None):
            raise ValueError("give either images or epochs")
        if self.micro_batches > self.batch_size:
            raise ValueError("micro_batches cannot exceed batch_size")
        return self

    def milestones(self, data_set_size: int) -> frozenset[int]:
        """Images seen at the first step at or after each of `checkpoint_epochs`."""
        return frozenset(
            math.ceil(epoch * data_set_size / self.batch_size) * self.batch_size
            for epoch in self.checkpoint_epochs
        )

    def total_images(self, data_set_size: int) -> int:
        """Length of the run in images."""
        if self.images is not None:
            return self.images
        assert self.epochs is not None  # the validator saw to it
        return round(self.epochs * data_set_size)


class Batches(Protocol):
    """A source of batches whose order is a function of the position alone."""

    batch_size: int

    @property
    def order(self) -> Order: ...

    def at(self, images_seen: int) -> Batch: ...


class Hook(Protocol):
    """Something beside the training: it may read the run, never change its numbers."""

    def after_step(self, run: "Run", metrics: Mapping[str, Tensor]) -> None: ...
    def at_end(self, run: "Run") -> None: ...
    def state(self) -> dict[str, Any]: ...
    def load_state(self, state: dict[str, Any]) -> None: ...


@dataclass(kw_only=True)
class Run:
    """One training run: what it trains, on what, and where its clock stands."""

    folder: Path
    objective: Objective
    batches: Batches
    seed: int
    total_images: int
    device: torch.device
    micro_batches: int = 1
    keep_checkpoints: int = 2
    milestones: frozenset[int] = frozenset()
    provenance: dict[str, Any] = field(default_factory=dict)
    hooks: Sequence[Hook] = ()
    images_seen: int = 0
    step: int = 0
    stop_requested: bool = False

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(
            self.folder / "checkpoints", keep=self.keep_checkpoints, pinned=self.milestones
        )

    @property
    def finished(self) -> bool:
        return self.images_seen >= self.total_images

    def context(self) -> StepContext:
        return StepContext(
            seed=self.seed,
            images_seen=self.images_seen,
            total_images=self.total_images,
            batch_size=self.batches.batch_size,
            device=self.device,
            micro_batches=self.micro_batches,
        )

    def due(self, every_images: int) -> bool:
        """Whether the last step was the first at or after a multiple of `every_images`."""
        before = self.images_seen - self.batches.batch_size
        return self.images_seen // every_images > before // every_images

    def save(self) -> None:
        """Write a checkpoint of this moment."""
        self.checkpoints.save(
            self.objective.parts(),
            images_seen=self.images_seen,
            extra={
                "step": self.step,
                "position": asdict(self.batches.order.position(self.images_seen)),
                "hooks": {type(hook).__name__: hook.state() for hook in self.hooks},
                **self.provenance,
            },
        )

    def resume(self) -> bool:
        """Go back to the newest whole checkpoint; False if there is none."""
        checkpoint = self.checkpoints.latest()
        if checkpoint is None:
            return False
        self._check_provenance(checkpoint)
        self.checkpoints.remove_old(before=checkpoint.path)  # a kill may have come before that
        if checkpoint.images_seen < self.total_images:
            warn_of_changed_environment(checkpoint.state["environment"])
        checkpoint.load_into(self.objective.parts())
        self.images_seen, self.step = checkpoint.images_seen, checkpoint.state["step"]
        for hook in self.hooks:
            hook.load_state(checkpoint.state["hooks"].get(type(hook).__name__, {}))
        return True

    def _check_provenance(self, checkpoint: Checkpoint) -> None:
        """A run goes on with what it began with: another encoder speaks another language."""
        for name, value in self.provenance.items():
            recorded = checkpoint.state.get(name, value)
            if recorded != value:
                raise ConfigError(
                    f"{self.folder} was trained with the {name.replace('_', ' ')} '{recorded}', "
                    f"but '{value}' was loaded.",
                    mend="Go on with what it was trained with, or choose another --out.",
                )


def train(run: Run) -> None:
    """Train until the run is finished or asked to stop.

    Interrupted anywhere and started again, it ends with the same bits: data, noise and dropped
    captions are functions of (seed, images seen), the rest is in the checkpoint.
    """
    while not run.finished and not run.stop_requested:
        batch = run.batches.at(run.images_seen)
        metrics = run.objective.step(batch, run.context())
        run.images_seen += run.batches.batch_size
        run.step += 1
        for hook in run.hooks:
            hook.after_step(run, metrics)
    for hook in run.hooks:
        hook.at_end(run)
