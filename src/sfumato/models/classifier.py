"""The classifier: a small ResNet whose last features serve the Frechet distance."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.base.randomness import derived_seed
from sfumato.config.sections import ClassifierConfig


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2016, Figure 2)."""

    def __init__(self, channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(inner + self.shortcut(x))


class Classifier(nn.Module):
    """images (B, C, H, W) float in [-1, 1] -> logits (B, classes); features (B, feature_dim)."""

    def __init__(
        self, config: ClassifierConfig | None = None, *, channels: int, classes: int
    ) -> None:
        super().__init__()
        self.config = config = config or ClassifierConfig()
        self.channels = channels
        width = config.width
        layers: list[nn.Module] = [
            nn.Conv2d(channels, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        for stage, blocks in enumerate(config.blocks):
            for block in range(blocks):
                halved = stage > 0 and block == 0
                out = width * 2 if halved else width
                layers.append(ResidualBlock(width, out, stride=2 if halved else 1))
                width = out
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(width, classes)

    @property
    def feature_dim(self) -> int:
        return self.head.in_features

    def features(self, images: Tensor) -> Tensor:
        # The images alone are laid out with channels last, which is a quarter quicker; weights
        # stay contiguous, as a checkpoint holds them and the optimizer's moments beside them.
        return self.body(images.contiguous(memory_format=torch.channels_last))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


def build_classifier(
    config: ClassifierConfig | None = None, *, channels: int, classes: int, seed: int
) -> Classifier:
    """A classifier with weights drawn from `seed`; the global generators are left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derived_seed(seed, "weights", "classifier"))
        return Classifier(config, channels=channels, classes=classes)
