"""What makes a network faster on its device: memory format and compilation."""

from typing import Literal

import torch
from torch import nn

from sfumato.models.cpu_kernels import speed_up_on_cpu

Compile = Literal["none", "blocks", "graph"]
_REPEATED = ("ResnetBlock2D", "BasicTransformerBlock")
"""The blocks of which diffusers' U-Net is built."""


def place(network: nn.Module, device: torch.device) -> nn.Module:
    """`network` on `device`; on a GPU with channels last, as its convolutions compute."""
    if device.type != "cuda":
        return network.to(device)
    return network.to(device, memory_format=torch.channels_last)


def speed_up(network: nn.Module, compile: Compile) -> None:
    """Prepare a placed network for training, in place; its state dictionary stays the same.

    `blocks` compiles each block; `graph` compiles the whole network and replays it as CUDA graphs.
    Both take minutes at the first steps.
    """
    if next(network.parameters()).device.type == "cpu":
        speed_up_on_cpu(network)
    if compile == "blocks":
        compile_blocks(network)
    elif compile == "graph":
        network.compile(mode="reduce-overhead")


def compile_blocks(network: nn.Module) -> None:
    """Compile each block of a U-Net in place, at its first call."""
    # Blocks of one class share their code, and each shape of them counts as a recompilation.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    for module in network.modules():
        if type(module).__name__ in _REPEATED:
            module.compile()
