"""The sections of an experiment: what can be set, with ranges and documentation.

This module imports no torch: a mistyped setting is reported at once.
"""

import math
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from sfumato.base.images import ValueRange
from sfumato.base.section import (
    Count,
    GuidanceScale,
    NotNegative,
    Positive,
    Section,
    Share,
    check_rules,
)
from sfumato.config.finetuning import LoraConfig
from sfumato.diffusion.process import LossWeight

Auto = Literal["auto"]
Fit = Literal["crop", "squash"]
Level = Literal["plain", "attention"]
Loading = Literal["memory", "stream"]
Precision = Literal["float32", "bfloat16"]
Trackers = Annotated[
    tuple[Literal["tensorboard", "mlflow", "wandb"], ...],
    BeforeValidator(lambda value: tuple(value.split(",")) if isinstance(value, str) else value),
    AfterValidator(lambda value: tuple(dict.fromkeys(value))),
]
AUTO_CAPTION = ("auto",)
FEWEST_IMAGES = 10
"""Fewer images cannot be measured."""


class DataConfig(Section):
    """The images, their size and their captions.

    `auto` is replaced by what the images say before a run begins; experiment.yaml has the result.
    """

    source: str = ""
    """`digits`, a Hub name OWNER/NAME, or a folder (docs/data.md); `--data` on the command line."""
    resolution: int | Auto = "auto"
    """Height and width in pixels that images are brought to; auto: by their median short side."""
    channels: Literal[1, 3] | Auto = "auto"
    """1 for greyscale, 3 for RGB; auto: 1 where all images are greyscale."""
    fit: Fit = "crop"
    """How images that are not square become so: crop (the centre) or squash (the paper)."""
    caption: tuple[str, ...] = AUTO_CAPTION
    """Caption templates with {caption}, the image's own, {class_name}, {style_name}, {word},
    {label} or the name of a column; [by {artist}] is left out where a field has no value. A step
    picks one for each image. auto: {caption} where there are captions."""
    phrases: tuple[str, ...] = ()
    """Noun phrases with a field, such as "the digit {label}": English sentences around them are
    about half of the captions, so that the model finds its class in any sentence."""
    held_out: tuple[str, ...] = ()
    """Caption templates that are never trained on, for `sfumato evaluate --held-out`."""
    left_out: tuple[str, ...] = ()
    """Captions whose images are not trained on, such as `A portrait in the style of Cubism`:
    `evaluation.captions` then shows whether the model combines words that it never saw together."""
    value_range: ValueRange = (-1.0, 1.0)
    """Range of pixel values inside the network, to which sampled images are clamped; without effect
    on latents."""
    split_seed: int = 0
    """Seed of the split into train, classifier and test, where a source has none of its own."""
    test_share: Share = 0.1
    """Share of the images held out for test, where a source has no test part of its own: each image
    is drawn by its content, so that it stays on its side when others come and go."""
    also_train: tuple[str, ...] = ()
    """Parts of the source beside train that are trained on too, such as `extra` or `validation`."""
    tuning_share: Share = 0.0
    """Share of the test images that a classifier may be tuned on; metrics use the others."""
    max_damaged: Share = 0.01
    """Largest share of damaged rows that are skipped; more of them end the run."""
    accept_changes: bool = False
    """Whether a run may go on with other images or captions than it was trained on so far; its
    images.json records it."""
    loading: Loading | Auto = "auto"
    """How training reads: memory holds all decoded images, stream a window of them (Parquet only,
    docs/data-engine.md); auto: memory where they take less than 2 GiB."""
    workers: int | Auto = "auto"
    """Processes that decode a stream, 0 for none beside the training; auto: one a core, at most
    8. The order of the images is the same for any number."""
    image_column: str = "auto"
    """Parquet: the column of images; auto finds it by its type."""
    label_column: str = "auto"
    """Parquet: the column of classes; auto finds it by its type, none does without."""
    caption_column: str = "auto"
    """Parquet: the column of captions; auto finds it by its type, none does without."""

    @property
    def templates(self) -> tuple[str, ...]:
        """Everything that captions are made from."""
        return (*self.caption, *self.phrases)

    @property
    def is_resolved(self) -> bool:
        return "auto" not in (self.resolution, self.channels) and self.caption != AUTO_CAPTION

    @field_validator("caption", "phrases", "left_out", "also_train", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("caption")
    @classmethod
    def _some(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("give at least one caption template")
        return value

    @field_validator("also_train")
    @classmethod
    def _parts_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("a part is given twice")
        return value

    @field_validator("value_range")
    @classmethod
    def _rising(cls, value: ValueRange) -> ValueRange:
        if value[0] >= value[1]:
            raise ValueError("the low end must be below the high end")
        return value

    @field_validator("resolution", mode="before")
    @classmethod
    def _size(cls, value: object) -> object:
        if value == "auto" or (type(value) is int and 1 <= value <= 4096):
            return value
        raise ValueError("a resolution is auto, or lies between 1 and 4096 pixels")

    @field_validator("channels", mode="before")
    @classmethod
    def _channels(cls, value: object) -> object:
        if value in (1, 3, "auto") and not isinstance(value, bool):
            return value
        raise ValueError("channels are 1, 3 or auto")

    @field_validator("workers", mode="before")
    @classmethod
    def _processes(cls, value: object) -> object:
        if value == "auto" or (type(value) is int and 0 <= value <= 256):
            return value
        raise ValueError("workers are auto, or between 0 and 256")


class CodecConfig(Section):
    """What the network sees of an image: its pixels, or latents of fewer numbers."""

    kind: Literal["pixel", "linear", "vae"] = "pixel"
    """`pixel`; `linear`: the principal components of patches, fitted to the training images when
    the run begins; `vae`: an AutoencoderKL of diffusers (docs/latent.md)."""
    factor: Count = 4
    """linear, vae: side in pixels of what becomes one latent; it divides data.resolution."""
    channels: Count = 4
    """linear, vae: numbers of a latent."""
    vae: str = ""
    """vae: the folder or Hub name of an AutoencoderKL, or a folder with one in `vae`."""
    posterior: Literal["mode", "sample"] = "mode"
    """vae: whether training takes the mode of an image's posterior or draws from it."""

    def network_shape(self, channels: int, resolution: int) -> tuple[int, int]:
        """Channels and side of what the network sees of images with `channels` and a side of
        `resolution`. `ValueError` where `factor` does not divide it."""
        if self.kind == "pixel":
            return channels, resolution
        if resolution % self.factor:
            raise ValueError(
                f"codec.factor: patches of {self.factor} x {self.factor} pixels do not fill images "
                f"of {resolution} x {resolution}"
            )
        return self.channels, resolution // self.factor


class UNetConfig(Section):
    """The denoising network. Up blocks mirror the down blocks, as in the paper."""

    block_out_channels: tuple[Count, ...]
    """Channels of each resolution level, from fine to coarse."""
    levels: tuple[Level, ...]
    """`plain` or `attention` (cross-attention to the caption) for each level."""
    layers_per_block: Count = 2
    """ResNet layers of each block."""
    cross_attention_dim: Count = 512
    """Width of the caption's tokens: 512 for CLIP ViT-B/32."""
    attention_head_dim: Count = 8
    """The keyword of diffusers: in this network it is the NUMBER of heads."""
    head_channels: Count | None = None
    """Channels of one attention head, as `attention_head_dim` sounds; null to go by that number."""
    norm_num_groups: Count = 32
    """Groups of GroupNorm; must divide every level's channels."""
    dropout: Share = 0.0
    """Dropout inside the ResNet layers."""
    scale_embedding: Count | None = None
    """Width of the embedding of the guidance scale, for a student that takes it as an input; null:
    the network does not know it."""

    @model_validator(mode="after")
    def _fits(self) -> "UNetConfig":
        if not self.levels or len(self.levels) != len(self.block_out_channels):
            raise ValueError("levels and block_out_channels must have the same length, at least 1")
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                raise ValueError(
                    f"norm_num_groups={self.norm_num_groups} does not divide {channels} channels"
                )
            if self.head_channels is None and channels % self.attention_head_dim:
                raise ValueError(
                    f"attention_head_dim={self.attention_head_dim} (a number of heads) does not "
                    f"divide {channels} channels"
                )
            if self.head_channels is not None and channels % self.head_channels:
                raise ValueError(
                    f"head_channels={self.head_channels} does not divide {channels} channels"
                )
        return self

    @property
    def heads(self) -> tuple[int, ...]:
        """Attention heads of each level, from fine to coarse; the middle has those of the last."""
        if self.head_channels is None:
            return (self.attention_head_dim,) * len(self.block_out_channels)
        return tuple(channels // self.head_channels for channels in self.block_out_channels)

    @property
    def heads_text(self) -> str:
        """`32 heads x 8 channels (level 2, level 3), ...`: where there is attention."""
        levels = zip(self.heads, self.block_out_channels, self.levels, strict=True)
        places: dict[str, list[str]] = {}
        for number, (heads, channels, kind) in enumerate(levels, start=1):
            found = places.setdefault(f"{heads} heads x {channels // heads} channels", [])
            if kind == "attention":
                found.append(f"level {number}")
            if number == len(self.levels):
                found.append("middle")
        return ", ".join(f"{each} ({', '.join(where)})" for each, where in places.items() if where)


class AverageConfig(Section):
    """Exponential moving average of the weights, timed in images, whatever the batch size."""

    halflife_images: NotNegative = 500_000
    """Images after which a weight's share in the average has halved; 0: no averaging."""
    rampup_ratio: NotNegative = 0.05
    """Early in a run the half-life is at most this share of the images seen (EDM, Karras 2022)."""


class AveragingConfig(AverageConfig):
    """Exponential moving averages of the weights, timed in images, whatever the batch size: the one
    that is sampled, and others beside it."""

    also_halflives_images: tuple[Positive, ...] = ()
    """Further half-lives: an average of each is kept too, and `sfumato tune` can choose one after
    training (post-hoc averaging, Karras et al. 2024)."""

    @field_validator("also_halflives_images")
    @classmethod
    def _each_once(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(values)) < len(values):
            raise ValueError("each may be given once only")
        return values


class ClassifierConfig(Section):
    """Stages of residual blocks; each but the first halves the image and doubles the channels."""

    width: Count = 16
    """Channels of the first stage."""
    blocks: tuple[Count, ...] = Field(default=(1, 1, 1), min_length=1)
    """Residual blocks of each stage."""


class TextConfig(Section):
    """The text encoder and the number of tokens."""

    encoder: str = "bundled"
    """`bundled`, `minilm` (extra `words`), or the folder or Hub name of a CLIP, a T5 or a model
    like BERT, such as openai/clip-vit-base-patch32."""
    max_tokens: Count = 77
    """Prompts are padded or cut to this many tokens (the paper: 8 for MNIST, else 77)."""


class TowersConfig(Section):
    """Sizes of the two towers."""

    text_width: Count = 512
    """Width of the text tokens; 512 is that of the paper's cross-attention."""
    text_layers: Count = 2
    """Transformer layers of the text tower."""
    text_heads: Count = 8
    """Attention heads of a layer."""
    text_mlp: Count = 1024
    """Hidden width of a layer's MLP."""
    positions: Count = 77
    """Most tokens of a prompt."""
    image_widths: tuple[Count, Count, Count, Count] = (32, 64, 128, 192)
    """Channels of the image tower at 32, 16, 8 and 4 pixels."""
    embedding: Count = 128
    """Width of the space that both towers map into."""


class OptimizerConfig(Section):
    """AdamW (Loshchilov and Hutter 2019), warm-up and decay."""

    lr: Positive
    """Learning rate after the warm-up."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """Decay of the first and second moment."""
    weight_decay: NotNegative = 0.01
    """Decoupled weight decay (torch's and the paper's default)."""
    warmup_images: int = Field(default=0, ge=0)
    """Images over which the rate rises linearly from zero."""
    decay: Literal["constant", "cosine"] = "constant"
    """`cosine` brings the rate to zero at the end of the run."""
    max_grad_norm: Positive | None = None
    """Clip the global gradient norm to this; null for no clipping, as in the paper."""


class TrainingConfig(Section):
    """Length, batches, optimizer, averages, and what is logged and kept."""

    batch_size: Count
    """Images of one optimizer step, over all ranks."""
    images: Count | None = None
    """Length of the run in images; or give `epochs`."""
    epochs: Positive | None = None
    """Length of the run in passes over the data, of a student over the trajectories that it trains
    on; or give `images`."""
    micro_batches: Count = 1
    """Parts a rank's batch is computed in, to save memory."""
    caption_dropout: Share = 0.1
    """Share of captions replaced by the empty prompt, for classifier-free guidance."""
    mirrored: bool = False
    """Whether half of the images are mirrored: true suits photos, false anything with writing."""
    loss_weight: LossWeight = "uniform"
    """Weight of the loss over noise levels: uniform, or min_snr (min-SNR-gamma)."""
    min_snr_gamma: Positive = 5.0
    """gamma of min_snr: signal-to-noise ratios above it weigh no more."""
    precision: Precision = "float32"
    """Arithmetic of the network; weights stay float32."""
    gradient_checkpointing: bool = False
    """Compute the network's blocks a second time in the backward pass in place of keeping what they
    need: a step takes a third longer and far less memory."""
    compile: Literal["none", "blocks", "graph"] = "none"
    """Compile the network's `blocks`, or the whole network with CUDA graphs (`graph`)."""
    sharding: Literal["none", "full"] = "none"
    """Of several processes: `full` divides weights, gradients and moments among them, for a network
    that does not fit one device."""
    lora: LoraConfig | None = None
    """Train low-rank additions to the weights of a model (`--from`) in place of all of them."""
    optimizer: OptimizerConfig
    averaging: AveragingConfig = AveragingConfig()
    log_every_images: Count = 1_000
    """Images between two lines of metrics.jsonl."""
    sample_every_images: Count = 10_000
    """Images between two grids of samples."""
    accuracy_every_images: Count | None = None
    """Images between two quick evaluations (`evaluation.quick_count`), lines of accuracy.jsonl;
    null for none. A classifier that is not in the cache is trained first."""
    checkpoint_every_images: Count = 10_000
    """Images between two checkpoints."""
    keep_checkpoints: Count = 2
    """The newest checkpoints that are kept."""
    trackers: Trackers = ()
    """Where the run is sent too, of tensorboard, mlflow and wandb (docs/tracking.md)."""
    checkpoint_epochs: tuple[Positive, ...] = ()
    """Epochs at which a checkpoint is made too, and kept: the first step at or after so many."""

    @model_validator(mode="after")
    def _fits_together(self) -> "TrainingConfig":
        problems = []
        if (self.images is None) == (self.epochs is None):
            problems.append("give either images or epochs")
        if self.micro_batches > self.batch_size:
            problems.append("micro_batches cannot exceed batch_size")
        if self.compile == "graph" and self.micro_batches > 1:
            # The next micro-batch would overwrite gradients that lie in the graph's memory.
            problems.append("compile=graph needs micro_batches=1")
        check_rules(problems)
        return self

    def milestones(self, data_set_size: int) -> frozenset[int]:
        """Images seen at the first step at or after each of `checkpoint_epochs`."""
        return frozenset(
            math.ceil(epoch * data_set_size / self.batch_size) * self.batch_size
            for epoch in self.checkpoint_epochs
        )

    def total_images(self, data_set_size: int) -> int:
        """Length of the run in images."""
        if self.images is not None:
            return self.images
        assert self.epochs is not None  # by `_one_length`
        return round(self.epochs * data_set_size)


class FeaturesConfig(Section):
    """Where the weights of the extractors come from."""

    inception: str = "auto"
    """FID's Inception: a file; auto: $SFUMATO_INCEPTION, then what a download left."""
    clip: str = "openai/clip-vit-base-patch32"
    """CLIP: a Hub name or a folder."""
    dinov2: str = "facebook/dinov2-base"
    """DINOv2: a Hub name or a folder."""
    resnet: str = "microsoft/resnet-18"
    """ImageNet's ResNet-18, whose body the paper's classifier had: a Hub name or a folder."""
    small_clip: str = "bundled"
    """The small CLIP: bundled, or the folder of another."""
    may_download: bool = False
    """Whether missing weights are downloaded (91 MiB, and what the Hub names hold)."""


class EvaluationConfig(Section):
    """What `sfumato evaluate` measures."""

    guidance_scales: tuple[GuidanceScale, ...] = (1, 2, 3, 5)
    """The guidance scales of a table."""
    count: int = 100
    """Images sampled for each guidance scale."""
    quick_count: int = 200
    """Images of a quick evaluation during training (`training.accuracy_every_images`)."""
    quick_scales: tuple[GuidanceScale, ...] = (1,)
    """Guidance scales of a quick evaluation."""
    labels: Literal["balanced", "random"] = "balanced"
    """Classes of the prompts: `balanced` as many of each, `random` chosen at random."""
    classifier: str = "auto"
    """Classifier of the class accuracy: auto (trained once and kept), a run of `sfumato train
    classifier`, an image classifier of transformers (a folder or Hub name), untrained or
    untrained:SEED."""
    extractors: tuple[str, ...] = ("inception", "clip", "dinov2", "small-clip", "classifier")
    """Networks whose features are measured; those without weights on this machine are skipped."""
    features: FeaturesConfig = FeaturesConfig()
    """Where the weights of the extractors come from."""
    reference_count: int | None = None
    """Real images on the other side: the first so many of the reference split; null for all."""
    first_seed: int = Field(default=0, ge=0)
    """Seed of the first image of each row; the next ones count up."""
    held_out: bool = False
    """Whether the prompts are the captions of data.held_out, which are never trained on."""
    captions: tuple[str, ...] = ()
    """Prompts in place of a caption of each class, in turn; each is the caption of an image in the
    data set, whose class it stands for."""
    baseline_pairs: int = Field(default=10, ge=2)
    """Sets of real images that are measured like generated ones: the real-vs-real baseline."""

    @field_validator("count", "quick_count")
    @classmethod
    def _enough(cls, value: int) -> int:
        if value < FEWEST_IMAGES:
            raise ValueError(f"too few images to measure: {FEWEST_IMAGES} or more")
        return value

    @field_validator("extractors", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return tuple(value.split(",")) if isinstance(value, str) else value

    @field_validator("captions", mode="before")
    @classmethod
    def _one_caption(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_kind_of_prompts(self) -> "EvaluationConfig":
        if self.captions and self.held_out:
            raise ValueError("captions and held_out both name the prompts; give one of them")
        return self

    @field_validator("guidance_scales", "quick_scales", "extractors")
    @classmethod
    def _each_once(cls, value: tuple[object, ...]) -> tuple[object, ...]:
        if not value:
            raise ValueError("at least one is needed")
        if len(set(value)) < len(value):
            raise ValueError("each may be given once only")
        return value

    @field_validator("reference_count")
    @classmethod
    def _enough_real(cls, value: int | None) -> int | None:
        if value is not None and value < FEWEST_IMAGES:
            raise ValueError(f"too few images: {FEWEST_IMAGES} or more, null for all")
        return value
