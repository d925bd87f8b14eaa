"""The judge: a small convolutional classifier whose last features serve the Frechet distance."""

import torch
from torch import Tensor, nn

from sfumato.base.randomness import derived_seed


class Classifier(nn.Module):
    """images (B, C, H, W) float in [-1, 1] -> logits (B, classes); features (B, feature_dim)."""

    def __init__(self, *, channels: int, classes: int, width: int = 32, feature_dim: int = 64):
        super().__init__()
        self.settings = {
            "channels": channels,
            "classes": classes,
            "width": width,
            "feature_dim": feature_dim,
        }
        widths = [channels, width, width * 2, width * 2, feature_dim]
        strides = [1, 2, 1, 2]
        layers: list[nn.Module] = []
        for index, stride in enumerate(strides):
            layers += [
                nn.Conv2d(widths[index], widths[index + 1], 3, stride, 1, bias=False),
                nn.BatchNorm2d(widths[index + 1]),
                nn.ReLU(),
            ]
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(feature_dim, classes)

    @property
    def feature_dim(self) -> int:
        return self.head.in_features

    def features(self, images: Tensor) -> Tensor:
        return self.body(images)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


def build_classifier(*, channels: int, classes: int, seed: int) -> Classifier:
    """A classifier with weights drawn from `seed`; the global generators are left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derived_seed(seed, "weights", "classifier"))
        return Classifier(channels=channels, classes=classes)
