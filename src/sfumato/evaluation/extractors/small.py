"""Extractors that need no download: the small CLIP's image tower and a data set's classifier."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sfumato.base.images import to_float
from sfumato.evaluation.extractors.extractor import (
    BatchedExtractor,
    Device,
    WeightsNotAtHandError,
    texts_in_batches,
    weights_sha256,
)
from sfumato.models.classifier import Classifier

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

    from sfumato.text.towers import ClipTowers

_ROWS = 256


@dataclass(frozen=True, kw_only=True)
class SmallClipExtractor(BatchedExtractor):
    """The small CLIP: images and captions as unit vectors of one space."""

    towers: "ClipTowers"
    tokenizer: "CLIPTokenizer"

    @torch.no_grad()
    def texts(self, captions: Sequence[str]) -> Tensor:
        """Captions -> (N, dim) float32 on the CPU."""
        from sfumato.text.towers import tokenize

        positions = self.towers.text.config.max_position_embeddings

        def embed(part: list[str]) -> Tensor:
            ids = tokenize(self.tokenizer, part, positions=positions)
            return self.towers.embed_text(ids.to(self.device))

        return texts_in_batches(captions, embed, rows=_ROWS)


def load_small_clip(folder: Path | None = None, *, device: Device = "cpu") -> SmallClipExtractor:
    """The image tower of a small CLIP that `save_towers` wrote; the bundled one without `folder`.

    Features are unit vectors. `WeightsNotAtHandError` where the folder has no towers.
    """
    from sfumato.text.bundled import BUNDLED_FOLDER
    from sfumato.text.towers import IMAGE_PX, TOWERS_FILE, load_towers

    which = "bundled" if folder is None else folder.resolve().name
    folder = BUNDLED_FOLDER if folder is None else folder
    if not (folder / TOWERS_FILE).is_file():
        raise WeightsNotAtHandError(
            f"{folder} holds no small CLIP.",
            hint="`sfumato train clip` makes one; or do without it: the other metrics do not need "
            "it.",
        )
    towers, tokenizer = load_towers(folder)
    towers.to(device)
    return SmallClipExtractor(
        name=f"small clip {which} unit vectors, sha256:{weights_sha256(towers)[:16]}, "
        f"bilinear with antialiasing to {IMAGE_PX} px",
        dim=towers.image.project.out_features,
        of_batch=lambda images: towers.embed_uint8(images, rows=_ROWS),
        rows=_ROWS,
        device=device,
        stages=towers.image.stages,
        towers=towers,
        tokenizer=tokenizer,
    )


def classifier_features(
    classifier: Classifier, *, identity: str, image_px: int, device: Device = "cpu"
) -> BatchedExtractor:
    """The last features of a data set's classifier, before its head: (B, feature_dim).

    `identity` names its weights by their hash. It sees images of the `image_px` it was trained at
    and no others; grey images are repeated for a classifier of colour.
    """
    classifier = classifier.eval().to(device)

    def of_batch(images: Tensor) -> Tensor:
        return classifier.features(to_float(images, (-1.0, 1.0)))

    return BatchedExtractor(
        name=f"classifier {identity}, last features, {image_px} px, no resizing",
        dim=classifier.feature_dim,
        of_batch=of_batch,
        rows=_ROWS,
        channels=classifier.channels,
        image_px=image_px,
        device=device,
    )
