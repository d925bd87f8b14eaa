"""From an experiment's configuration to a diffusers `UNet2DConditionModel` (Section 3.2.2)."""

from typing import TYPE_CHECKING

from sfumato.base.randomness import derived_seed
from sfumato.config.sections import UNetConfig

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

_DOWN = {"plain": "DownBlock2D", "attention": "CrossAttnDownBlock2D"}
_UP = {"plain": "UpBlock2D", "attention": "CrossAttnUpBlock2D"}


def build_unet(
    config: UNetConfig, *, resolution: int, channels: int, seed: int
) -> "UNet2DConditionModel":
    """The U-Net with weights drawn from `seed`; the global generators are left as they were."""
    import torch
    from diffusers import UNet2DConditionModel

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derived_seed(seed, "weights", "unet"))
        return UNet2DConditionModel(
            sample_size=resolution,
            in_channels=channels,
            out_channels=channels,
            block_out_channels=config.block_out_channels,
            layers_per_block=config.layers_per_block,
            down_block_types=tuple(_DOWN[level] for level in config.levels),
            up_block_types=tuple(_UP[level] for level in reversed(config.levels)),
            cross_attention_dim=config.cross_attention_dim,
            attention_head_dim=(
                config.attention_head_dim if config.head_channels is None else config.heads
            ),
            norm_num_groups=config.norm_num_groups,
            dropout=config.dropout,
        )


def parameter_count(config: UNetConfig, *, resolution: int, channels: int) -> int:
    """Number of trainable parameters, counted on a network without storage."""
    import torch

    with torch.device("meta"):
        unet = build_unet(config, resolution=resolution, channels=channels, seed=0)
    return sum(parameter.numel() for parameter in unet.parameters())
