"""The objective of the small CLIP: images and captions of one class into one place."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.base.device import to_device
from sfumato.base.images import to_float
from sfumato.config.sections import OptimizerConfig, Precision
from sfumato.data.loading import Batch
from sfumato.text.towers import ClipTowers, contrastive_loss
from sfumato.training.optimizer import build_optimizer
from sfumato.training.state import Stateful
from sfumato.training.step import StepContext, finish_step, random_changes, warped


@dataclass(frozen=True, kw_only=True)
class ClassTexts:
    """Captions of each class as token ids, and whether its images may be mirrored.

    `ids`: (K, T, L) int64, caption t of class k; `mirrored`: (K,) bool; `apart`: (K, K) bool, which
    classes exclude each other; `unrelated`: (U,) int64, tokens that no caption has; `end_id`: the
    end token, with which captions are padded.
    """

    ids: Tensor
    mirrored: Tensor
    apart: Tensor
    unrelated: Tensor
    end_id: int


class ClipObjective:
    """Multi-positive contrastive training on images of K classes with T captions each.

    A step takes `captions_per_class` captions of every class, drawn anew, so that a batch of images
    meets all classes whatever its size.
    """

    def __init__(
        self,
        towers: ClipTowers,
        texts: ClassTexts,
        *,
        optimizer: OptimizerConfig,
        captions_per_class: int,
        distractors: int = 0,
        precision: Precision = "float32",
    ) -> None:
        self.towers = towers.train()
        self.texts = texts
        device = next(towers.parameters()).device
        self.mirrored, self.apart = texts.mirrored.to(device), texts.apart.to(device)
        self.captions_per_class = captions_per_class
        self.distractors = distractors
        self.precision = precision
        self.parameters = [one for one in towers.parameters() if one.requires_grad]
        self.optimizer_config = optimizer
        self.optimizer = build_optimizer(optimizer, towers)

    def parts(self) -> dict[str, Stateful]:
        return {"towers": self.towers, "optimizer": self.optimizer}

    def step(self, batch: Batch, context: StepContext) -> dict[str, Tensor]:
        changes = random_changes(context, size=0.1, mirrored=self.mirrored[batch.labels])
        images = warped(to_float(batch.images, (-1.0, 1.0)), changes)
        ids, labels = self._captions(context)
        mixed = self.precision == "bfloat16"
        with torch.autocast(context.device.type, torch.bfloat16, enabled=mixed):
            embedded, texts = self.towers.embed_images(images), self.towers.embed_text(ids)
        loss = contrastive_loss(
            embedded.float(),
            texts.float(),
            batch.labels,
            labels,
            self.towers.scale,
            apart=self.apart,
        )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        return finish_step(
            self.parameters, self.optimizer, self.optimizer_config, loss.detach(), context
        )

    def _captions(self, context: StepContext) -> tuple[Tensor, Tensor]:
        """Token ids (K R, L) of R captions of every class, and their classes (K R,)."""
        classes, several, _ = self.texts.ids.shape
        generator = context.generator("captions")
        chosen = torch.rand(classes, several, generator=generator).argsort(1)
        chosen = chosen[:, : self.captions_per_class]
        labels = torch.arange(classes)[:, None].expand_as(chosen)
        ids = with_distractors(
            self.texts.ids[labels, chosen].flatten(0, 1),
            self.texts.unrelated,
            most=self.distractors,
            end_id=self.texts.end_id,
            generator=generator,
        )
        ids = ids[:, : int((ids == self.texts.end_id).int().argmax(1).max()) + 1]
        return to_device(ids, context.device), to_device(labels.flatten(), context.device)


def with_distractors(
    ids: Tensor, unrelated: Tensor, *, most: int, end_id: int, generator: torch.Generator
) -> Tensor:
    """Captions (N, L) with tokens of `unrelated` (U,) between their own: (N, L + most).

    Half of the captions stay as they are; the others get 0 to `most`, each anywhere between the
    start token and the end token.
    """
    if most == 0:
        return ids
    rows, length = ids.shape
    ends = (ids == end_id).int().argmax(1, keepdim=True)
    counts = torch.randint(most + 1, (rows, 1), generator=generator)
    counts *= torch.rand(rows, 1, generator=generator) < 0.5
    new = unrelated[torch.randint(len(unrelated), (rows, most), generator=generator)]
    places = torch.rand(rows, most, generator=generator).clamp(1e-6, 1 - 1e-6) * ends
    unused = torch.arange(most) >= counts
    new = new.masked_fill(unused, end_id)
    places = places.masked_fill(unused, length)
    own = torch.arange(length).expand(rows, -1)
    order = torch.cat([own, places], dim=1).argsort(dim=1, stable=True)
    return torch.cat([ids, new], dim=1).gather(1, order)
