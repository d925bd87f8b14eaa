"""Distance between the features of images: what squared error of pixels does not see."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.base.images import ValueRange
from sfumato.text.bundled import BUNDLED_FOLDER
from sfumato.text.towers import IMAGE_PX, ImageTower, load_towers


class FeatureDistance:
    """Mean squared distance between features of every stage of the small CLIP's image tower, each
    place's brought to length one (LPIPS, Zhang et al. 2018, without learned weights).

    The tower is frozen; the classifier that measures a student is another network.
    """

    def __init__(
        self, value_range: ValueRange, device: torch.device, *, folder: Path = BUNDLED_FOLDER
    ) -> None:
        self.low, self.high = value_range
        self.tower: ImageTower = load_towers(folder)[0].image.to(device)

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """(B,) of images and their targets (B, C, H, W), C = 1 or 3, in the value range."""
        with torch.no_grad():
            wanted = self._stages(targets)
        found = self._stages(images)
        distances = [
            (a - b).square().sum(1).flatten(1).mean(1) for a, b in zip(found, wanted, strict=True)
        ]
        return torch.stack(distances).mean(0)

    def _stages(self, images: Tensor) -> list[Tensor]:
        x = ((images - self.low) / (self.high - self.low) * 2 - 1).expand(-1, 3, -1, -1)
        if x.shape[-2:] != (IMAGE_PX, IMAGE_PX):
            x = F.interpolate(x, (IMAGE_PX, IMAGE_PX), mode="bilinear", antialias=True)
        stages = []
        x = self.tower.stem(x)
        for block in self.tower.blocks:
            x = block(x)
            stages.append(F.normalize(x, dim=1))
        return stages
