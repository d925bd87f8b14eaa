"""The sections of training an autoencoder."""

from typing import Literal

from pydantic import Field, model_validator

from sfumato.base.section import Count, NotNegative, Section, check_rules
from sfumato.config.sections import (
    AverageConfig,
    FeaturesConfig,
    OptimizerConfig,
    Precision,
    Trackers,
)


class VaeNetworkConfig(Section):
    """An AutoencoderKL of diffusers; the discriminator and the decoder of previews beside it."""

    block_out_channels: tuple[Count, ...] = Field(default=(24, 48, 96), min_length=1, max_length=6)
    """Channels of each level from fine to coarse: n levels make a latent of each 2^(n-1) x 2^(n-1)
    pixels, three of them a factor of 4."""
    layers_per_block: Count = 1
    """ResNet layers of each level of the encoder; the decoder has one more."""
    latent_channels: Count = 4
    """Numbers of a latent."""
    norm_num_groups: Count = 8
    """Groups of GroupNorm; must divide every level's channels."""
    mid_attention: bool = False
    """Self-attention between the places of the coarsest level, as Stable Diffusion's VAE has it."""
    discriminator_channels: tuple[Count, ...] = Field(default=(32, 64), min_length=1, max_length=6)
    """Channels of the patch discriminator after each halving."""
    preview_channels: int = Field(default=64, ge=0)
    """Channels of a small decoder that learns to give what the VAE's own gives, for previews; 0:
    none."""

    @model_validator(mode="after")
    def _fits(self) -> "VaeNetworkConfig":
        groups = self.norm_num_groups
        check_rules(
            [
                f"norm_num_groups={groups} does not divide {channels} channels"
                for channels in dict.fromkeys(self.block_out_channels)
                if channels % groups
            ]
        )
        return self

    @property
    def factor(self) -> int:
        """Pixels of a side for each latent."""
        return 2 ** (len(self.block_out_channels) - 1)


class VaeTrainingConfig(Section):
    """Losses, length, batches, optimizers, and what is measured, logged and kept."""

    reconstruction: Literal["l1", "l2"] = "l2"
    """Absolute or squared error of the pixels, which are in [-1, 1]; l2 is what PSNR measures."""
    kl_weight: NotNegative = 1e-6
    """Weight of an image's Kullback-Leibler divergence beside the sum of its pixels' errors, as
    Rombach et al. 2022 weigh it; everything is then divided by the number of pixel values."""
    perceptual_weight: NotNegative = 0.01
    """Weight of the distance between features of `perceptual`; 0: none."""
    perceptual: str = "small-clip"
    """Whose features: an extractor of `sfumato evaluate` with features in stages."""
    adversarial_weight: NotNegative = 0.0
    """Weight of the patch discriminator's hinge loss, beside the adaptive weight of Esser et al.
    2021; 0: no discriminator."""
    adversarial_from_images: int = Field(default=0, ge=0)
    """Images after which the discriminator begins to learn and to count."""
    mirrored: bool = True
    """Whether half of the images are mirrored: true suits photos, false anything with writing."""
    batch_size: Count = 16
    """Images of one step."""
    images: Count
    """Length of the run in images."""
    precision: Precision = "float32"
    """Arithmetic of the autoencoder; weights stay float32."""
    optimizer: OptimizerConfig
    """Of the autoencoder."""
    discriminator_optimizer: OptimizerConfig = OptimizerConfig(
        lr=2e-4, betas=(0.5, 0.9), weight_decay=0
    )
    """Of the discriminator."""
    averaging: AverageConfig = AverageConfig(halflife_images=5_000)
    """Of the autoencoder, whose average is measured and kept."""
    measured_images: int = Field(default=500, ge=10)
    """Test images that reconstructions are measured on, at most."""
    distance: str = "small-clip"
    """Extractor of the Frechet distance of reconstructions, by name. One whose features are trained
    against flatters."""
    features: FeaturesConfig = FeaturesConfig()
    """Where the weights of the extractors come from."""
    log_every_images: Count = 1_000
    """Images between two lines of metrics.jsonl."""
    sample_every_images: Count = 20_000
    """Images between two grids of reconstructions."""
    measure_every_images: Count = 20_000
    """Images between two lines of reconstruction.jsonl."""
    checkpoint_every_images: Count = 20_000
    """Images between two checkpoints."""
    keep_checkpoints: Count = 2
    """The newest checkpoints that are kept."""
    trackers: Trackers = ()
    """Where the run is sent too, of tensorboard, mlflow and wandb (docs/tracking.md)."""
