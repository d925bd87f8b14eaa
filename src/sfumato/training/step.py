"""What every training step shares: its random numbers, its checks, its end."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from sfumato.base.errors import TrainingError
from sfumato.base.randomness import derived_seed, generator_for
from sfumato.config.sections import OptimizerConfig
from sfumato.data.loading import Batch
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
        return values[self.rank :: self.world_size].to(self.device)

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
        """One optimizer step. Returns 0-d tensors for the log; raises `TrainingError`."""
        ...


def finish_step(
    parameters: Sequence[torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    config: OptimizerConfig,
    loss: Tensor,
    context: StepContext,
) -> dict[str, Tensor]:
    """Check that loss and gradients are finite, clip, set the rate, step."""
    limit = float("inf") if config.max_grad_norm is None else config.max_grad_norm
    grad_norm = torch.nn.utils.clip_grad_norm_(parameters, limit, foreach=True)
    if not bool(torch.isfinite(loss + grad_norm)):
        raise TrainingError(
            f"The loss is no longer finite after {context.images_seen:,} images (loss "
            f"{float(loss):g}, gradient norm {float(grad_norm):g}); no weight was changed by it.",
            hint="A checkpoint, if there is one, is good. Lower training.optimizer.lr in a new "
            "folder; training.optimizer.max_grad_norm=1 and training.precision=float32 help too.",
        )
    rate = learning_rate(config, images_seen=context.images_seen, total_images=context.total_images)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return {"loss": loss, "grad_norm": grad_norm, "lr": torch.tensor(rate, dtype=torch.float64)}


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
    or () bool, allows to be mirrored are."""
    generator = context.generator("augmentation")
    maps = context.local(random_affine(context.batch_size, generator, size=size))
    flips = _halves(context, generator)
    flips &= mirrored.to(flips.device)
    maps[flips, :, 0] *= -1
    return maps


def random_flips(context: StepContext) -> Tensor:
    """(B,) bool: which of this rank's images are mirrored, each with chance 1/2."""
    return _halves(context, context.generator("mirrored"))


def random_shifts(context: StepContext, most: int) -> Tensor:
    """(B, 2): by how many whole pixels this rank's images are shifted, from -most to most."""
    generator = context.generator("shift")
    return context.local(
        torch.randint(-most, most + 1, (context.batch_size, 2), generator=generator)
    )


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
