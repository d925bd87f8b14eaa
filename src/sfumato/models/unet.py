"""From an experiment's configuration to a diffusers `UNet2DConditionModel` (Section 3.2.2)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sfumato.base.errors import InputError
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
            time_cond_proj_dim=config.scale_embedding,
        )


def unet_config_of(config: Mapping[str, Any], *, where: str) -> UNetConfig:
    """The section that `build_unet` makes a network of diffusers' `config` from; `InputError` for
    one that it cannot make. `where`: the file, for the message."""
    kinds = {block: level for level, block in _DOWN.items()}
    widths, heads = config["block_out_channels"], config["attention_head_dim"]
    per_head = {
        width // own
        for width, own in zip(widths, heads if isinstance(heads, list) else [1], strict=False)
    }
    unknown = [block for block in config["down_block_types"] if block not in kinds]
    if unknown or len(per_head) != 1 or config["out_channels"] != config["in_channels"]:
        raise InputError(
            f"{where} describes another network than sfumato trains"
            + (f": it has {unknown[0]}." if unknown else "."),
            hint="Give a model that was trained by sfumato.",
        )
    by_channels = isinstance(heads, list)
    return UNetConfig(
        block_out_channels=tuple(widths),
        levels=tuple(kinds[block] for block in config["down_block_types"]),  # pyright: ignore
        layers_per_block=config["layers_per_block"],
        cross_attention_dim=config["cross_attention_dim"],
        attention_head_dim=8 if by_channels else heads,
        head_channels=per_head.pop() if by_channels else None,
        norm_num_groups=config["norm_num_groups"],
        dropout=config["dropout"],
        scale_embedding=config.get("time_cond_proj_dim"),
    )


def parameter_count(config: UNetConfig, *, channels: int) -> int:
    """Number of trainable parameters, by arithmetic: no torch, no network."""
    widths, cross = config.block_out_channels, config.cross_attention_dim
    last, layers = len(widths) - 1, config.layers_per_block
    time = 4 * widths[0]
    count = _conv(channels, widths[0]) + _linear(widths[0], time) + _linear(time, time)
    count += (config.scale_embedding or 0) * widths[0]
    for level, kind in enumerate(config.levels):  # down
        width = widths[level]
        attention = _attention(width, cross) if kind == "attention" else 0
        count += _resnet(widths[max(level - 1, 0)], width, time)
        count += (layers - 1) * _resnet(width, width, time) + layers * attention
        count += _conv(width, width) * (level < last)
        # up: each block has one more layer, and takes the skips of the down block beside it
        below, above = widths[min(level + 1, last)], widths[max(level - 1, 0)]
        inputs = [below + width] + [2 * width] * layers
        inputs[-1] += above - width
        count += sum(_resnet(one, width, time) for one in inputs) + (layers + 1) * attention
        count += _conv(width, width) * (level > 0)
    middle = 2 * _resnet(widths[last], widths[last], time) + _attention(widths[last], cross)
    return count + middle + 2 * widths[0] + _conv(widths[0], channels)


def _conv(channels: int, out_channels: int, size: int = 3) -> int:
    return channels * out_channels * size**2 + out_channels


def _linear(width: int, out_width: int) -> int:
    return width * out_width + out_width


def _resnet(channels: int, out_channels: int, time: int) -> int:
    norms = 2 * channels + 2 * out_channels
    convs = _conv(channels, out_channels) + _conv(out_channels, out_channels)
    shortcut = _conv(channels, out_channels, 1) if channels != out_channels else 0
    return norms + convs + _linear(time, out_channels) + shortcut


def _attention(width: int, cross: int) -> int:
    """A transformer block: self-attention, cross-attention and a gated MLP between projections."""
    projections, norms = 2 * _linear(width, width), 4 * 2 * width
    to_itself = 3 * width**2 + _linear(width, width)
    to_caption = width**2 + 2 * cross * width + _linear(width, width)
    mlp = _linear(width, 8 * width) + _linear(4 * width, width)
    return projections + norms + to_itself + to_caption + mlp
