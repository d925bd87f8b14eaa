"""The objective of an autoencoder: reconstruction, divergence, features, and a discriminator of
patches (Rombach et al. 2022, section 3.1)."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.base.images import to_float
from sfumato.base.stages import stage
from sfumato.config.autoencoding import VaeTrainingConfig
from sfumato.data.loading import Batch
from sfumato.models.autoencoder import PatchDiscriminator
from sfumato.models.ema import AveragedModel
from sfumato.models.preview import PreviewDecoder
from sfumato.training.features import FeatureDistance
from sfumato.training.objectives.can import discriminator_loss, generator_loss
from sfumato.training.optimizer import build_optimizer
from sfumato.training.state import Stateful
from sfumato.training.step import StepContext, finish_step, random_flips

_LARGEST_WEIGHT, _SMALLEST_SLOPE = 1e4, 1e-6


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a step weighs: 0-d, each as `VaeTrainingConfig` names it; `latents` (B, c, h, w), and
    what came of them: `reconstructed` (B, C, H, W), in [-1, 1] where it is right."""

    reconstruction: Tensor
    divergence: Tensor
    perceptual: Tensor
    latents: Tensor
    reconstructed: Tensor


class VaeObjective:
    """One step of the autoencoder, one of its decoder of previews, and, once it is time, one of the
    discriminator."""

    def __init__(
        self,
        vae: torch.nn.Module,
        discriminator: PatchDiscriminator | None,
        preview: PreviewDecoder | None,
        distance: FeatureDistance | None,
        config: VaeTrainingConfig,
    ) -> None:
        self.vae, self.discriminator, self.preview = vae.train(), discriminator, preview
        self.distance = distance
        self.config = config
        self.average = AveragedModel(vae, config.averaging)
        self.optimizer = build_optimizer(config.optimizer, vae)
        self.weights = list(vae.parameters())
        self._judged = () if discriminator is None else ("adaptive_weight", "discriminator_loss")
        if discriminator is not None:
            self.discriminator_weights = list(discriminator.train().parameters())
            self.discriminator_optimizer = build_optimizer(
                config.discriminator_optimizer, discriminator
            )
        if preview is not None:
            self.preview_average = AveragedModel(preview, config.averaging)
            self.preview_optimizer = build_optimizer(config.optimizer, preview)

    def parts(self) -> dict[str, Stateful]:
        others: dict[str, Stateful] = {}
        if self.discriminator is not None:
            others |= {
                "discriminator": self.discriminator,
                "discriminator_optimizer": self.discriminator_optimizer,
            }
        if self.preview is not None:
            others |= {
                "preview": self.preview,
                "preview_average": self.preview_average.module,
                "preview_optimizer": self.preview_optimizer,
            }
        own = {"vae": self.vae, "average": self.average.module, "optimizer": self.optimizer}
        return {**own, **others}

    def step(self, batch: Batch, context: StepContext) -> dict[str, Tensor]:
        """`loss` and `grad_norm` are the autoencoder's, and the discriminator's added; where one
        step is not finite, the run ends with an error before anything is saved. The decoder of
        previews changes nothing of this, nor of any random number."""
        images = to_float(batch.images, (-1.0, 1.0))
        if self.config.mirrored:
            flips = random_flips(context)[:, None, None, None]
            images = torch.where(flips, images.flip(3), images)
        terms = self.terms(images, context)
        metrics = self._autoencoder_step(terms, context)
        if self.preview is not None:
            metrics |= self._preview_step(terms, context)
        if self.is_adversarial(context):
            metrics |= self._discriminator_step(
                images, terms.reconstructed.detach(), metrics, context
            )
        return metrics

    def is_adversarial(self, context: StepContext) -> bool:
        """Whether the discriminator counts by now."""
        late = context.images_seen >= self.config.adversarial_from_images
        return self.discriminator is not None and late

    def terms(self, images: Tensor, context: StepContext) -> Terms:
        """The terms of images (B, C, H, W) in [-1, 1], with latents drawn from their posterior."""
        with stage("forward"), self._autocast(context):
            posterior = self.vae.encode(images).latent_dist  # pyright: ignore
            mean, log_variance = posterior.mean.float(), posterior.logvar.float()
            shape = (context.batch_size, *mean.shape[1:])
            noise = context.local(torch.randn(shape, generator=context.generator("posterior")))
            latents = mean + (0.5 * log_variance).exp() * noise
            found = self.vae.decode(latents).sample.float()  # pyright: ignore
        with stage("loss"):
            error = F.mse_loss if self.config.reconstruction == "l2" else F.l1_loss
            distance = self.distance
            return Terms(
                reconstruction=error(found, images),
                divergence=divergence(mean, log_variance).mean() / images[0].numel(),
                perceptual=torch.zeros((), device=images.device)
                if distance is None
                else distance(found, images).mean(),
                latents=latents,
                reconstructed=found,
            )

    def losses(self, terms: Terms, context: StepContext) -> dict[str, Tensor]:
        """The terms as they are added up, with their weights: 0-d each."""
        config = self.config
        likeness = terms.reconstruction + config.perceptual_weight * terms.perceptual
        found = {"likeness": likeness, "divergence": config.kl_weight * terms.divergence}
        if self.is_adversarial(context):
            assert self.discriminator is not None
            deceived = generator_loss(self.discriminator(terms.reconstructed), "hinge")
            last: Any = self.vae.decoder.conv_out.weight  # pyright: ignore
            weight = adaptive_weight(likeness, deceived, last)
            found["adversarial"] = config.adversarial_weight * weight * deceived
            found["adaptive_weight"] = weight
        return found

    def _autoencoder_step(self, terms: Terms, context: StepContext) -> dict[str, Tensor]:
        if self.discriminator is not None:
            self.discriminator.requires_grad_(False)
        losses = self.losses(terms, context)
        weight = losses.pop("adaptive_weight", None)
        loss = torch.stack([*losses.values()]).sum()
        self.optimizer.zero_grad(set_to_none=True)
        with stage("backward"):
            loss.backward()
        if self.discriminator is not None:
            self.discriminator.requires_grad_(True)
        metrics = finish_step(
            self.weights,
            self.optimizer,
            self.config.optimizer,
            loss.detach(),
            context,
            [self.average],
        )
        return {
            **metrics,
            "reconstruction": terms.reconstruction.detach(),
            "divergence": terms.divergence.detach(),
            "perceptual": terms.perceptual.detach(),
            # Zeros before it counts: the log's means are over all steps.
            **dict.fromkeys(self._judged, torch.zeros_like(loss.detach())),
            **({} if weight is None else {"adaptive_weight": weight}),
        }

    def _preview_step(self, terms: Terms, context: StepContext) -> dict[str, Tensor]:
        """Distillation: of the same latents, the decoder of previews is to give what the
        autoencoder's gave before its step. No gradient reaches the autoencoder."""
        assert self.preview is not None
        with self._autocast(context):
            found = self.preview(terms.latents.detach()).float()
        loss = F.mse_loss(found, terms.reconstructed.detach())
        self.preview_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        finish_step(
            list(self.preview.parameters()),
            self.preview_optimizer,
            self.config.optimizer,
            loss.detach(),
            context,
            [self.preview_average],
        )
        return {"preview_loss": loss.detach()}

    def _autocast(self, context: StepContext) -> torch.autocast:
        mixed = self.config.precision == "bfloat16"
        return torch.autocast(context.device.type, torch.bfloat16, enabled=mixed)

    def _discriminator_step(
        self,
        images: Tensor,
        reconstructed: Tensor,
        metrics: dict[str, Tensor],
        context: StepContext,
    ) -> dict[str, Tensor]:
        assert self.discriminator is not None
        real, fake = (self.discriminator(one).flatten() for one in (images, reconstructed))
        loss = discriminator_loss(real, fake, "hinge")
        self.discriminator_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        judged = finish_step(
            self.discriminator_weights,
            self.discriminator_optimizer,
            self.config.discriminator_optimizer,
            loss.detach(),
            context,
        )
        return {
            "loss": metrics["loss"] + judged["loss"],
            "grad_norm": metrics["grad_norm"] + judged["grad_norm"],
            "discriminator_loss": judged["loss"],
        }


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """(B,) of posteriors (B, C, H, W): sum of the Kullback-Leibler divergences from N(0, 1)."""
    terms = mean.square() + log_variance.exp() - 1 - log_variance
    return 0.5 * terms.flatten(1).sum(1)


def adaptive_weight(likeness: Tensor, deceived: Tensor, weight: Tensor) -> Tensor:
    """How much the adversarial loss counts so that both pull alike at the decoder's last `weight`:
    |d likeness| / (|d deceived| + 1e-6), at most 1e4 (Esser et al. 2021, Eq. 7)."""
    slopes = [
        torch.autograd.grad(loss, weight, retain_graph=True)[0].norm()
        for loss in (likeness, deceived)
    ]
    return (slopes[0] / (slopes[1] + _SMALLEST_SLOPE)).clamp(max=_LARGEST_WEIGHT).detach()
