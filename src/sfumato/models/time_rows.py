"""The layers of a network that see the time alone, in calls of always as many rows."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from sfumato.models.text_projection import forwards_wrapped


@contextmanager
def time_in_rows(unet: torch.nn.Module, rows: int) -> Iterator[None]:
    """Inside, the linear layers of a U-Net that take (B, D) get `rows` rows where B is smaller.

    On a CPU the last bits of a matrix product depend on its number of rows. In a U-Net these small
    layers are the first to differ; with as many rows as in a call of `rows` images they cost next
    to nothing, and calls of one or two images give the same bits on most machines.
    """
    from diffusers.models.embeddings import TimestepEmbedding
    from diffusers.models.resnet import ResnetBlock2D

    layers: list[torch.nn.Module] = []
    for module in unet.modules():
        if isinstance(module, TimestepEmbedding):
            layers += [module.linear_1, module.linear_2]
        elif isinstance(module, ResnetBlock2D) and module.time_emb_proj is not None:
            layers.append(module.time_emb_proj)
    with forwards_wrapped(layers, partial(_in_rows, rows=rows)):
        yield


def _in_rows(project: Callable[[Tensor], Tensor], *, rows: int) -> Callable[[Tensor], Tensor]:
    def call(embedded: Tensor) -> Tensor:
        count = len(embedded)
        if embedded.ndim != 2 or count >= rows:
            return project(embedded)
        filled = torch.cat([embedded, embedded[-1:].expand(rows - count, -1)])
        return project(filled)[:count]

    return call
