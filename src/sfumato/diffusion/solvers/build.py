"""The solver of a sampler, for one batch."""

from collections.abc import Sequence
from typing import Any

import torch

from sfumato.diffusion.process import Preconditioned, Process
from sfumato.diffusion.sampling import Solver
from sfumato.diffusion.solvers.registry import Sampling, check_sampling, sampler_of
from sfumato.diffusion.solvers.schedulers import build_scheduler_solver, check_settings


def build_solver(
    process: Process,
    sampling: Sampling,
    *,
    generators: Sequence[torch.Generator] = (),
    scheduler: Any = None,
) -> Solver:
    """The solver of one batch over `sampling.steps` noise levels.

    `generators`: one an image, for samplers that draw noise. `scheduler`: a diffusers scheduler to
    sample with, in place of a new one with our settings; it is left as it is. `InputError` for more
    steps than levels, or a scheduler or setting that is not supported.
    """
    check_sampling(sampling, process)
    if process.process == "variance_preserving":
        return build_scheduler_solver(process, sampling, generators, scheduler)
    if isinstance(process, Preconditioned):
        from sfumato.diffusion.solvers.edm import SigmaSolver

        return SigmaSolver(process, sampling)
    from sfumato.diffusion.solvers.flow import FlowSolver

    if scheduler is not None:
        check_settings(scheduler, sampler_of(sampling.sampler, process))
    return FlowSolver(process, sampling, 1.0 if scheduler is None else scheduler.config["shift"])
