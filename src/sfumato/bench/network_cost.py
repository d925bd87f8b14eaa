"""What an image costs a network: floating point operations, and memory until the backward pass.

Counted on tensors without storage, so networks of any size take a second and no memory.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from sfumato.config.schema import DiffusionExperiment
from sfumato.models.unet import build_unet

LARGEST_AUTO_PX = 64
"""Resolution of a preset whose data decide: the most that it chooses by itself."""


@dataclass(frozen=True, kw_only=True)
class NetworkCost:
    """A preset's U-Net; FLOPs and activations are of one image in the forward pass."""

    name: str
    parameters: int
    block_parameters: int
    """Of the largest block: what FSDP gathers at once."""
    forward_flops: int
    """A multiplication and an addition are two."""
    activation_bytes: int
    """What autograd keeps, in float32, with attention that does not keep its probabilities."""
    averages: int
    batch_size: int
    """Global batch of the preset."""

    def training_bytes(self, images: int, *, half: bool) -> float:
        """Memory of a step of `images` in one micro-batch: weights, gradients, two moments and the
        averages in float32, and activations, in bfloat16 if `half`."""
        activations = self.activation_bytes / (2 if half else 1)
        return 4 * self.parameters * (4 + self.averages) + images * activations


def network_cost(experiment: DiffusionExperiment) -> NetworkCost:
    """The cost of the U-Net of an experiment, at 64x64x3 where the data decide."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    data, averaging = experiment.data, experiment.training.averaging
    resolution = LARGEST_AUTO_PX if data.resolution == "auto" else data.resolution
    channels = 3 if data.channels == "auto" else data.channels
    channels, resolution = experiment.codec.network_shape(channels, resolution)
    with FakeTensorMode():
        unet = build_unet(experiment.model, resolution=resolution, channels=channels, seed=0)
        if experiment.training.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        flops, saved = forward_cost(
            unet,
            torch.empty(1, channels, resolution, resolution),
            torch.zeros(1),
            torch.empty(1, experiment.text.max_tokens, experiment.model.cross_attention_dim),
        )
        blocks = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
        return NetworkCost(
            name=experiment.name,
            parameters=_parameters(unet),
            block_parameters=max(_parameters(block) for block in blocks),
            forward_flops=flops,
            activation_bytes=saved,
            averages=1 + len(averaging.also_halflives_images),
            batch_size=experiment.training.batch_size,
        )


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def forward_cost(network: nn.Module, *inputs: Tensor) -> tuple[int, int]:
    """Floating point operations of a forward pass, and bytes that autograd keeps for the backward
    pass beside the parameters. `inputs` may have no storage."""
    own = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept: dict[int, Any] = {}  # the storages stay alive, or their numbers would be used again

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    # FlopCounterMode knows the fused attention of GPUs only.
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    counter = FlopCounterMode(display=False, custom_mapping={attention: _attention_flops})
    with counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = network(*inputs)
    del output
    return counter.get_total_flops(), sum(storage.nbytes() for storage in kept.values())


def _attention_flops(query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> int:
    return sdpa_flop_count(query, key, value)
