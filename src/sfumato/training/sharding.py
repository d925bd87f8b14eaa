"""Networks whose weights, gradients and moments are divided among ranks (FSDP2).

For networks that do not fit one device. State dictionaries stay whole on both sides of a file, so a
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
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for network in networks:
        for block in _blocks(network):
            fully_shard(block, mesh=mesh)
        fully_shard(network, mesh=mesh)


def _blocks(network: Any) -> list[nn.Module]:
    """The levels of diffusers' U-Net."""
    return [*network.down_blocks, network.mid_block, *network.up_blocks]


def whole_state(part: Stateful) -> Any:
    """The state dictionary of `part` with whole tensors; every rank must call it."""
    return _whole(part.state_dict())


def _whole(value: Any) -> Any:
    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, Mapping):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
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
