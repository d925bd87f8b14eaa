"""AdamW and a learning rate that is a function of the images seen."""

import math
from typing import TYPE_CHECKING

from sfumato.config.sections import OptimizerConfig

if TYPE_CHECKING:
    import torch


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
        [weight for weight in module.parameters() if weight.requires_grad],
        lr=config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=True,  # one pass over the weights instead of a dozen
    )
