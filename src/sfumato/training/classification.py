"""Training the judge: cross-entropy on the labels of images that are changed a little."""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from sfumato.base.images import to_float
from sfumato.base.section import Count, NotNegative, Positive, Section, Share
from sfumato.data.loading import Batch
from sfumato.models.classifier import Classifier
from sfumato.models.ema import AveragedModel, AveragingConfig
from sfumato.training.objectives import (
    StepContext,
    finish_step,
    random_changes,
    random_shifts,
    warped,
)
from sfumato.training.optimizer import OptimizerConfig, build_optimizer
from sfumato.training.state import Stateful


class ClassifierTrainingConfig(Section):
    """How long, in which batches, with which changes of the images, and what is kept."""

    batch_size: int = Field(default=64, ge=2)
    """Images of one optimizer step, two or more for batch norm."""
    epochs: Positive = 20
    """Length of the run in passes over the data."""
    affine: NotNegative = 0.1
    """Size of random affine changes: 0.1 scales and shears by 10 %, shifts by 5 %; 0 for none.

    It interpolates, which blurs small photos that are to be judged sharp: there `shift` is better.
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
    averaging: AveragingConfig = AveragingConfig(halflife_images=5_000)
    log_every_images: Count = 1_000
    """Images between two lines of metrics.jsonl."""
    checkpoint_every_images: Count = 50_000
    """Images between two checkpoints."""
    keep_checkpoints: Count = 2
    """The newest checkpoints that are kept."""

    def total_images(self, data_set_size: int) -> int:
        """Length of the run in images."""
        return round(self.epochs * data_set_size)


class ClassifierObjective:
    """Cross-entropy on labels, with small random changes of the images: the judge."""

    def __init__(self, classifier: Classifier, config: ClassifierTrainingConfig) -> None:
        self.classifier = classifier.train()
        self.parameters = list(classifier.parameters())
        self.config = config
        self.average = AveragedModel(classifier, config.averaging)
        self.optimizer = build_optimizer(config.optimizer, classifier)

    def parts(self) -> dict[str, Stateful]:
        return {
            "classifier": self.classifier,
            "average": self.average.module,
            "optimizer": self.optimizer,
        }

    def step(self, batch: Batch, context: StepContext) -> dict[str, Tensor]:
        logits = self.classifier(self._changed(batch, context))
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=self.config.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        metrics = finish_step(
            self.parameters, self.optimizer, self.config.optimizer, loss.detach(), context
        )
        self.average.update(
            images_seen=context.images_seen + context.batch_size, batch_size=context.batch_size
        )
        return {**metrics, "accuracy": (logits.argmax(1) == batch.labels).float().mean()}

    def _changed(self, batch: Batch, context: StepContext) -> Tensor:
        """Float images (B, C, H, W) in [-1, 1]."""
        images = to_float(batch.images, (-1.0, 1.0))
        config = self.config
        if not (config.affine or config.mirrored or config.shift):
            return images
        changes = random_changes(
            context, size=config.affine, mirrored=torch.tensor(config.mirrored)
        )
        if config.shift:
            height, width = images.shape[2:]
            # 2 is the image's width in the maps' coordinates.
            changes[:, :, 2] += (
                random_shifts(context, config.shift) * 2 / changes.new_tensor([width, height])
            )
        return warped(images, changes)
