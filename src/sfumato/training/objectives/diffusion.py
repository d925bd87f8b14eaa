"""What differs between methods: an objective owns networks, optimizers and one training step."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sfumato.base.images import to_float
from sfumato.base.section import ValueRange
from sfumato.config.sections import AveragingConfig, OptimizerConfig
from sfumato.data.loading import Batch
from sfumato.diffusion.schedule import DiffusionConfig, NoiseSchedule
from sfumato.diffusion.targets import LOSS_WEIGHTS, LossWeight, training_target
from sfumato.models.attention import speed_up_on_cpu
from sfumato.models.ema import averages_of
from sfumato.text.prompts import PromptBank
from sfumato.training.optimizer import build_optimizer
from sfumato.training.state import Stateful
from sfumato.training.step import (
    StepContext,
    dropped_captions,
    finish_step,
    has_dropout,
    random_flips,
    seeded_layers,
)


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
