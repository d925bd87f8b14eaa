"""The objective of a student: its x0 at each of its levels is the one that leads to where its
teacher's trajectory is at the next."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sfumato.base.device import to_device
from sfumato.base.errors import InputError
from sfumato.data.loading import Batch, IndexedOrder, SampleOrder
from sfumato.data.trajectories import Trajectories, places_of, student_times
from sfumato.diffusion.process import Process, VariancePreserving
from sfumato.diffusion.solvers.schedulers import LEAST_ALPHA_BAR
from sfumato.text.prompts import PromptBank
from sfumato.training.features import FeatureDistance
from sfumato.training.objectives.diffusion import DiffusionObjective
from sfumato.training.step import StepContext


@dataclass(frozen=True, kw_only=True)
class Levels:
    """The N levels of a student as tensors on its device, and the image at the end.

    `times`: (N,) times of the process; `a`, `s`: (N + 1,) float32, 1 and 0 at the end; `states`:
    (N + 1,) int64, which states of a trajectory lie at these levels, the image last.
    """

    times: Tensor
    a: Tensor
    s: Tensor
    states: Tensor

    @staticmethod
    def of(process: Process, nfe: int, *, levels: int, device: torch.device) -> "Levels":
        """The levels of a student of `nfe` steps on trajectories of `levels` levels. `InputError`
        where these do not pass them."""
        states = [*places_of(process, nfe, levels=levels), levels]
        times = student_times(process, nfe)
        a, s = process.scales(times)
        if isinstance(process, VariancePreserving):  # as the sampler of the student steps
            a = a.clamp_min(LEAST_ALPHA_BAR**0.5)
            s = (1 - a.square()).sqrt()
        a, s = a.float(), s.float()
        return Levels(
            times=times.to(device),
            a=torch.cat([a, torch.ones(1)]).to(device),
            s=torch.cat([s, torch.zeros(1)]).to(device),
            states=torch.tensor(states, device=device),
        )


def ideal_x0(
    x_t: Tensor, x_r: Tensor, a: tuple[Tensor, Tensor], s: tuple[Tensor, Tensor]
) -> Tensor:
    """The x0 with which one step of DDIM leads from x_t to x_r: (B, C, H, W).

    x_r = a_r x0 + (s_r / s_t) (x_t - a_t x0), solved for x0; `a`, `s`: those of t and of r, (B,).
    At the image it is x_r itself.
    """
    (a_t, a_r), (s_t, s_r) = ([one[:, None, None, None] for one in pair] for pair in (a, s))
    ratio = s_r / s_t
    return (x_r - ratio * x_t) / (a_r - a_t * ratio)


def random_levels(count: int, levels: int, generator: torch.Generator) -> Tensor:
    """(count,) int64 in random order: each of `levels` with the same chance, and equally often
    where their number divides `count`, so that gradients vary less than by independent draws."""
    rounds = -(-count // levels)
    return torch.randperm(rounds * levels, generator=generator)[:count] % levels


class DistillationObjective(DiffusionObjective):
    """Trajectory distillation with guidance folded in: a batch's images are states of the teacher's
    trajectories, (B, K + 1, C, H, W)."""

    def __init__(
        self,
        *arguments: Any,
        levels: Levels,
        features: FeatureDistance | None,
        features_weight: float,
        scales: Tensor | None = None,
        **keywords: Any,
    ) -> None:
        """`scales`: the embedding of w of each trajectory (N, D), for a network that takes one."""
        super().__init__(*arguments, **keywords)
        self.scales = scales
        self.levels = levels
        self.features = features
        self.features_weight = features_weight

    def inputs(self, batch: Batch, context: StepContext) -> tuple[Tensor, ...]:
        """What `loss` takes: x_t and the x0 to be learned (B, C, H, W), and (B,) the number of the
        level, the row of the bank, the number of the trajectory."""
        drawn = random_levels(
            context.batch_size, len(self.levels.times), context.generator("levels")
        )
        return self.at_levels(batch, context.local(drawn))

    def at_levels(self, batch: Batch, level: Tensor) -> tuple[Tensor, ...]:
        """The inputs of `loss` where image i is at level `level[i]`."""
        rows, places = torch.arange(len(level), device=level.device), self.levels.states
        states = batch.images.to(self.dtype)
        x_t, x_r = states[rows, places[level]], states[rows, places[level + 1]]
        a, s = self.levels.a, self.levels.s
        target = ideal_x0(x_t, x_r, (a[level], a[level + 1]), (s[level], s[level + 1]))
        return x_t, target, level, batch.prompts, batch.labels

    def loss(
        self,
        *inputs: Tensor,
        network: torch.nn.Module | None = None,
    ) -> Tensor:
        """Of each image (B,): squared error of x0, and the weighted distance of features; of what
        `inputs` gives."""
        x_t, target, level, prompts, trajectories = inputs
        scale = None if self.scales is None else self.scales[trajectories]
        times = self.levels.times[level]
        output = self.output(x_t, times, prompts, network or self.network, scale=scale)
        found = self.process.x0(output.to(x_t), x_t, times)
        error = (found - target).square().flatten(1).mean(1)
        if self.features is None:
            return error
        return error + self.features_weight * self.features(found, target)

    @torch.no_grad()
    def held_out_loss(self, batches: Sequence[Batch]) -> float:
        """Mean loss of the averaged network on every level of trajectories."""
        total, count = 0.0, 0
        for batch in batches:
            for number in range(len(self.levels.times)):
                level = torch.full((len(batch.labels),), number, device=batch.labels.device)
                losses = self.loss(*self.at_levels(batch, level), network=self.average.module)
                total, count = total + float(losses.sum()), count + len(losses)
        return total / count


class TrajectoryBatches:
    """Batches of trajectories: `images` are their states (B, K + 1, C, H, W) float16, `labels`
    their numbers. The first of them are trained on, `held_out` are not."""

    def __init__(
        self,
        trajectories: Trajectories,
        bank: PromptBank,
        *,
        held_out: float,
        seed: int,
        batch_size: int,
        device: torch.device,
    ) -> None:
        self.trained = len(trajectories) - round(held_out * len(trajectories))
        if self.trained < 1:
            raise InputError(
                f"distillation.held_out={held_out:g} leaves none of {len(trajectories)} "
                "trajectories to train on.",
                hint="Set a smaller share, such as 0.1.",
            )
        self.order: IndexedOrder = SampleOrder(self.trained, seed=seed)
        self.batch_size = batch_size
        self._states = trajectories.states
        self._prompts = bank.index(trajectories.captions).cpu()[trajectories.rows]
        self._device = device

    def at(self, images_seen: int) -> Batch:
        return self.of(self.order.indices(images_seen, self.batch_size))

    def held_out(self) -> list[Batch]:
        """What is not trained on, in batches; none where all are trained on."""
        rows = torch.arange(self.trained, len(self._states))
        return [self.of(part) for part in rows.split(self.batch_size) if len(part)]

    def of(self, rows: Tensor) -> Batch:
        """The trajectories `rows` (B,)."""
        return Batch(
            images=to_device(self._states[rows], self._device),
            labels=to_device(rows, self._device),
            prompts=to_device(self._prompts[rows], self._device),
        )
