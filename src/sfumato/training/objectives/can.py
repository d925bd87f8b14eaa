"""The objective of a creative adversarial network (Elgammal et al. 2017).

The discriminator tells real from fake and, of real images, the style. The generator deceives it
and, weighed by lambda, leaves the style head undecided.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.base.images import to_float
from sfumato.config.adversarial import AdversarialLoss, Ambiguity, CanTrainingConfig
from sfumato.data.loading import Batch
from sfumato.models.can import Discriminator, Generator
from sfumato.models.ema import AveragedModel
from sfumato.training.optimizer import build_optimizer
from sfumato.training.state import Stateful
from sfumato.training.step import StepContext, finish_step, random_flips


def discriminator_loss(real: Tensor, fake: Tensor, kind: AdversarialLoss) -> Tensor:
    """Of logits (B,) of real and of fake images."""
    if kind == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_loss(fake: Tensor, kind: AdversarialLoss) -> Tensor:
    """Of logits (B,) of fake images; non-saturating: -log sigmoid."""
    return -fake.mean() if kind == "hinge" else F.softplus(-fake).mean()


def ambiguity(logits: Tensor, kind: Ambiguity) -> Tensor:
    """How far styles (B, K) are from undecided; least where all K are equally likely.

    p = softmax(logits). `uniform`: -mean_k log p_k, the cross-entropy from the uniform law.
    `binary`: -sum_k (1/K log p_k + (1 - 1/K) log(1 - p_k)), as Elgammal et al. 2017 print it. With
    m_k = logit_k - logsumexp of the others, p_k = sigmoid(m_k): logsigmoid keeps log(1 - p_k)
    finite where p_k rounds to 1.
    """
    if kind == "uniform":
        return -F.log_softmax(logits, 1).mean()
    classes = logits.shape[1]
    own = torch.eye(classes, dtype=torch.bool, device=logits.device)
    others = logits[:, None, :].masked_fill(own, -torch.inf).logsumexp(2)
    margin = logits - others
    terms = F.logsigmoid(margin) / classes + F.logsigmoid(-margin) * (1 - 1 / classes)
    return -terms.sum(1).mean()


class CanObjective:
    """One step of the discriminator, then one of the generator, each with its optimizer."""

    def __init__(
        self,
        generator: Generator,
        discriminator: Discriminator,
        config: CanTrainingConfig,
        captions: Tensor | None = None,
    ) -> None:
        """`captions`: (P, D), of a network whose condition they are: those that batches count
        in."""
        self.captions = captions
        self.generator, self.discriminator = generator.train(), discriminator.train()
        self.config = config
        self.average = AveragedModel(generator, config.averaging)
        self.optimizer = build_optimizer(config.optimizer, generator)
        self.discriminator_optimizer = build_optimizer(
            config.discriminator_optimizer, discriminator
        )
        self.generator_weights = list(generator.parameters())
        self.discriminator_weights = list(discriminator.parameters())

    def parts(self) -> dict[str, Stateful]:
        return {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "average": self.average.module,
            "optimizer": self.optimizer,
            "discriminator_optimizer": self.discriminator_optimizer,
        }

    def step(self, batch: Batch, context: StepContext) -> dict[str, Tensor]:
        """`loss` and `grad_norm` are the sums of both networks'; where one step is not finite, the
        run ends with an error before anything is saved."""
        judged, about = self._discriminator_step(batch, context)
        made = self._generator_step(context)
        return {
            "loss": judged["loss"] + made["loss"],
            "grad_norm": judged["grad_norm"] + made["grad_norm"],
            "lr": made["lr"],
            "discriminator_loss": judged["loss"],
            "generator_loss": made["loss"],
            **about,
            "ambiguity": made["ambiguity"],
        }

    def _discriminator_step(
        self, batch: Batch, context: StepContext
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        config, labels = self.config, batch.labels
        condition = labels if self.captions is None else self.captions[batch.prompts]
        images = to_float(batch.images, (-1.0, 1.0))
        if config.mirrored:
            flips = random_flips(context)[:, None, None, None]
            images = torch.where(flips, images.flip(3), images)
        images.requires_grad_(config.r1 > 0)
        with torch.no_grad():
            fakes, of_fakes = self._fakes(context, "discriminator")
        real, styles = self.discriminator(self._changed(images, context, "real"), condition)
        fake, _ = self.discriminator(self._changed(fakes, context, "fake"), of_fakes)
        of_style = F.cross_entropy(styles, labels)
        loss = discriminator_loss(real, fake, config.loss) + of_style
        if config.r1:
            (slope,) = torch.autograd.grad(real.sum(), images, create_graph=True)
            loss = loss + config.r1 / 2 * slope.square().flatten(1).sum(1).mean()
        self.discriminator_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        metrics = finish_step(
            self.discriminator_weights,
            self.discriminator_optimizer,
            config.discriminator_optimizer,
            loss.detach(),
            context,
        )
        return metrics, {
            "style_loss": of_style.detach(),
            "style_accuracy": (styles.argmax(1) == labels).float().mean(),
            "real_share_right": (real > 0).float().mean(),
            "fake_share_right": (fake < 0).float().mean(),
        }

    def _generator_step(self, context: StepContext) -> dict[str, Tensor]:
        config = self.config
        self.discriminator.requires_grad_(False)
        fakes, of_fakes = self._fakes(context, "generator")
        fake, styles = self.discriminator(self._changed(fakes, context, "generator"), of_fakes)
        undecided = ambiguity(styles, config.ambiguity)
        loss = generator_loss(fake, config.loss) + config.ambiguity_weight * undecided
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.discriminator.requires_grad_(True)
        metrics = finish_step(
            self.generator_weights,
            self.optimizer,
            config.optimizer,
            loss.detach(),
            context,
            [self.average],
        )
        return {**metrics, "ambiguity": undecided.detach()}

    def _fakes(self, context: StepContext, purpose: str) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) of new z, and classes (B,) or captions (B, D), which only a
        conditional network uses."""
        generator = context.generator(f"latents of the {purpose}")
        network = self.generator
        z = torch.randn(context.batch_size, network.config.latent, generator=generator)
        kinds = network.classes if self.captions is None else len(self.captions)
        drawn = torch.randint(kinds, (context.batch_size,), generator=generator)
        z, drawn = context.local(z), context.local(drawn)
        condition = drawn if self.captions is None else self.captions[drawn]
        return network(z, condition), condition

    def _changed(self, images: Tensor, context: StepContext, purpose: str) -> Tensor:
        if not self.config.diff_augment:
            return images
        return diff_augment(
            images, self.config.diff_augment, context.generator(f"changes of the {purpose}")
        )


def diff_augment(images: Tensor, kinds: tuple[str, ...], generator: torch.Generator) -> Tensor:
    """`images` (B, C, H, W) in [-1, 1], changed such that gradients pass (Zhao et al. 2020):
    brightness, saturation and contrast; shifts by up to an eighth; squares of half the side cut
    out."""
    count, side = len(images), images.shape[-1]

    def drawn(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator).to(images.device)

    if "brightness" in kinds:
        images = images + drawn(1, 1, 1) - 0.5
        mean = images.mean(1, keepdim=True)
        images = mean + (images - mean) * 2 * drawn(1, 1, 1)
        mean = images.mean((1, 2, 3), keepdim=True)
        images = mean + (images - mean) * (0.5 + drawn(1, 1, 1))
    places = torch.arange(side, device=images.device)
    if "translation" in kinds:
        most = max(1, side // 8)
        moved = (drawn(2) * (2 * most + 1)).floor().long() - most
        padded = F.pad(images, (most,) * 4)
        rows = (places + most + moved[:, :1])[:, None, :, None]
        columns = (places + most + moved[:, 1:])[:, None, None, :]
        images = padded[torch.arange(count)[:, None, None, None], _channels(images), rows, columns]
    if "cutout" in kinds:
        middle = (drawn(2) * side).floor().long()
        near = (places - middle[:, :, None]).abs() < side // 4
        cut = near[:, 0, :, None] & near[:, 1, None, :]
        images = images * (~cut)[:, None]
    return images


def _channels(images: Tensor) -> Tensor:
    return torch.arange(images.shape[1], device=images.device)[None, :, None, None]
