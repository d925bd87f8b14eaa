"""The objective of the classifier: cross-entropy on the labels of augmented images."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.base.images import to_float
from sfumato.config.schema import ClassifierTrainingConfig
from sfumato.data.loading import Batch
from sfumato.models.classifier import Classifier
from sfumato.models.ema import AveragedModel
from sfumato.training.optimizer import build_optimizer
from sfumato.training.state import Stateful
from sfumato.training.step import StepContext, finish_step, random_changes, random_shifts, warped


class ClassifierObjective:
    """Cross-entropy on labels, with small random changes of the images."""

    def __init__(self, classifier: Classifier, config: ClassifierTrainingConfig) -> None:
        self.classifier = classifier.train()
        self.parameters = list(classifier.parameters())
        self.config = config
        self.average = AveragedModel(classifier, config.averaging)
        self.optimizer = build_optimizer(config.optimizer, classifier)
        # On the device from the start: a step copies nothing that does not change.
        self.mirrored = torch.tensor(config.mirrored, device=self.parameters[0].device)

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
            self.parameters,
            self.optimizer,
            self.config.optimizer,
            loss.detach(),
            context,
            [self.average],
        )
        return {**metrics, "accuracy": (logits.argmax(1) == batch.labels).float().mean()}

    def _changed(self, batch: Batch, context: StepContext) -> Tensor:
        """Float images (B, C, H, W) in [-1, 1]."""
        images = to_float(batch.images, (-1.0, 1.0))
        config = self.config
        if not (config.affine or config.mirrored or config.shift):
            return images
        changes = random_changes(context, size=config.affine, mirrored=self.mirrored)
        if config.shift:
            changes[:, :, 2] += random_shifts(context, config.shift, images.shape[2:])
        return warped(images, changes)
