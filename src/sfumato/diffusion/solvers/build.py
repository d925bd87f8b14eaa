"""The solver of a sampler, for one batch."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from sfumato.base.errors import InputError
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
    strength: float = 1.0,
) -> Solver:
    """The solver of one batch over `sampling.steps` noise levels, or the last of them that
    `strength` leaves (see `steps_done`).

    `generators`: one an image, for samplers that draw noise. `scheduler`: a diffusers scheduler to
    sample with, in place of a new one with our settings; it is left as it is. `InputError` for more
    steps than levels, or a scheduler or setting that is not supported.
    """
    check_sampling(sampling, process)
    done = steps_done(sampling.steps, strength, student=sampling.form.folded)
    if process.process == "variance_preserving":
        return build_scheduler_solver(process, sampling, generators, scheduler, done=done)
    if isinstance(process, Preconditioned):
        from sfumato.diffusion.solvers.edm import SigmaSolver

        return SigmaSolver(process, sampling, done=done)
    from sfumato.diffusion.solvers.flow import FlowSolver

    if scheduler is not None:
        check_settings(scheduler, sampler_of(sampling.sampler, process))
    shift = 1.0 if scheduler is None else scheduler.config["shift"]
    return FlowSolver(process, sampling, shift, done=done)


def steps_done(steps: int, strength: float, *, student: bool = False) -> int:
    """How many of `steps` are done from an image: the last int(steps * strength), as in diffusers'
    `StableDiffusionImg2ImgPipeline`. `InputError` for a strength out of range or no step;
    `student`: whether the number of steps is fixed."""
    if not 0 < strength <= 1:
        raise InputError(
            f"strength is {strength:g}.",
            hint="Give more than 0, where the image stays, and at most 1, where it is all new.",
        )
    done = int(steps * strength)
    if done == 0 and student and steps == 1:
        raise InputError(
            "A student of one step cannot start from an image: its step makes all of it anew.",
            hint="Sample a student of more steps, or the teacher.",
        )
    if done == 0:
        others = "sample the teacher" if student else "more steps"
        raise InputError(
            f"At a strength of {strength:g}, none of {steps} steps are done.",
            hint="The steps that are done are strength * steps, rounded down: give at least "
            f"{math.ceil(1000 / steps) / 1000:g}, or {others}.",
        )
    return done
