"""A network as the sampling loop calls it: on a CPU in calls of equal rows."""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from sfumato.diffusion.guidance import scale_embedding
from sfumato.diffusion.sampling import EqualRows, Network

CPU_ROWS = 16
"""Rows of a network call on a CPU: an image's bits then do not depend on its batch."""
LARGER_CPU_ROWS = (32, 64)
"""Used as well where they give the same bits: calls of 16 cost more time an image."""
FEWER_CPU_ROWS = (1, 2, 4, 8)
"""Used for fewer than 16 rows where they give the same bits."""
_CHECKED_ROWS: "WeakKeyDictionary[torch.nn.Module, dict]" = WeakKeyDictionary()
"""By network and dtype: which sizes give the same bits."""


def network_in_rows(
    module: torch.nn.Module, dtype: torch.dtype, *, scale: float, alone: bool, on_cpu: bool
) -> Network:
    """`module` in `dtype`; `scale`: w, for a student that takes it as an input; `alone`: as in
    `Model.sample`."""
    config: Any = module.config
    width = config.get("time_cond_proj_dim")
    own = None if width is None else scale_embedding(torch.tensor([scale]), width).to(dtype)

    def network(x_t: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        more = {} if own is None else {"timestep_cond": own.to(x_t.device).expand(len(x_t), -1)}
        return module(x_t.to(dtype), t, tokens, **more, return_dict=False)[0]

    module.eval()
    if not on_cpu:
        return network
    checked = _CHECKED_ROWS.setdefault(module, {}).setdefault(dtype, {})
    return EqualRows(
        network,
        CPU_ROWS,
        larger=LARGER_CPU_ROWS,
        fewer=FEWER_CPU_ROWS,
        checked=checked,
        alone=alone,
    )
