"""Networks whose weights, gradients and optimizer state are sharded across ranks (FSDP2).

For networks whose gradients, optimizer state and averages do not fit one device together; the
network itself is built whole. State dictionaries stay whole on both sides of a file, so a
checkpoint does not depend on how many ranks wrote it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from sfumato.training.state import Stateful


def shard(networks: Sequence[nn.Module]) -> None:
    """Divide the weights of each network among all ranks, in place, block by block: one block at a
    time is whole while it computes."""
    device = next(networks[0].parameters()).device
    for network in networks:
        network.to(memory_format=torch.contiguous_format)  # pyright: ignore  # FSDP2 takes no other
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for network in networks:
        for block in _blocks(network):
            fully_shard(block, mesh=mesh)
        # By default the outermost weights stay whole after a forward pass, and an average, which
        # has no backward pass, would then sample with what they were before its next update.
        fully_shard(network, mesh=mesh, reshard_after_forward=True)


def _blocks(network: Any) -> list[nn.Module]:
    """The levels of diffusers' U-Net."""
    return [*network.down_blocks, network.mid_block, *network.up_blocks]


def whole_state(part: Stateful, *, keep: bool) -> Any:
    """The state dictionary of `part` with whole tensors on the CPU; every rank must call it, and
    one that does not `keep` them gets None in their place."""
    return _whole(part.state_dict(), keep)


def _whole(value: Any, keep: bool) -> Any:
    if isinstance(value, DTensor):
        whole = value.full_tensor()
        return whole.cpu() if keep else None
    if isinstance(value, Mapping):
        return {key: _whole(item, keep) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole(item, keep) for item in value]
    return value


def divided_state(part: Stateful, state: Any) -> Any:
    """`state`, whole tensors, as `part` takes it: this rank's share of those that are divided."""
    if isinstance(part, nn.Module):
        own = dict(part.state_dict())
        return {name: _like(own[name], value) for name, value in state.items()}
    assert isinstance(part, torch.optim.Optimizer)
    weights = [weight for group in part.param_groups for weight in group["params"]]
    moments = {
        place: {name: _like(weights[place], value) for name, value in one.items()}
        for place, one in state["state"].items()
    }
    return {**state, "state": moments}


def _like(own: Tensor, value: Any) -> Any:
    """`value` divided as `own` is, where it has its shape: an optimizer's step count has not."""
    if not isinstance(own, DTensor) or value.shape != own.shape:
        return value
    local = value.to(own.device)
    return distribute_tensor(local, own.device_mesh, own.placements, src_data_rank=None)
