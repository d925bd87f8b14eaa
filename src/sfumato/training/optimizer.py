"""AdamW and a learning rate that is a function of the images seen."""

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from sfumato.base.section import NotNegative, Positive, Section, Share

if TYPE_CHECKING:
    import torch


class OptimizerConfig(Section):
    """AdamW (Loshchilov and Hutter 2019), warm-up and decay."""

    lr: Positive
    """Learning rate after the warm-up."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """Decay of the first and second moment."""
    weight_decay: NotNegative = 0.01
    """Decoupled weight decay (torch's and the paper's default)."""
    warmup_images: int = Field(default=0, ge=0)
    """Images over which the rate rises linearly from zero."""
    decay: Literal["constant", "cosine"] = "constant"
    """`cosine` brings the rate to zero at the end of the run."""
    max_grad_norm: Positive | None = None
    """Clip the global gradient norm to this; null for no clipping, as in the paper."""


def learning_rate(config: OptimizerConfig, *, images_seen: int, total_images: int) -> float:
    """The rate of the step that starts at `images_seen`."""
    rate = config.lr
    if config.warmup_images:
        rate *= min(1.0, (images_seen + 1) / config.warmup_images)
    if config.decay == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * min(1.0, images_seen / total_images)))
    return rate


def build_optimizer(config: OptimizerConfig, module: "torch.nn.Module") -> "torch.optim.AdamW":
    import torch

    return torch.optim.AdamW(
        module.parameters(),
        lr=config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=True,  # one pass over the weights instead of a dozen
    )
