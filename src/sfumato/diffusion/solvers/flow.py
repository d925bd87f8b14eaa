"""Euler and Heun over the probability flow of a rectified flow."""

import torch
from torch import Tensor

from sfumato.diffusion.process import Process
from sfumato.diffusion.solvers.registry import Sampling, sampler_of


class FlowSolver:
    """Solves dx/dt = (x - x0(x, t)) / t from t = 1 to 0 in equal steps; see `Solver`.

    `shift` moves the levels to shift t / (1 + (shift - 1) t) (Esser et al. 2024, Eq. 23); only the
    last `done` steps are done, all of them without it.

    Euler evaluates the network once a step. Heun (Karras et al. 2022, Algorithm 1) evaluates it
    again at the end of every step but the last and averages the two velocities.
    """

    def __init__(
        self, process: Process, sampling: Sampling, shift: float = 1.0, *, done: int | None = None
    ) -> None:
        self.order = sampler_of(sampling.sampler, process).order
        steps = sampling.steps
        left = steps if done is None else done
        levels = torch.arange(left, -1, -1, dtype=torch.float64) / steps
        self.levels = shift * levels / (1 + (shift - 1) * levels)
        evaluations = self.levels[:-1]
        self.times = (
            evaluations
            if self.order == 1
            else torch.cat([evaluations[:1], evaluations[1:].repeat_interleave(2)])
        )
        self._start: tuple[Tensor, Tensor] | None = None

    def step(self, x0: Tensor, x_t: Tensor, *, index: int) -> Tensor:
        t = float(self.times[index])
        if self.order == 2 and index % 2:  # the end of the step that evaluation index - 1 began
            assert self._start is not None
            before, velocity = self._start
            previous = float(self.times[index - 1])
            return before + (t - previous) * (velocity + (x_t - x0) / t) / 2
        step = index if self.order == 1 else index // 2
        if self.order == 2:
            self._start = (x_t, (x_t - x0) / t)
        # x_t + (t' - t) (x_t - x0) / t; at t' = 0 it is x0 exactly
        return x0 + float(self.levels[step + 1]) / t * (x_t - x0)
