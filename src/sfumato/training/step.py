"""What every training step shares: its random numbers, its end, its metrics.

Nothing here makes the host wait for the device: a step is queued, and its metrics are read when
they have arrived (`StepMetrics`).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from sfumato.base.device import to_device
from sfumato.base.errors import TrainingError
from sfumato.base.randomness import derived_seed, generator_for
from sfumato.base.stages import stage
from sfumato.base.words import counted
from sfumato.config.sections import OptimizerConfig
from sfumato.data.loading import Batch
from sfumato.models.ema import AveragedModel
from sfumato.training.distributed import ALONE, World
from sfumato.training.optimizer import learning_rate
from sfumato.training.state import Stateful


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """Where a step stands. Everything random in it is a function of (seed, images_seen, purpose).

    Draws are made for the global batch on a CPU generator and then sliced, so they do not depend
    on the device, the number of ranks or the number of micro-batches.
    """

    seed: int
    images_seen: int
    total_images: int
    batch_size: int
    device: torch.device
    rank: int = 0
    world_size: int = 1
    micro_batches: int = 1

    def generator(self, purpose: str) -> torch.Generator:
        return generator_for(self.seed, self.images_seen, purpose)

    def local(self, values: Tensor) -> Tensor:
        """This rank's rows of a tensor drawn for the global batch, on the device: every
        `world_size`-th, as the canonical streams of a streamed data set are shared."""
        return to_device(values[self.rank :: self.world_size], self.device)

    def parts(self) -> Iterator[slice]:
        """The micro-batches of this rank's rows, as slices."""
        size = self.batch_size // self.world_size
        edges = [size * index // self.micro_batches for index in range(self.micro_batches + 1)]
        return (slice(start, stop) for start, stop in pairwise(edges))


class Objective(Protocol):
    """The loop never changes; a new method is a new objective."""

    def parts(self) -> dict[str, Stateful]:
        """Networks, optimizers and averages by name: what a checkpoint holds."""
        ...

    def step(self, batch: Batch, context: StepContext) -> dict[str, Tensor]:
        """Queue one optimizer step. Returns 0-d tensors for the log, `loss` and `grad_norm` among
        them; the host waits for none of them."""
        ...


def finish_step(
    parameters: Sequence[torch.nn.Parameter],
    optimizer: torch.optim.AdamW,
    config: OptimizerConfig,
    loss: Tensor,
    context: StepContext,
    averages: Iterable[AveragedModel] = (),
) -> dict[str, Tensor]:
    """Clip, set the rate, step, average. Where loss or gradients are not finite, no trained weight,
    no optimizer state and no average changes; `StepMetrics.check` then raises."""
    size = context.batch_size
    with stage("optimizer"):
        metrics, finite = _optimize(parameters, optimizer, config, loss, context)
    with stage("averages"):
        for average in averages:
            average.update(images_seen=context.images_seen + size, batch_size=size, finite=finite)
    return metrics


def _optimize(
    parameters: Sequence[torch.nn.Parameter],
    optimizer: torch.optim.AdamW,
    config: OptimizerConfig,
    loss: Tensor,
    context: StepContext,
) -> tuple[dict[str, Tensor], Tensor]:
    """The metrics of the step, and whether it was finite (0-d bool)."""
    limit = float("inf") if config.max_grad_norm is None else config.max_grad_norm
    grad_norm = torch.nn.utils.clip_grad_norm_(parameters, limit, foreach=True)
    if hasattr(grad_norm, "full_tensor"):  # a DTensor, where weights are divided among ranks
        grad_norm = grad_norm.full_tensor()  # pyright: ignore
    rate = learning_rate(config, images_seen=context.images_seen, total_images=context.total_images)
    for group in optimizer.param_groups:
        group["lr"] = rate
    # Fused AdamW skips a step by this flag on the device: the host need not read it first.
    # Ranks have the same gradients, but each its own loss: they must skip a step together.
    finite = torch.isfinite(grad_norm if context.world_size > 1 else loss + grad_norm)
    optimizer.found_inf = finite.logical_not().float()  # pyright: ignore
    optimizer.step()
    lr = torch.tensor(rate, dtype=torch.float64)
    return {"loss": loss, "grad_norm": grad_norm, "lr": lr}, finite


class StepMetrics(Mapping[str, float]):
    """The metrics of one step, averaged over ranks and copied to the host in the background.

    Reading a value waits for the step that it belongs to and for nothing queued after it.
    """

    def __init__(
        self, values: Mapping[str, Tensor], *, images_seen: int, world: World = ALONE
    ) -> None:
        """`values`: this rank's, 0-d tensors; `images_seen`: before the step."""
        self.images_seen = images_seen
        self._names = list(values)
        device = values["loss"].device
        stacked = torch.stack([to_device(value.double(), device) for value in values.values()])
        self._wait: Callable[[], object] | None = world.begin_mean(stacked)
        if stacked.device.type == "cuda":
            self._wait()
            self._host = torch.empty(len(stacked), dtype=torch.float64, pin_memory=True)
            self._host.copy_(stacked, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record(torch.cuda.current_stream(stacked.device))
            self._wait = arrived.synchronize
        else:
            self._host = stacked.cpu()

    def _values(self) -> dict[str, float]:
        if self._wait is not None:
            self._wait()
            self._wait = None
        return dict(zip(self._names, self._host.tolist(), strict=True))

    def __getitem__(self, name: str) -> float:
        return self._values()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def check(self) -> None:
        """`TrainingError` where loss or gradients are not finite."""
        values = self._values()
        loss, grad_norm = values["loss"], values["grad_norm"]
        if math.isfinite(loss + grad_norm):
            return
        raise TrainingError(
            f"The loss is no longer finite after {counted(self.images_seen, 'image')} (loss "
            f"{loss:g}, gradient norm {grad_norm:g}); no weight was changed by it.",
            hint="A checkpoint, if there is one, is good. Lower training.optimizer.lr in a new "
            "folder; training.optimizer.max_grad_norm=1 and training.precision=float32 help too.",
        )


T = TypeVar("T")


class Ahead(Generic[T]):
    """What a step needs from the CPU, made during the step before it while the GPU computes.

    `make` is a function of the context alone, so its values are the same either way.
    """

    def __init__(self, make: Callable[[StepContext], T]) -> None:
        self._make = make
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self._next: tuple[StepContext, Future[T]] | None = None

    def at(self, context: StepContext) -> T:
        if not self._is_ahead(context.device):
            return self._make(context)
        ready = self._next is not None and self._next[0] == context
        made = self._next[1].result() if ready and self._next else self._make(context)
        following = replace(context, images_seen=context.images_seen + context.batch_size)
        self._next = following, self._thread.submit(self._make, following)
        return made

    @staticmethod
    def _is_ahead(device: torch.device) -> bool:
        """Whether the CPU is free while `device` computes."""
        return device.type == "cuda"


def dropped_captions(rate: float, count: int, generator: torch.Generator) -> Tensor:
    """(count,) bool: which captions are replaced by the null prompt, each with chance `rate`."""
    return torch.rand(count, generator=generator) < rate


def has_dropout(module: torch.nn.Module) -> bool:
    """Whether a layer of `module` draws random numbers in training."""
    return any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in module.modules())


@contextmanager
def seeded_layers(context: StepContext, *, micro_batch: int, needed: bool) -> Iterator[None]:
    """Inside, dropout layers draw by (seed, images seen, rank, micro-batch); the global generators
    are as before afterwards. Nothing happens where it is not `needed`.
    """
    if not needed:
        yield
        return
    seed = derived_seed(context.seed, context.images_seen, "layers", context.rank, micro_batch)
    cuda = context.device.type == "cuda"
    with torch.random.fork_rng(devices=[context.device] if cuda else []):
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(context.device):
                torch.cuda.manual_seed(seed)
        yield


def random_changes(context: StepContext, *, size: float, mirrored: Tensor) -> Tensor:
    """This rank's affine maps (B, 2, 3) near the identity. Half of the images that `mirrored`, (B,)
    or () bool on the device, allows to be mirrored are."""
    generator = context.generator("augmentation")
    maps = context.local(random_affine(context.batch_size, generator, size=size))
    flips = _halves(context, generator) & mirrored
    maps[:, :, 0] *= 1 - 2 * flips[:, None].to(maps)
    return maps


def random_flips(context: StepContext) -> Tensor:
    """(B,) bool: which of this rank's images are mirrored, each with chance 1/2."""
    return _halves(context, context.generator("mirrored"))


def random_shifts(context: StepContext, most: int, size: Sequence[int]) -> Tensor:
    """(B, 2): shifts of this rank's images of `size` (H, W) by whole pixels from -most to most, in
    the coordinates of affine maps, (x, y)."""
    generator = context.generator("shift")
    pixels = torch.randint(-most, most + 1, (context.batch_size, 2), generator=generator)
    height, width = size
    # 2 is the image's width in the maps' coordinates.
    return context.local(pixels * 2 / torch.tensor([width, height], dtype=torch.float32))


def _halves(context: StepContext, generator: torch.Generator) -> Tensor:
    return context.local(torch.rand(context.batch_size, generator=generator) < 0.5)


def random_affine(count: int, generator: torch.Generator, *, size: float = 0.1) -> Tensor:
    """(count, 2, 3) affine maps: the identity and normal noise with the deviation `size`.

    Of 0.1: scale and shear by 10 %, shift by 5 % of the image.
    """
    return torch.eye(2, 3) + torch.randn(count, 2, 3, generator=generator) * size


def warped(images: Tensor, maps: Tensor) -> Tensor:
    """`images` (B, C, H, W) seen through `maps` (B, 2, 3), edges repeated."""
    grid = torch.nn.functional.affine_grid(maps, list(images.shape), align_corners=False)
    return torch.nn.functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
