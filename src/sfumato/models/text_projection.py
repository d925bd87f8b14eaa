"""Keys and values of a caption, projected once a sampling run instead of at every step."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

MOST_BATCHES = 32
"""Text batches whose projections a layer keeps: those of one step are far fewer."""


@contextmanager
def text_projected_once(unet: torch.nn.Module) -> Iterator[None]:
    """Inside, a U-Net projects the same text tokens to keys and values once, not at every step.

    The tokens of a batch do not change over the steps of sampling. "The same" is the same tensor,
    so the bits are what they were; every other input is projected as always. Not for training: the
    projections are remembered with the weights that made them.
    """
    from diffusers.models.attention_processor import Attention

    layers = [
        layer
        for module in unet.modules()
        if isinstance(module, Attention) and module.is_cross_attention
        for layer in (module.to_k, module.to_v)
        if layer is not None
    ]
    with forwards_wrapped(layers, _remembering):
        yield


@contextmanager
def forwards_wrapped(
    layers: Sequence[torch.nn.Module],
    wrap: Callable[[Callable[..., Tensor]], Callable[..., Tensor]],
) -> Iterator[None]:
    """Inside, each layer's `forward` is `wrap` of its own."""
    before = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        layer.forward = wrap(layer.forward)
    try:
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            if own is None:
                del layer.forward  # the class's own shows again
            else:
                layer.forward = own


def _remembering(project: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    # An entry holds its input too: while it lives, no other tensor can lie at its address.
    known: OrderedDict[tuple[int, torch.Size], tuple[Tensor, Tensor]] = OrderedDict()

    def call(tokens: Tensor) -> Tensor:
        key = (tokens.data_ptr(), tokens.shape)
        if key not in known:
            known[key] = (tokens, project(tokens))
            if len(known) > MOST_BATCHES:
                known.popitem(last=False)
        return known[key][1]

    return call
