"""A network as the sampling loop calls it: on a CPU in calls of equal rows."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from sfumato.base.weights import compute_dtype
from sfumato.diffusion.guidance import scale_embedding
from sfumato.diffusion.sampling import EqualRows, Network
from sfumato.models.text_projection import text_projected_once
from sfumato.models.time_rows import time_in_rows

CPU_ROWS = 16
"""Rows of a network call on a CPU: an image's bits then do not depend on its batch."""
LARGER_CPU_ROWS = (32, 64)
"""Used as well where they give the same bits: calls of 16 cost more time an image."""
FEWER_CPU_ROWS = (1, 2, 4, 8)
"""Used for fewer than 16 rows where they give the same bits."""
_CHECKED_ROWS: "WeakKeyDictionary[torch.nn.Module, dict]" = WeakKeyDictionary()
"""By network and dtype: which sizes give the same bits."""


@dataclass(frozen=True, kw_only=True)
class Calls:
    """How networks are called. `scale`: w, for a student that takes it as an input; `alone`: as in
    `Model.sample`."""

    scale: float
    alone: bool
    on_cpu: bool
    compiled: bool


@contextmanager
def networks_in_rows(modules: Sequence[torch.nn.Module], how: Calls) -> Iterator[list[Network]]:
    """`modules` as the sampling loop calls them, in the dtype of the first."""
    dtype = compute_dtype(modules[0])
    with ExitStack() as stack:
        for module in () if how.compiled else modules:  # it would be compiled again
            stack.enter_context(text_projected_once(module))
            stack.enter_context(time_in_rows(module, CPU_ROWS if how.on_cpu else 0))
        yield [_network_in_rows(module, dtype, how) for module in modules]


def _network_in_rows(module: torch.nn.Module, dtype: torch.dtype, how: Calls) -> Network:
    config: Any = module.config
    width = config.get("time_cond_proj_dim")
    own = None if width is None else scale_embedding(torch.tensor([how.scale]), width).to(dtype)

    def network(x_t: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        more = {} if own is None else {"timestep_cond": own.to(x_t.device).expand(len(x_t), -1)}
        return module(x_t.to(dtype), t, tokens, **more, return_dict=False)[0]

    module.eval()
    if not how.on_cpu:
        return network
    checked = _CHECKED_ROWS.setdefault(module, {}).setdefault(dtype, {})
    return EqualRows(
        network,
        CPU_ROWS,
        larger=LARGER_CPU_ROWS,
        fewer=FEWER_CPU_ROWS,
        checked=checked,
        alone=how.alone,
    )
