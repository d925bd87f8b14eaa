"""What differs between methods: an objective owns networks, optimizers and one training step."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol

import torch
from torch import Tensor

from sfumato.base.errors import TrainingError
from sfumato.base.images import to_float
from sfumato.base.randomness import derived_seed, generator_for
from sfumato.base.section import ValueRange
from sfumato.data.loading import Batch
from sfumato.diffusion.schedule import DiffusionConfig, NoiseSchedule
from sfumato.diffusion.targets import LOSS_WEIGHTS, LossWeight, training_target
from sfumato.models.attention import speed_up_on_cpu
from sfumato.models.ema import AveragingConfig, averages_of
from sfumato.text.prompts import PromptBank
from sfumato.training.optimizer import OptimizerConfig, build_optimizer, learning_rate
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
            mend="A checkpoint, if there is one, is good. Lower training.optimizer.lr in a new "
            "folder; training.optimizer.max_grad_norm=1 and training.precision=float32 help too.",
        )
    rate = learning_rate(config, images_seen=context.images_seen, total_images=context.total_images)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return {"loss": loss, "grad_norm": grad_norm, "lr": torch.tensor(rate, dtype=torch.float64)}


class DiffusionObjective:
    """Text-conditional denoising, Section 3.2.4 of the paper, steps 1 to 7."""

    def __init__(
        self,
        unet: torch.nn.Module,
        bank: PromptBank,
        *,
        diffusion: DiffusionConfig,
        optimizer: OptimizerConfig,
        averaging: AveragingConfig,
        value_range: ValueRange,
        caption_dropout: float,
        mirrored: bool = False,
        loss_weight: LossWeight = "uniform",
        min_snr_gamma: float = 5.0,
        precision: Literal["float32", "bfloat16"],
    ) -> None:
        self.unet = unet.train()
        self.parameters = list(unet.parameters())
        self.bank = bank
        self.schedule = NoiseSchedule.from_config(diffusion)
        self.diffusion = diffusion
        self.averages = averages_of(unet, averaging)
        self.average = self.averages["average"]
        speed_up_on_cpu(self.unet)  # after the averages, which draw
        self.optimizer_config = optimizer
        self.optimizer = build_optimizer(optimizer, unet)
        self.value_range = value_range
        self.caption_dropout = caption_dropout
        self.mirrored = mirrored
        self.loss_weight = loss_weight
        self.min_snr_gamma = min_snr_gamma
        self.precision = precision
        self.has_dropout = has_dropout(unet)

    def parts(self) -> dict[str, Stateful]:
        averages = {name: average.module for name, average in self.averages.items()}
        return {"unet": self.unet, **averages, "optimizer": self.optimizer}

    def step(self, batch: Batch, context: StepContext) -> dict[str, Tensor]:
        draws = draw_step(
            batch.images.shape[1:],
            context,
            num_train_timesteps=self.schedule.num_train_timesteps,
            caption_dropout=self.caption_dropout,
        )
        prompts = batch.prompts.masked_fill(draws.dropped, PromptBank.NULL_INDEX)
        x0 = to_float(batch.images, self.value_range)
        if self.mirrored:
            flips = random_flips(context)[:, None, None, None]
            x0 = torch.where(flips, x0.flip(3), x0)

        self.optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=context.device)
        for index, part in enumerate(context.parts()):
            share = (part.stop - part.start) / len(x0)
            with seeded_layers(context, micro_batch=index, needed=self.has_dropout):
                losses = self.loss(x0[part], draws.eps[part], draws.t[part], prompts[part])
            part_loss = losses.mean() * share
            part_loss.backward()
            loss += part_loss.detach()
        metrics = finish_step(self.parameters, self.optimizer, self.optimizer_config, loss, context)
        for average in self.averages.values():
            average.update(
                images_seen=context.images_seen + context.batch_size,
                batch_size=context.batch_size,
            )
        return metrics

    def loss(
        self,
        x0: Tensor,
        eps: Tensor,
        t: Tensor,
        prompts: Tensor,
        *,
        network: torch.nn.Module | None = None,
    ) -> Tensor:
        """Weighted mean squared error of the network's output for each image: (B,). `network`:
        another than the one in training, such as an average."""
        x_t = self.schedule.add_noise(x0, eps, t)
        target = training_target(
            x0, eps, t, schedule=self.schedule, prediction_type=self.diffusion.prediction_type
        )
        with torch.autocast(x0.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            output = (network or self.unet)(x_t, t, self.bank.tokens(prompts), return_dict=False)[0]
        weight = LOSS_WEIGHTS[self.loss_weight](
            self.schedule.snr(t), self.diffusion.prediction_type, self.min_snr_gamma
        )
        error = (output.float() - target).square().flatten(1).mean(1)
        return error * weight.to(error)


@dataclass(frozen=True, kw_only=True)
class Draws:
    """One rank's random numbers of a step: `eps` (B, C, H, W); `t` (B,); `dropped` (B,) bool."""

    eps: Tensor
    t: Tensor
    dropped: Tensor


def draw_step(
    image_shape: tuple[int, ...],
    context: StepContext,
    *,
    num_train_timesteps: int,
    caption_dropout: float,
) -> Draws:
    """Noise, timesteps and dropped captions of this rank's rows, drawn for the global batch.

    `image_shape`: (C, H, W). A function of (seed, images seen, purpose) alone, so the same on any
    number of ranks.
    """
    count = context.batch_size
    return Draws(
        eps=context.local(torch.randn((count, *image_shape), generator=context.generator("noise"))),
        t=context.local(
            torch.randint(num_train_timesteps, (count,), generator=context.generator("timesteps"))
        ),
        dropped=context.local(
            dropped_captions(caption_dropout, count, context.generator("dropout"))
        ),
    )


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
