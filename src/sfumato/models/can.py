"""A creative adversarial network: generator, and discriminator with a style head.

Elgammal et al. 2017, "CAN: Creative Adversarial Networks", on the networks of DCGAN.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from sfumato.base.randomness import derived_seed
from sfumato.config.adversarial import CanNetworkConfig

COARSEST_PX = 4
GENERATOR_STD, DISCRIMINATOR_STD = 0.1, 0.02
"""Deviation of embeddings of classes at first. Where the generator's is 1, as that of z is, the
class drowns z: all images of a class become one. The discriminator's is multiplied with thousands
of features, and would drown the logit beside it."""


class Generator(nn.Module):
    """z (B, latent) and, where it is conditional, labels (B,) or captions (B, `text_width`) ->
    images (B, C, H, W) in [-1, 1]."""

    def __init__(
        self, config: CanNetworkConfig, *, channels: int, classes: int, text_width: int = 0
    ) -> None:
        super().__init__()
        self.config, self.channels, self.classes = config, channels, classes
        widths = config.generator_channels
        self.embed = _embedding(config, classes, text_width, config.latent, GENERATOR_STD)
        inputs = config.latent * (2 if config.conditional else 1)
        self.start = nn.Linear(inputs, widths[0] * COARSEST_PX**2, bias=False)
        layers: list[nn.Module] = [nn.BatchNorm2d(widths[0]), nn.ReLU()]
        for width, out in pairwise(widths):
            layers += [*self._doubled(width, out), nn.BatchNorm2d(out), nn.ReLU()]
        self.body = nn.Sequential(
            *layers, *self._doubled(widths[-1], channels, last=True), nn.Tanh()
        )

    def _doubled(self, width: int, out: int, *, last: bool = False) -> Sequence[nn.Module]:
        if self.config.upsampling == "transposed":
            return [nn.ConvTranspose2d(width, out, 4, 2, 1, bias=last)]
        return [nn.Upsample(scale_factor=2), nn.Conv2d(width, out, 3, 1, 1, bias=last)]

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.drawn(z, z[:, :0] if self.embed is None else self.embed(condition))

    def drawn(self, z: Tensor, embedded: Tensor) -> Tensor:
        """Images of z (B, latent) and embedded conditions (B, latent), or (B, 0) without."""
        z = torch.cat([z, embedded], dim=1)
        return self.body(self.start(z).unflatten(1, (-1, COARSEST_PX, COARSEST_PX)))


class Discriminator(nn.Module):
    """Images (B, C, H, W) in [-1, 1] -> logits of real (B,) and of styles (B, K)."""

    def __init__(
        self, config: CanNetworkConfig, *, channels: int, classes: int, text_width: int = 0
    ) -> None:
        super().__init__()
        normal: Callable[[Any], Any] = (
            spectral_norm if config.spectral_norm else lambda layer: layer
        )
        layers: list[nn.Module] = []
        for place, (width, out) in enumerate(pairwise((channels, *config.discriminator_channels))):
            layers.append(normal(nn.Conv2d(width, out, 4, 2, 1)))
            if place and not config.spectral_norm:  # none at the image, as in DCGAN
                layers.append(nn.BatchNorm2d(out))
            layers.append(nn.LeakyReLU(0.2))
        self.body = nn.Sequential(*layers, nn.Flatten())
        features = config.discriminator_channels[-1] * COARSEST_PX**2
        self.real = normal(nn.Linear(features, 1))
        project = _embedding(config, classes, text_width, features, DISCRIMINATOR_STD)
        self.project = None if project is None else normal(project)
        styles: list[nn.Module] = []
        for width, out in pairwise((features, *config.style_hidden)):
            styles += [nn.Linear(width, out), nn.LeakyReLU(0.2)]
        last = config.style_hidden[-1] if config.style_hidden else features
        self.style = nn.Sequential(*styles, nn.Linear(last, classes))

    def forward(self, images: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        features = self.body(images)
        real = self.real(features).squeeze(1)
        if self.project is not None:
            real = real + (self.project(condition) * features).sum(1)
        return real, self.style(features)


def _embedding(
    config: CanNetworkConfig, classes: int, text_width: int, out: int, std: float
) -> nn.Module | None:
    """Conditions, labels (B,) or captions (B, `text_width`), to (B, `out`); None without. `std`: of
    the weights of labels."""
    if not config.conditional:
        return None
    if config.reads_captions:
        return nn.Linear(text_width, out)
    embedding = nn.Embedding(classes, out)
    nn.init.normal_(embedding.weight, 0, std)
    return embedding


def build_can(
    config: CanNetworkConfig, *, channels: int, classes: int, seed: int, text_width: int = 0
) -> tuple[Generator, Discriminator]:
    """Both with weights drawn from `seed`, convolutions as DCGAN's; the global generators are left
    alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derived_seed(seed, "weights", "can"))
        sizes = {"channels": channels, "classes": classes, "text_width": text_width}
        generator, discriminator = Generator(config, **sizes), Discriminator(config, **sizes)
        for network in (generator, discriminator):
            network.apply(_dcgan)
    return generator, discriminator


@torch.no_grad()
def _dcgan(module: nn.Module) -> None:
    """N(0, 0.02) weights, N(1, 0.02) scales of batch norm; spectral norm has scales of its own."""
    if isinstance(module, nn.BatchNorm2d):
        module.weight.normal_(1, 0.02)
    elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and not hasattr(
        module, "parametrizations"
    ):
        module.weight.normal_(0, 0.02)
        if module.bias is not None:
            module.bias.zero_()
