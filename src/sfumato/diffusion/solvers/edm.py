"""Euler and Heun in sigma over the probability flow (Karras et al. 2022, Algorithm 1)."""

import torch
from torch import Tensor

from sfumato.diffusion.process import Preconditioned
from sfumato.diffusion.solvers.registry import MAX_SIGMA, Sampling, sampler_of

MIN_SIGMA, RHO = 0.002, 7.0
"""Table 1 of the paper."""


def karras_levels(steps: int) -> Tensor:
    """(steps + 1,) float64 sigma from `MAX_SIGMA` to `MIN_SIGMA` and 0: Eq. 5 of the paper."""
    share = torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)
    low, high = MIN_SIGMA ** (1 / RHO), MAX_SIGMA ** (1 / RHO)
    return torch.cat([(high + share * (low - high)) ** RHO, torch.zeros(1, dtype=torch.float64)])


class SigmaSolver:
    """Solves dy/dsigma = (y - x0) / sigma for y = x_t / a; see `Solver`.

    Heun evaluates the network again at the end of every step but the last, where sigma is 0, and
    averages the two slopes.
    """

    def __init__(
        self, process: Preconditioned, sampling: Sampling, *, done: int | None = None
    ) -> None:
        """`done`: how many of the steps are done, the last; all unless given."""
        self.order = sampler_of(sampling.sampler, process).order
        left = sampling.steps if done is None else done
        self.sigmas = karras_levels(sampling.steps)[-left - 1 :]
        levels = self.sigmas[:-1]
        if self.order == 2:
            levels = torch.cat([levels[:1], levels[1:].repeat_interleave(2)])
        self.times = process.time_of(levels)
        self._start: tuple[Tensor, Tensor] | None = None

    def step(self, x0: Tensor, x_t: Tensor, *, index: int) -> Tensor:
        corrects = self.order == 2 and index % 2 == 1
        number = index // 2 if self.order == 2 else index
        sigma, after = float(self.sigmas[number]), float(self.sigmas[number + 1])
        y = x_t * _root(after if corrects else sigma)
        if corrects:
            assert self._start is not None
            before, slope = self._start
            moved = before + (after - sigma) * (slope + (y - x0) / after) / 2
            return moved / _root(after)
        slope = (y - x0) / sigma
        self._start = (y, slope)
        # y + (after - sigma) slope; at sigma 0 it is x0 exactly
        return (x0 + after * slope) / _root(after)


def _root(sigma: float) -> float:
    """1 / a."""
    return (1 + sigma**2) ** 0.5
