"""The training loop, to be read from top to bottom.

The clock counts images. One step takes one global batch; what a step does belongs to the
objective, everything beside it to the hooks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from sfumato.base.errors import ConfigError
from sfumato.base.stages import stage
from sfumato.data.loading import Batch, Order
from sfumato.training.checkpoint import (
    Checkpoint,
    Checkpoints,
    load_part,
    warn_of_changed_environment,
)
from sfumato.training.distributed import ALONE, World
from sfumato.training.state import Stateful
from sfumato.training.step import Objective, StepContext, StepMetrics

STOP = "stop"
"""The metric by which ranks agree to stop: how many of them were asked to, as a share."""


class Batches(Protocol):
    """A source of batches whose order is a function of the position alone."""

    batch_size: int

    @property
    def order(self) -> Order: ...

    def at(self, images_seen: int) -> Batch: ...


class Hook(Protocol):
    """Something beside the training: it may read the run, never change its numbers.

    Reading a value of `metrics` waits for the step that has just been queued. Rank 0 has all hooks;
    the other ranks have those with `needs_weights` where weights are divided among ranks, and they
    write nothing.
    """

    needs_weights: bool

    def after_step(self, run: "Run", metrics: Mapping[str, float]) -> None: ...
    def at_end(self, run: "Run") -> None: ...
    def state(self) -> dict[str, Any]: ...
    def load_state(self, state: dict[str, Any]) -> None: ...


@dataclass(kw_only=True)
class Run:
    """One training run: what it trains, on what, and where its clock stands.

    `provenance` goes into checkpoints, and a run is not resumed with another one; so do `notes`,
    which may change.
    """

    folder: Path
    objective: Objective
    batches: Batches
    seed: int
    total_images: int
    device: torch.device
    micro_batches: int = 1
    keep_checkpoints: int = 2
    milestones: frozenset[int] = frozenset()
    provenance: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    hooks: Sequence[Hook] = ()
    world: World = ALONE
    images_seen: int = 0
    step: int = 0
    stop_requested: bool = False
    watch: Callable[[], Mapping[str, float]] | None = None
    """What is measured every `watch_every_images`, into the next line of metrics.jsonl."""
    watch_every_images: int = 1
    ended_early: bool = False
    """Whether a hook found that more training makes it no better."""
    checked: StepMetrics | None = None
    """The newest step known to be finite."""
    _queued: StepMetrics | None = None
    _newest: StepMetrics | None = None
    _stop_agreed: bool = False

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(
            self.folder / "checkpoints", keep=self.keep_checkpoints, pinned=self.milestones
        )

    @property
    def finished(self) -> bool:
        return self.ended_early or self.images_seen >= self.total_images

    @property
    def stopping(self) -> bool:
        """Whether a stop was requested, on any rank; all ranks see it after the same step."""
        return self.stop_requested if self.world.size == 1 else self._stop_agreed

    def context(self) -> StepContext:
        return StepContext(
            seed=self.seed,
            images_seen=self.images_seen,
            total_images=self.total_images,
            batch_size=self.batches.batch_size,
            device=self.device,
            rank=self.world.rank,
            world_size=self.world.size,
            micro_batches=self.micro_batches,
        )

    def due(self, every_images: int) -> bool:
        """Whether the last step was the first at or after a multiple of `every_images`."""
        before = self.images_seen - self.batches.batch_size
        return self.images_seen // every_images > before // every_images

    def take_step(self) -> StepMetrics:
        """Queue one step and move the clock; the step before it is checked.

        A GPU is one step behind the host, so it never waits for the host to read a number; nor does
        a rank for the numbers of the others. On one CPU the step is checked at once.
        """
        with stage("data"):
            batch = self.batches.at(self.images_seen)
        found = self.objective.step(batch, self.context())
        if self.world.size > 1:
            found = {**found, STOP: torch.tensor(float(self.stop_requested))}
        self.check()
        before = self._newest
        metrics = StepMetrics(found, images_seen=self.images_seen, world=self.world)
        self._queued = self._newest = metrics
        if self.world.size > 1:
            # Not by the newest step that was checked: the hooks of rank 0 check earlier.
            self._stop_agreed = before is not None and before[STOP] > 0
        elif self.device.type == "cpu":
            self.check()
        self.images_seen += self.batches.batch_size
        self.step += 1
        return metrics

    def check(self) -> None:
        """Wait for the steps that are queued; `TrainingError` where one is not finite."""
        if self._queued is not None:
            self._queued.check()
            self.checked, self._queued = self._queued, None

    def save(self) -> None:
        """Write a checkpoint of this moment, on rank 0."""
        self.check()
        states = self.world.states(self.objective.parts())
        if not self.world.is_main:
            return
        self.checkpoints.save(
            states,
            images_seen=self.images_seen,
            extra={
                "step": self.step,
                "ended_early": self.ended_early,
                "device": self.device.type,
                "processes": self.world.size,
                "position": asdict(self.batches.order.position(self.images_seen)),
                "hooks": {type(hook).__name__: hook.state() for hook in self.hooks},
                **self.provenance,
                **self.notes,
            },
        )

    def resume(self) -> bool:
        """Go back to the newest whole checkpoint; False if there is none. Rank 0 reads it."""
        parts, device = self.objective.parts(), self.device
        clock, states = self._read_newest(parts) if self.world.is_main else (None, {})
        if self.world.size > 1:
            clock = self.world.share({"clock": clock}, device)["clock"]
        if clock is None:
            return False
        folder = self.checkpoints.path(clock["images_seen"])
        for name, part in parts.items():
            state = self.world.own_state(part, states.pop(name, None), device)
            load_part(part, state, file=folder / f"{name}.safetensors")
        for hook in self.hooks:
            hook.load_state(clock["hooks"].get(type(hook).__name__, {}))
        self.images_seen, self.step = clock["images_seen"], clock["step"]
        self.ended_early = clock["ended_early"]
        return True

    def _read_newest(
        self, parts: Mapping[str, Stateful]
    ) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        """The clock and the states of the newest whole checkpoint; None without one."""
        checkpoint = self.checkpoints.latest()
        if checkpoint is None:
            return None, {}
        self._check_provenance(checkpoint)
        self.checkpoints.remove_old(before=checkpoint.path)  # a kill may have come before that
        if checkpoint.images_seen < self.total_images:
            warn_of_changed_environment(checkpoint.state["environment"])
        names = ("images_seen", "step", "hooks", "ended_early")
        clock = {name: checkpoint.state.get(name, False) for name in names}
        return clock, checkpoint.states(parts)

    def _check_provenance(self, checkpoint: Checkpoint) -> None:
        """A run is resumed with the text encoder it began with, since another has other tokens, and
        a student with its trajectories."""
        for name, value in self.provenance.items():
            recorded = checkpoint.state.get(name, value)
            if recorded != value:
                raise ConfigError(
                    f"{self.folder} was trained with the {name.replace('_', ' ')} '{recorded}', "
                    f"but '{value}' was loaded.",
                    hint="Resume it with what it was trained with, or choose another --out.",
                )


def train(run: Run) -> None:
    """Train until the run is finished or asked to stop.

    Interrupted anywhere and started again, it ends with the same bits: data, noise and dropped
    captions are functions of (seed, images seen), the rest is in the checkpoint.
    """
    while not run.finished and not run.stopping:
        metrics = run.take_step()
        for hook in run.hooks:
            hook.after_step(run, metrics)
    run.check()
    for hook in run.hooks:
        hook.at_end(run)
