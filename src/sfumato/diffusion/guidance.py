"""Guidance: how conditional and unconditional predictions become one.

Convention of Eq. 1, written into every result: `uncond + w (cond - uncond)`, so w = 0 is
unconditional and w = 1 is conditional without guidance.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

Branch = Literal["cond", "uncond"]

CONVENTION = "uncond + w (cond - uncond)"


class Guidance(Protocol):
    """One form of guidance: which network calls it needs at a step, and how it joins them."""

    def branches(self) -> tuple[Branch, ...]:
        """The predictions needed; each is one network evaluation an image."""
        ...

    def combine(self, x0: Mapping[Branch, Tensor]) -> Tensor:
        """One x0 (B, C, H, W) from those of the branches, each (B, C, H, W)."""
        ...


@dataclass(frozen=True)
class ClassifierFreeGuidance:
    """Plain classifier-free guidance, Eq. 1 of the paper (Ho and Salimans 2022).

    At a fixed x_t, eps is an affine function of x0 and the two weights add up to one, so Eq. 1
    holds for x0 as it does for eps.
    """

    scale: float

    def branches(self) -> tuple[Branch, ...]:
        if self.scale == 0:
            return ("uncond",)
        if self.scale == 1:
            return ("cond",)
        return ("cond", "uncond")

    def combine(self, x0: Mapping[Branch, Tensor]) -> Tensor:
        if len(x0) == 1:
            return next(iter(x0.values()))
        return x0["uncond"] + self.scale * (x0["cond"] - x0["uncond"])
