"""Text-conditional denoising: noise goes in, the network learns to tell it from the image."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sfumato.base.stages import stage
from sfumato.config.sections import TrainingConfig
from sfumato.data.latents import drawn
from sfumato.data.loading import Batch
from sfumato.diffusion.process import Process
from sfumato.models.codec import Codec
from sfumato.models.ema import averages_of
from sfumato.models.lora import AdapterPart
from sfumato.models.speed import speed_up
from sfumato.text.prompts import PromptBank
from sfumato.training.distributed import ALONE, World
from sfumato.training.optimizer import build_optimizer
from sfumato.training.state import Stateful
from sfumato.training.step import (
    Ahead,
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
        network: torch.nn.Module,
        process: Process,
        codec: Codec,
        bank: PromptBank,
        config: TrainingConfig,
        *,
        world: World = ALONE,
    ) -> None:
        self.network = network.train()
        self.dtype = next(network.parameters()).dtype
        self.process = process
        self.codec = codec
        self.bank = bank
        self.config = config
        self.averages = averages_of(network, config.averaging)
        self.average = self.averages["average"]
        speed_up(network, config.compile)  # after the averages, which sample
        if config.gradient_checkpointing:
            network.enable_gradient_checkpointing()  # pyright: ignore
        self.world = world
        self.parallel = world.wrap(network, [one.module for one in self.averages.values()])
        self.parameters = [weight for weight in network.parameters() if weight.requires_grad]
        self.draws = Ahead(self._draw)
        self.optimizer = build_optimizer(config.optimizer, network)
        self.has_dropout = has_dropout(network)

    def parts(self) -> dict[str, Stateful]:
        averages = {name: average.module for name, average in self.averages.items()}
        if self.config.lora is None:
            return {"unet": self.network, **averages, "optimizer": self.optimizer}
        adapters = {name: AdapterPart(one) for name, one in averages.items()}
        return {"adapter": AdapterPart(self.network), **adapters, "optimizer": self.optimizer}

    def step(self, batch: Batch, context: StepContext) -> dict[str, Tensor]:
        inputs = self.inputs(batch, context)
        self.optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=context.device)
        for index, part in enumerate(context.parts()):
            share = (part.stop - part.start) / len(batch.images)
            last = index == context.micro_batches - 1
            with (
                seeded_layers(context, micro_batch=index, needed=self.has_dropout),
                self.world.synchronised(self.parallel, last=last),
            ):
                losses = self.loss(*(one[part] for one in inputs), network=self.parallel)
                with stage("loss"):
                    part_loss = losses.mean() * share
                with stage("backward"):
                    part_loss.backward()
            loss += part_loss.detach()
        return finish_step(
            self.parameters,
            self.optimizer,
            self.config.optimizer,
            loss,
            context,
            self.averages.values(),
        )

    def inputs(self, batch: Batch, context: StepContext) -> tuple[Tensor, ...]:
        """What `loss` takes: x0 and eps (B, C, H, W), t (B,), rows of the bank (B,)."""
        with stage("noise"):
            draws = self.draws.at(context)
            x0 = self._encoded(batch.images, draws).to(self.dtype)
        with stage("dropout"):
            prompts = batch.prompts.masked_fill(draws.dropped, PromptBank.NULL_INDEX)
        return x0, draws.eps, draws.t, prompts

    def _encoded(self, images: Tensor, draws: "Draws") -> Tensor:
        """x0 of uint8 images, or of latents that were prepared: these need no codec."""
        if images.dtype != torch.uint8:
            return drawn(images, draws.flips, draws.posterior)
        if draws.flips is not None:  # of pixels: a latent's mirror image is another latent
            images = torch.where(draws.flips[:, None, None, None], images.flip(3), images)
        return self.codec.encode(images, draws.posterior)

    def _draw(self, context: StepContext) -> "Draws":
        network: Any = self.network.config
        size = network["sample_size"]
        return draw_step(
            (network["in_channels"], size, size),
            context,
            process=self.process,
            caption_dropout=self.config.caption_dropout,
            mirrored=self.config.mirrored,
            posterior=self.codec.samples,
        )

    def loss(self, *inputs: Tensor, network: torch.nn.Module | None = None) -> Tensor:
        """Weighted mean squared error of the network's output for each image: (B,), of what
        `inputs` gives. `network`: another than the one in training, such as an average."""
        x0, eps, t, prompts = inputs
        with stage("noise"):
            eps = eps.to(x0)
            x_t = self.process.add_noise(x0, eps, t)
        output = self.output(x_t, t, prompts, network or self.network)
        with stage("loss"):
            target = self.process.target(x0, eps, t)
            weight = self.process.loss_weight(t, self.config.loss_weight, self.config.min_snr_gamma)
            error = (output.to(target) - target).square().flatten(1).mean(1)
            return error * weight.to(error)

    def output(
        self,
        x_t: Tensor,
        t: Tensor,
        prompts: Tensor,
        network: torch.nn.Module,
        *,
        scale: Tensor | None = None,
    ) -> Tensor:
        """What the network says of x_t (B, C, H, W); `scale`: the embedding of w (B, D), where it
        takes one."""
        with stage("noise"):
            time, taken = self.process.network_time(t), self.process.network_input(x_t, t)
        with stage("text"):
            tokens = self.bank.tokens(prompts).to(x_t)
        more = {} if scale is None else {"timestep_cond": scale}
        mixed = self.config.precision == "bfloat16"
        with (
            stage("forward"),
            torch.autocast(x_t.device.type, torch.bfloat16, enabled=mixed),
        ):
            return network(taken, time, tokens, **more, return_dict=False)[0]


@dataclass(frozen=True, kw_only=True)
class Draws:
    """One rank's random numbers of a step: `eps` (B, C, H, W); `t` (B,); `dropped` (B,) bool;
    `flips` (B,) bool, which images are mirrored, None for none; `posterior` (B, C, H, W) for a
    codec that samples, else None."""

    eps: Tensor
    t: Tensor
    dropped: Tensor
    flips: Tensor | None
    posterior: Tensor | None = None


def draw_step(
    image_shape: tuple[int, ...],
    context: StepContext,
    *,
    process: Process,
    caption_dropout: float,
    mirrored: bool = False,
    posterior: bool = False,
) -> Draws:
    """Noise, timesteps, dropped captions and flips of this rank's rows, drawn for the global batch.

    `image_shape`: (C, H, W). A function of (seed, images seen, purpose) alone, so the same on any
    number of ranks.
    """
    count, shape = context.batch_size, (context.batch_size, *image_shape)
    return Draws(
        eps=context.local(torch.randn(shape, generator=context.generator("noise"))),
        t=context.local(process.draw_t(count, context.generator("timesteps"))),
        dropped=context.local(
            dropped_captions(caption_dropout, count, context.generator("dropout"))
        ),
        flips=random_flips(context) if mirrored else None,
        posterior=context.local(torch.randn(shape, generator=context.generator("posterior")))
        if posterior
        else None,
    )
