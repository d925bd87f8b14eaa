"""What a call asks for: prompts, negative prompts and seeds, one an image."""

import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from sfumato.base.errors import InputError
from sfumato.diffusion.guidance import parse_guidance
from sfumato.diffusion.process import Process
from sfumato.diffusion.solvers.registry import SAMPLERS, Sampling, sampler_of
from sfumato.text.encoder import NULL

_SAMPLE_TEACHER = (
    "Leave that out, or sample the teacher. Another student: `sfumato distil TEACHER --nfe N`."
)


def negative_prompts(given: str | Sequence[str | None] | None, count: int) -> list[str]:
    """`count` negative prompts from one or as many; None is the empty prompt. `InputError` for
    another number."""
    several = [given] if given is None or isinstance(given, str) else list(given)
    if len(several) == 1:
        several *= count
    if len(several) != count:
        raise InputError(
            f"{len(several)} negative prompts for {count} image{'s' * (count != 1)}.",
            hint="Give one for each prompt, or one for all.",
        )
    return [NULL if one is None else one for one in several]


def check_negative(sampling: Sampling, negative: str | Sequence[str | None] | None) -> None:
    """`InputError` for negative prompts that would not be followed: those of a student."""
    several = [negative] if negative is None or isinstance(negative, str) else negative
    if sampling.form.folded and any(several):
        raise InputError(
            "A distilled model takes no negative prompt: its guidance is in its weights.",
            hint=_SAMPLE_TEACHER,
        )


def check_weak(sampling: Sampling, weak_network: torch.nn.Module | None) -> None:
    """`InputError` where guidance leads away from a weaker network and there is none."""
    if sampling.form.needs_weak_network and weak_network is None:
        raise InputError(
            "This model has no weaker network, which autoguidance needs.",
            hint="Load the run that it came from, or export that with autoguidance set.",
        )


def changed_sampling(sampling: Sampling, changes: dict[str, Any]) -> Sampling:
    """`sampling` with `changes`; `InputError` for values out of range, and where one of two forms
    of guidance is in the weights of a student."""
    folded, form = sampling.form.folded, changes.get("guidance", sampling.guidance)
    if form != sampling.guidance and (folded or parse_guidance(form).folded):
        raise InputError(
            f"Guidance '{form}' is not available: the guidance of this model "
            + ("is in its weights." if folded else "is not in its weights."),
            hint=_SAMPLE_TEACHER if folded else "Leave --guidance-form out.",
        )
    try:
        return replace(sampling, **changes)
    except ValueError as error:
        hint = "guidance_scale: 1 is no guidance, 2 to 5 is usual. steps: 1 or more."
        raise InputError(f"{error}.", hint=_SAMPLE_TEACHER if folded else hint) from error


def paired(prompts: str | Sequence[str], seeds: Any) -> tuple[list[str], list[int]]:
    """As many prompts as seeds; `InputError` where they do not match or there are none."""
    one = isinstance(prompts, str) or not hasattr(prompts, "__iter__")
    several_prompts = [prompts] if one else list(prompts)
    several_seeds = seed_numbers(seeds)
    if not several_prompts or not several_seeds:
        what = "seed" if several_prompts else "prompt"
        raise InputError(f"There is no {what}.", hint="Give at least one.")
    if wrong := [prompt for prompt in several_prompts if not isinstance(prompt, str)]:
        raise InputError(f"Prompts are texts, not {wrong[0]!r}.", hint="Give strings.")
    count = max(len(several_prompts), len(several_seeds))
    if len(several_prompts) == 1:
        several_prompts *= count
    if len(several_seeds) == 1:
        several_seeds *= count
    if len(several_prompts) != len(several_seeds):
        raise InputError(
            f"{len(several_seeds)} seeds for {len(several_prompts)} prompts.",
            hint="Give one seed for each prompt, or one for all.",
        )
    return several_prompts, several_seeds


def seed_numbers(seeds: Any) -> list[int]:
    """Seeds as integers, from one or several of Python, numpy or torch; `InputError` for others."""
    several = [seeds] if not hasattr(seeds, "__iter__") or getattr(seeds, "ndim", 1) == 0 else seeds
    try:
        return [operator.index(seed) for seed in several]
    except TypeError as error:
        raise InputError(
            f"Seeds are whole numbers, not {seeds!r}.", hint="Give integers from 0 to 2**63 - 1."
        ) from error


def generators_from_seeds(seeds: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator a seed; `InputError` for a seed that torch cannot take."""
    for seed in seeds:
        if not 0 <= seed < 2**63:
            raise InputError(f"Seed {seed} is out of range.", hint="Give 0 to 2**63 - 1.")
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def ends_of(
    prompts: str | Sequence[str],
    seeds: Any,
    at: Sequence[float],
    sampler: str,
    process: Process,
) -> list[tuple[str, int]]:
    """The (prompt, seed) of both ends of an interpolation. `InputError` where there is no way
    between them by this sampler, or `at` does not lie on it."""
    ends = list(zip(*paired(prompts, seeds), strict=True))
    if len(ends) > 2:
        raise InputError(
            f"There are {len(ends)} prompts or seeds to interpolate between.",
            hint="Give two prompts, two seeds, or two of each.",
        )
    if len(at) == 0 or not all(0 <= f <= 1 for f in at):
        raise InputError(
            f"at={list(at)} is not on the way between two images.",
            hint="Give numbers from 0, the first prompt and seed, to 1, the last.",
        )
    (_, seed), (_, last_seed) = ends = ends if len(ends) == 2 else ends * 2
    if seed != last_seed and sampler_of(sampler, process).draws_noise:
        quiet = [name for name, one in SAMPLERS[process.process].items() if not one.draws_noise]
        raise InputError(
            f"{sampler} draws noise at every step, of one seed: there is none between two.",
            hint=f"Use {', '.join(quiet[:-1])} or {quiet[-1]}, or one seed for both prompts.",
        )
    return ends
