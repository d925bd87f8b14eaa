"""Averaged weights in a module of their own: training weights are never swapped."""

import copy
from functools import cached_property
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from sfumato.config.sections import AverageConfig, AveragingConfig

Module = TypeVar("Module", bound=nn.Module)


def averaging_decay(config: AverageConfig, *, images_seen: int, batch_size: int) -> float:
    """The average's share in the update after `images_seen` images, the batch counted in."""
    halflife = min(config.halflife_images, images_seen * config.rampup_ratio)
    return 0.5 ** (batch_size / max(halflife, 1e-8))


class AveragedModel(Generic[Module]):
    """average <- decay average + (1 - decay) weights, after every optimizer step of `model`."""

    def __init__(self, model: Module, config: AverageConfig) -> None:
        self.config = config
        self.model = model
        self.module: Module = copy.deepcopy(model).eval().requires_grad_(False)

    @cached_property
    def _tensors(self) -> tuple[list[Any], ...]:
        """Weights that are trained, their averages, buffers and their copies. Listed once: walking
        a U-Net's modules at every step costs as much as the averaging."""
        pairs = zip(self.model.parameters(), self.module.parameters(), strict=True)
        trained = [(weight, average) for weight, average in pairs if weight.requires_grad]
        return (
            [weight for weight, _ in trained],
            [average for _, average in trained],
            list(self.model.buffers()),
            list(self.module.buffers()),
        )

    @torch.no_grad()
    def update(self, *, images_seen: int, batch_size: int, finite: Tensor) -> None:
        """Average the weights of the step before. `finite`: () bool on the device; where the step
        was not, nothing changes, and the host waits for no answer."""
        decay = averaging_decay(self.config, images_seen=images_seen, batch_size=batch_size)
        weights, averages, buffers, copies = self._tensors
        if _is_on_host(finite):
            if not finite:
                return
            torch._foreach_lerp_(averages, weights, 1 - decay)
        else:
            # The activations are gone by now: another network in memory does not raise the peak.
            own, theirs = [*map(_local, averages)], [*map(_local, weights)]
            changes = torch._foreach_sub(theirs, own)
            torch._foreach_mul_(changes, finite * (1 - decay))
            torch._foreach_add_(own, changes)
        for average, value in zip(copies, buffers, strict=True):
            average.copy_(torch.where(finite, value, average))


def _is_on_host(value: Tensor) -> bool:
    """Whether reading `value` waits for nothing."""
    return value.device.type == "cpu"


def _local(weight: Any) -> Tensor:
    """This rank's share of a weight that is divided among ranks; else the weight."""
    return weight.to_local() if hasattr(weight, "to_local") else weight


def averages_of(model: Module, config: AveragingConfig) -> dict[str, AveragedModel[Module]]:
    """An average for each half-life of `config` by the name of its part in a checkpoint: `average`
    is the one that is drawn with unless another is chosen."""
    others = {
        f"average-{halflife:g}": config.model_copy(update={"halflife_images": halflife})
        for halflife in config.also_halflives_images
    }
    return {name: AveragedModel(model, own) for name, own in {"average": config, **others}.items()}
