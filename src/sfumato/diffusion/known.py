"""Inpainting: known pixels stay while the others are sampled."""

import torch
from torch import Tensor

from sfumato.diffusion.process import Process
from sfumato.diffusion.sampling import Solver


class KnownPixels:
    """A `Solver` that puts known pixels back after every step of another, at the level it ends at.

    The known region is a(t) x0 + s(t) eps with one `eps` for all levels, the noise that sampling
    starts from, so it moves as a solver without noise would move it. (RePaint, Lugmayr et al. 2022,
    Eq. 8a, draws new noise at each level, and goes back to noisier levels.)
    """

    def __init__(
        self, solver: Solver, process: Process, *, x0: Tensor, eps: Tensor, keep: Tensor
    ) -> None:
        """`x0`, `eps`: (B, C, H, W); `keep`: (B, 1, H, W) bool, the known pixels."""
        self.solver, self.process = solver, process
        self.x0, self.eps, self.keep = x0, eps, keep
        self.times = solver.times

    def put_back(self, x_t: Tensor, *, index: int) -> Tensor:
        """`x_t` at the level of evaluation `index`, with the known pixels; after the last one it is
        the image, where they are exact."""
        known = self.x0
        if index < len(self.times):
            t = self.times[index].to(x_t.device).expand(len(x_t))
            known = self.process.add_noise(self.x0, self.eps, t)
        return torch.where(self.keep, known, x_t)

    def step(self, x0: Tensor, x_t: Tensor, *, index: int) -> Tensor:
        return self.put_back(self.solver.step(x0, x_t, index=index), index=index + 1)
