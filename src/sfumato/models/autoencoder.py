"""Untrained autoencoders of diffusers, and the discriminator of their patches."""

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from sfumato.base.randomness import derived_seed
from sfumato.config.autoencoding import VaeNetworkConfig

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

LOG_VARIANCE = -6.0
"""Of an untrained posterior, about a twentieth of what a latent's deviation becomes. diffusers' own
start, 0, is noise in which a decoder finds nothing for thousands of steps."""


def build_vae(
    config: VaeNetworkConfig, *, channels: int, resolution: int, seed: int
) -> "AutoencoderKL":
    """An `AutoencoderKL` of images with `channels`, its weights drawn from `seed`; the global
    generators are left alone."""
    from diffusers import AutoencoderKL

    levels, latent = len(config.block_out_channels), config.latent_channels
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derived_seed(seed, "weights", "vae"))
        vae = AutoencoderKL(
            in_channels=channels,
            out_channels=channels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=config.block_out_channels,
            layers_per_block=config.layers_per_block,
            latent_channels=latent,
            norm_num_groups=config.norm_num_groups,
            sample_size=resolution,
            scaling_factor=1.0,
            use_quant_conv=False,
            use_post_quant_conv=False,
            mid_block_add_attention=config.mid_attention,
        )
    with torch.no_grad():
        out = vae.encoder.conv_out
        assert out.bias is not None
        out.weight[latent:] = 0
        out.bias[latent:] = LOG_VARIANCE
    return vae


class PatchDiscriminator(nn.Module):
    """Images (B, C, H, W) in [-1, 1] -> logits of real (B, 1, H', W'), one for each patch, as in
    pix2pix (Isola et al. 2017), with spectral norm in place of batch norm."""

    def __init__(self, widths: tuple[int, ...], *, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width, out in pairwise((channels, *widths)):
            layers += [spectral_norm(nn.Conv2d(width, out, 4, 2, 1)), nn.LeakyReLU(0.2)]
        self.body = nn.Sequential(*layers, spectral_norm(nn.Conv2d(widths[-1], 1, 3, 1, 1)))

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images)


def build_discriminator(
    config: VaeNetworkConfig, *, channels: int, seed: int
) -> PatchDiscriminator:
    """A discriminator with weights drawn from `seed`; the global generators are left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derived_seed(seed, "weights", "patches"))
        return PatchDiscriminator(config.discriminator_channels, channels=channels)
