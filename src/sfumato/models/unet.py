"""From an experiment's configuration to a diffusers `UNet2DConditionModel` (Section 3.2.2)."""

from typing import TYPE_CHECKING, Literal

from pydantic import model_validator

from sfumato.base.randomness import derived_seed
from sfumato.base.section import Count, Section, Share

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

Level = Literal["plain", "attention"]
_DOWN = {"plain": "DownBlock2D", "attention": "CrossAttnDownBlock2D"}
_UP = {"plain": "UpBlock2D", "attention": "CrossAttnUpBlock2D"}


class UNetConfig(Section):
    """The denoising network. Up blocks mirror the down blocks, as in the paper."""

    block_out_channels: tuple[Count, ...]
    """Channels of each resolution level, from fine to coarse."""
    levels: tuple[Level, ...]
    """`plain` or `attention` (cross-attention to the caption) for each level."""
    layers_per_block: Count = 2
    """ResNet layers of each block."""
    cross_attention_dim: Count = 512
    """Width of the caption's tokens: 512 for CLIP ViT-B/32."""
    attention_head_dim: Count = 8
    """The keyword of diffusers: in this network it is the NUMBER of heads."""
    head_channels: Count | None = None
    """Channels of one attention head, as `attention_head_dim` sounds; null to go by that number."""
    norm_num_groups: Count = 32
    """Groups of GroupNorm; must divide every level's channels."""
    dropout: Share = 0.0
    """Dropout inside the ResNet layers."""

    @model_validator(mode="after")
    def _fits(self) -> "UNetConfig":
        if not self.levels or len(self.levels) != len(self.block_out_channels):
            raise ValueError("levels and block_out_channels must have the same length, at least 1")
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                raise ValueError(
                    f"norm_num_groups={self.norm_num_groups} does not divide {channels} channels"
                )
            if self.head_channels is None and channels % self.attention_head_dim:
                raise ValueError(
                    f"attention_head_dim={self.attention_head_dim} (a number of heads) does not "
                    f"divide {channels} channels"
                )
            if self.head_channels is not None and channels % self.head_channels:
                raise ValueError(
                    f"head_channels={self.head_channels} does not divide {channels} channels"
                )
        return self

    @property
    def heads(self) -> tuple[int, ...]:
        """Attention heads of each level, from fine to coarse; the middle has those of the last."""
        if self.head_channels is None:
            return (self.attention_head_dim,) * len(self.block_out_channels)
        return tuple(channels // self.head_channels for channels in self.block_out_channels)

    @property
    def heads_text(self) -> str:
        """`32 heads x 8 channels (level 2, level 3), ...`: where there is attention."""
        levels = zip(self.heads, self.block_out_channels, self.levels, strict=True)
        places: dict[str, list[str]] = {}
        for number, (heads, channels, kind) in enumerate(levels, start=1):
            found = places.setdefault(f"{heads} heads x {channels // heads} channels", [])
            if kind == "attention":
                found.append(f"level {number}")
            if number == len(self.levels):
                found.append("middle")
        return ", ".join(f"{each} ({', '.join(where)})" for each, where in places.items() if where)


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
