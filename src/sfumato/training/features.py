"""Distance between the features of images: what squared error of pixels does not see."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.base.images import ValueRange
from sfumato.text.bundled import BUNDLED_FOLDER
from sfumato.text.towers import load_towers

Stages = Callable[[Tensor], Sequence[Tensor]]
"""Images (B, 3, H, W), float in [-1, 1], to features (B, D, ...) of several layers; gradients
pass to the images."""


class FeatureDistance:
    """Mean squared distance between features of every stage of a network, each place's brought to
    length one (LPIPS, Zhang et al. 2018, without learned weights).

    `stages` is of a frozen network, another one than measures the result.
    """

    def __init__(self, value_range: ValueRange, stages: Stages) -> None:
        self.low, self.high = value_range
        self.stages = stages

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """(B,) of images and their targets (B, C, H, W), C = 1 or 3, in the value range."""
        with torch.no_grad():
            wanted = self._features(targets)
        found = self._features(images)
        distances = [
            (a - b).square().sum(1).flatten(1).mean(1) for a, b in zip(found, wanted, strict=True)
        ]
        return torch.stack(distances).mean(0)

    def _features(self, images: Tensor) -> list[Tensor]:
        x = ((images - self.low) / (self.high - self.low) * 2 - 1).expand(-1, 3, -1, -1)
        return [F.normalize(one, dim=1) for one in self.stages(x)]


def bundled_stages(device: torch.device) -> Stages:
    """The stages of the bundled CLIP's image tower."""
    return load_towers(BUNDLED_FOLDER)[0].image.to(device).stages
