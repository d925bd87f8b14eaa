"""The sections of a creative adversarial network (CAN)."""

from typing import Literal

from pydantic import Field, model_validator

from sfumato.base.section import Count, NotNegative, Section
from sfumato.config.sections import AverageConfig, OptimizerConfig, Trackers

Ambiguity = Literal["uniform", "binary"]
AdversarialLoss = Literal["non_saturating", "hinge"]


class CanNetworkConfig(Section):
    """Generator and discriminator, like DCGAN's (Radford et al. 2016), with a style head."""

    latent: Count = 100
    """Values of z, standard normal."""
    generator_channels: tuple[Count, ...] = Field(min_length=1, max_length=6)
    """Channels of the generator at 4 pixels and at each doubling but the last, which is the image:
    n of them make images of 4 * 2^n pixels."""
    discriminator_channels: tuple[Count, ...] = Field(min_length=1, max_length=6)
    """Channels of the discriminator after each halving, down to 4 pixels: as many."""
    style_hidden: tuple[Count, ...] = (1024, 512)
    """Hidden layers of the style head."""
    upsampling: Literal["resize", "transposed"] = "resize"
    """`resize` repeats pixels before a convolution; `transposed` convolutions are DCGAN's, whose
    overlaps leave a pattern like a checkerboard."""
    spectral_norm: bool = True
    """Spectral norm in the discriminator (Miyato et al. 2018); else batch norm."""
    conditional: bool = False
    """Whether both get a condition: an embedding beside z, and a projection (Miyato and Koyama
    2018)."""
    condition: Literal["class", "caption"] = "class"
    """What that is: the class, or an image's caption by the text encoder, the mean of its
    tokens."""

    @model_validator(mode="after")
    def _fits(self) -> "CanNetworkConfig":
        if self.condition == "caption" and not self.conditional:
            raise ValueError("condition=caption needs conditional=true")
        if len(self.generator_channels) != len(self.discriminator_channels):
            raise ValueError("generator_channels and discriminator_channels have the same length")
        return self

    @property
    def reads_captions(self) -> bool:
        return self.conditional and self.condition == "caption"

    @property
    def resolution(self) -> int:
        """Height and width of its images in pixels."""
        return 4 * 2 ** len(self.generator_channels)


class CanTrainingConfig(Section):
    """Losses, length, batches, optimizers, and what is logged and kept."""

    loss: AdversarialLoss = "non_saturating"
    """What tells real from fake: non_saturating (Goodfellow et al. 2014) or hinge."""
    ambiguity: Ambiguity = "uniform"
    """How the generator is kept from known styles: `uniform`, cross-entropy to the uniform law over
    styles, or `binary`, the sum of binary terms that Elgammal et al. 2017 print."""
    ambiguity_weight: NotNegative = 1.0
    """lambda: weight of the ambiguity in the generator's loss; 0 is a GAN."""
    r1: NotNegative = 0.0
    """gamma of R1: gamma / 2 times the squared gradient at real images (Mescheder et al. 2018)."""
    diff_augment: tuple[Literal["brightness", "translation", "cutout"], ...] = ()
    """What the discriminator's images are changed by, real and fake (DiffAugment, Zhao et al.
    2020); for few images."""
    mirrored: bool = False
    """Whether half of the images are mirrored: true suits photos, false anything with writing."""
    batch_size: int = Field(default=64, ge=2)
    """Images of one step, two or more for batch norm."""
    images: Count
    """Length of the run in images."""
    optimizer: OptimizerConfig
    """Of the generator."""
    discriminator_optimizer: OptimizerConfig
    """Of the discriminator."""
    averaging: AverageConfig = AverageConfig(halflife_images=20_000)
    """Of the generator, whose average is sampled."""
    log_every_images: Count = 1_000
    """Images between two lines of metrics.jsonl."""
    sample_every_images: Count = 10_000
    """Images between two grids of samples."""
    checkpoint_every_images: Count = 10_000
    """Images between two checkpoints."""
    keep_checkpoints: Count = 2
    """The newest checkpoints that are kept."""
    trackers: Trackers = ()
    """Where the run is sent too, of tensorboard, mlflow and wandb (docs/tracking.md)."""
