"""The denoising loop over a scheduler object of the diffusers interface.

Every network output becomes x0; guidance and clamping act there; the scheduler (configured with
`prediction_type="sample"` and without clipping of its own) gets consistent values.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from sfumato.base.section import ValueRange
from sfumato.diffusion.guidance import Branch, Guidance
from sfumato.diffusion.schedule import NoiseSchedule, PredictionType
from sfumato.diffusion.targets import predicted_x0


class Network(Protocol):
    """(x_t (B, C, H, W), t (B,), tokens (B, L, D)) -> output (B, C, H, W)."""

    def __call__(self, x_t: Tensor, t: Tensor, tokens: Tensor, /) -> Tensor: ...


class Scheduler(Protocol):
    """What the loop needs of a diffusers scheduler."""

    timesteps: Any

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, **kwargs: Any) -> Any: ...
    def scale_model_input(self, sample: Tensor, timestep: Any) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Step:
    """What `on_step` is told: step `index` (from 0) of `count`, x_t after it, the guided x0."""

    index: int
    count: int
    t: int
    x_t: Tensor
    x0: Tensor


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """`x0`: (B, C, H, W) float in the value range; `calls`: network evaluations an image."""

    x0: Tensor
    calls: int


def initial_noise(shape: tuple[int, int, int], generators: Sequence[torch.Generator]) -> Tensor:
    """Standard normal noise (B, C, H, W), one CPU generator an image.

    Equal to what diffusers' `randn_tensor` draws for the same list of generators.
    """
    return torch.cat([torch.randn(1, *shape, generator=generator) for generator in generators])


def in_fixed_rows(network: Network, rows: int) -> Network:
    """The same network, evaluated in calls of exactly `rows` images.

    On a CPU the last bits of a matrix product depend on the number of its rows. With calls of one
    size (the last one filled up by repeating its last row) an image has the same bits whatever
    else is in the batch. Measured, not assumed: see tests/test_sampling.py.
    """

    def call(x_t: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        outputs = []
        for start in range(0, len(x_t), rows):
            parts = [part[start : start + rows] for part in (x_t, t, tokens)]
            count = len(parts[0])
            if count < rows:
                parts = [torch.cat([p, p[-1:].expand(rows - count, *p.shape[1:])]) for p in parts]
            outputs.append(network(*parts)[:count])
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    return call


def branch_outputs(
    networks: Mapping[Branch, Network | None],
    x_t: Tensor,
    t: Tensor,
    tokens: Mapping[Branch, Tensor],
) -> dict[Branch, Tensor]:
    """Float output (B, C, H, W) of each branch in `tokens`; those of one network share a call."""
    outputs: dict[Branch, Tensor] = {}
    for network in dict.fromkeys(networks[branch] for branch in tokens):
        assert network is not None, "this guidance needs a weak network"
        branches: list[Branch] = [b for b in tokens if networks[b] is network]
        joined = network(
            torch.cat([x_t] * len(branches)),
            t.repeat(len(branches)),
            torch.cat([tokens[branch] for branch in branches]),
        ).float()
        outputs.update(zip(branches, joined.split(len(x_t)), strict=True))
    return outputs


def sample(
    network: Network,
    scheduler: Scheduler,
    *,
    schedule: NoiseSchedule,
    prediction_type: PredictionType,
    noise: Tensor,
    tokens: dict[Branch, Tensor],
    guidance: Guidance,
    weak_network: Network | None = None,
    value_range: ValueRange | None,
    step_kwargs: dict[str, Any] | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Sampled:
    """Turn noise into images.

    `noise`: (B, C, H, W) standard normal; `tokens`: (B, L, D) for each branch the guidance needs;
    `weak_network`: of a guidance with the branch `weak`;
    `scheduler`: timesteps set, `prediction_type="sample"`; `value_range`: x0 is clamped to it at
    every step, None for no clamping; `step_kwargs` go to `scheduler.step` (a list of generators
    for the samplers that draw noise).
    """
    x_t = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    memory: dict[str, Tensor] = {}
    calls = 0
    x0 = x_t
    for index, t in enumerate(scheduler.timesteps):
        model_input = scheduler.scale_model_input(x_t, t)
        times = t.to(x_t.device).expand(len(x_t))
        branches = guidance.branches(float(schedule.sigma(t)))
        outputs = branch_outputs(
            {"cond": network, "uncond": network, "weak": weak_network},
            model_input,
            times,
            {branch: tokens[branch] for branch in branches},
        )
        x0 = guidance.combine(
            {
                branch: predicted_x0(
                    output, model_input, times, schedule=schedule, prediction_type=prediction_type
                )
                for branch, output in outputs.items()
            },
            memory,
        )
        if value_range is not None:
            x0 = x0.clamp(*value_range)
        x_t = scheduler.step(x0, t, x_t, return_dict=False, **(step_kwargs or {}))[0]
        calls += len(branches)
        if on_step is not None:
            on_step(Step(index=index, count=len(scheduler.timesteps), t=int(t), x_t=x_t, x0=x0))
    return Sampled(x0=x_t if value_range is None else x_t.clamp(*value_range), calls=calls)
