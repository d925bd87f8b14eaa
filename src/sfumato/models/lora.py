"""LoRA of a U-Net: low-rank additions to the weights of some layers (Hu et al. 2021).

peft trains them. Its state is kept under peft's and diffusers' names, `LAYER.lora_A.weight` and
`LAYER.lora_B.weight`; adding it to the weights is arithmetic and needs no peft.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.base.errors import ConfigError, InputError
from sfumato.base.randomness import derived_seed
from sfumato.config.finetuning import LoraConfig

ADAPTER_FILE = "pytorch_lora_weights.safetensors"
"""The name by which diffusers finds an adapter in a folder."""
_PREFIX = "unet."
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
_NAME = "default"
"""peft's name of the only adapter."""


def add_adapter(unet: nn.Module, config: LoraConfig, *, seed: int) -> None:
    """Put an adapter that changes nothing yet into `unet`, in place; only it is trained.

    `ConfigError` for targets that are no layers of it, `InputError` without peft.
    """
    try:
        from peft import LoraConfig as PeftConfig
        from peft import inject_adapter_in_model
    except ImportError as error:
        raise InputError(
            "training.lora needs peft, which is not installed.",
            hint="pip install 'sfumato[lora]', or leave training.lora out to train all weights.",
        ) from error
    _check_targets(unet, config)
    unet.requires_grad_(False)
    theirs = PeftConfig(
        r=config.rank,
        lora_alpha=config.scale * config.rank,  # pyright: ignore
        target_modules=list(config.targets),
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derived_seed(seed, "weights", "lora"))
        inject_adapter_in_model(theirs, unet, adapter_name=_NAME, low_cpu_mem_usage=False)


def _check_targets(unet: nn.Module, config: LoraConfig) -> None:
    modules = dict(unet.named_modules())
    for target in config.targets:
        found = [m for name, m in modules.items() if f".{name}".endswith(f".{target}")]
        if not found or not all(isinstance(m, nn.Linear | nn.Conv2d) for m in found):
            what = "no layer" if not found else "not a linear layer or a convolution"
            raise ConfigError(
                f"training.lora.targets: '{target}' is {what} of this network.",
                hint=f"Names end in, for example, {', '.join(LoraConfig().targets)}.",
            )


def adapter_state(unet: nn.Module) -> dict[str, Tensor]:
    """The adapter's weights by name."""
    marked = f".{_NAME}."
    return {
        name.replace(marked, "."): value
        for name, value in unet.state_dict().items()
        if ".lora_" in name and marked in name
    }


class AdapterPart:
    """The adapter of a U-Net as a part of a checkpoint."""

    def __init__(self, unet: nn.Module) -> None:
        self.unet = unet

    def state_dict(self) -> dict[str, Tensor]:
        return adapter_state(self.unet)

    def load_state_dict(self, state_dict: Mapping[str, Tensor], /) -> None:
        """`ConfigError` for the state of an adapter of other layers or another rank."""
        own = self.state_dict()
        for name in {**own, **state_dict}:
            shapes = [tuple(one[name].shape) if name in one else None for one in (own, state_dict)]
            if shapes[0] != shapes[1]:
                raise ConfigError(
                    f"The checkpoint holds another adapter: {name} is {shapes[1] or 'absent'} "
                    f"there and {shapes[0] or 'absent'} in this model.",
                    hint="Use the experiment.yaml that the checkpoint was made with.",
                )
        with torch.no_grad():
            for name, value in state_dict.items():
                own[name].copy_(value)


def merge_adapter(unet: nn.Module, state: Mapping[str, Tensor], *, scale: float) -> None:
    """Add an adapter to the weights of a U-Net without one: W + scale B A, in place."""
    modules = dict(unet.named_modules())
    for name, down in state.items():
        if not name.endswith(_DOWN):
            continue
        layer = name.removesuffix(_DOWN)
        weight, up = modules[layer].weight, state[layer + _UP]
        # Of a convolution A is one of the same size to `rank` channels, and B one of 1x1.
        change = up.flatten(1) @ down.flatten(1)
        with torch.no_grad():
            weight.add_(scale * change.reshape(weight.shape).to(weight))  # pyright: ignore


def write_adapter(state: Mapping[str, Tensor], config: LoraConfig, folder: Path) -> None:
    """The adapter as diffusers reads it: `unet.load_lora_adapter(folder, weight_name=ADAPTER_FILE,
    prefix="unet")`, and `load_lora_weights` of its own pipelines."""
    from safetensors.torch import save_file

    about: dict[str, Any] = {
        "r": config.rank,
        "lora_alpha": config.scale * config.rank,
        "target_modules": sorted(config.targets),
    }
    metadata = {
        "format": "pt",
        "lora_adapter_metadata": json.dumps({_PREFIX + key: v for key, v in about.items()}),
    }
    tensors = {_PREFIX + name: value.detach().cpu().contiguous() for name, value in state.items()}
    save_file(tensors, folder / ADAPTER_FILE, metadata=metadata)
