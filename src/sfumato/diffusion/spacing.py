"""Which of the trained noise levels a sampler visits (Lin et al. 2024, Table 2)."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

TimestepSpacing = Literal["trailing", "leading", "linspace"]

SPACINGS: dict[str, Callable[[int, int], Tensor]] = {
    "trailing": lambda levels, steps: torch.arange(steps, 0, -1).double() * levels / steps - 1,
    "leading": lambda levels, steps: torch.arange(steps - 1, -1, -1) * (levels // steps),
    "linspace": lambda levels, steps: torch.linspace(levels - 1, 0, steps, dtype=torch.float64),
}
"""(number of levels, number of steps) to falling timesteps, not yet rounded."""


def spaced_timesteps(levels: int, steps: int, *, spacing: TimestepSpacing) -> Tensor:
    """`steps` different timesteps out of 0 .. levels - 1, noisiest first: (steps,) int64.

    `trailing` starts at the noisiest level and stops one stride short of the clean image,
    `leading` ends at t = 0 and starts up to a stride below the noisiest level, `linspace` has both
    ends.
    """
    assert 1 <= steps <= levels
    return SPACINGS[spacing](levels, steps).round().long()
