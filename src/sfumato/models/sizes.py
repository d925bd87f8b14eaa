"""Trainable parameters of what an experiment trains, by arithmetic: imports no torch."""

from functools import singledispatch
from itertools import pairwise

from sfumato.config.schema import (
    CanExperiment,
    ClassifierExperiment,
    ClipExperiment,
    DiffusionExperiment,
    Experiment,
    VaeExperiment,
)
from sfumato.models import unet


@singledispatch
def parameter_count(experiment: Experiment) -> int:
    """Number of trainable parameters; where the data decide, of RGB images of ten classes."""
    raise NotImplementedError(type(experiment).__name__)


@parameter_count.register
def _(experiment: DiffusionExperiment) -> int:
    channels = experiment.data.channels
    if experiment.codec.kind != "pixel":
        channels = experiment.codec.channels
    return unet.parameter_count(experiment.model, channels=3 if channels == "auto" else channels)


@parameter_count.register
def _(experiment: ClassifierExperiment, channels: int = 3, classes: int = 10) -> int:
    width = experiment.network.width
    count = channels * width * 9 + 2 * width
    for stage, blocks in enumerate(experiment.network.blocks):
        if stage > 0:
            count += _block(width, 2 * width) + 2 * width * width + 2 * 2 * width
            width, blocks = 2 * width, blocks - 1
        count += blocks * _block(width, width)
    return count + (width + 1) * classes


@parameter_count.register
def _(experiment: ClipExperiment) -> int:
    towers = experiment.towers
    width, mlp = towers.text_width, towers.text_mlp
    layer = 4 * (width + 1) * width + (width + 1) * mlp + (mlp + 1) * width + 4 * width
    text = (experiment.vocabulary + towers.positions) * width + towers.text_layers * layer
    text += 2 * width + width * towers.embedding
    first, *rest = towers.image_widths
    image = 3 * first * 9 + 2 * first
    for channels, out_channels in zip(towers.image_widths, rest, strict=False):
        image += _block(channels, out_channels) + channels * out_channels
    return text + image + rest[-1] * towers.embedding + 1  # and the logit scale


@parameter_count.register
def _(
    experiment: CanExperiment, channels: int = 3, classes: int = 10, text_width: int = 512
) -> int:
    network = experiment.network
    conditional, size = network.conditional, 9 if network.upsampling == "resize" else 16
    conditions = text_width + 1 if network.reads_captions else classes
    widths, narrows = network.generator_channels, network.discriminator_channels
    count = network.latent * (2 if conditional else 1) * widths[0] * 16
    count += conditions * network.latent * conditional + sum(2 * width for width in widths)
    count += sum(size * a * b for a, b in pairwise((*widths, channels))) + channels
    count += sum((16 * a + 1) * b for a, b in pairwise((channels, *narrows)))
    count += 0 if network.spectral_norm else sum(2 * width for width in narrows[1:])
    features = narrows[-1] * 16
    count += features + 1 + conditions * features * conditional
    return count + sum((a + 1) * b for a, b in pairwise((features, *network.style_hidden, classes)))


@parameter_count.register
def _(experiment: VaeExperiment, channels: int = 3) -> int:
    network = experiment.network
    widths, layers, latent = (
        network.block_out_channels,
        network.layers_per_block,
        network.latent_channels,
    )
    coarsest = widths[-1]
    middle = 2 * _normed_block(coarsest, coarsest)
    middle += (4 * (coarsest + 1) + 2) * coarsest * network.mid_attention
    count = _convolution(channels, widths[0]) + _convolution(coarsest, 2 * latent) + 2 * coarsest
    count += _convolution(latent, coarsest) + _convolution(widths[0], channels) + 2 * widths[0]
    for depth, path in ((layers, (widths[0], *widths)), (layers + 1, (coarsest, *widths[::-1]))):
        for before, width in pairwise(path):
            count += _normed_block(before, width) + (depth - 1) * _normed_block(width, width)
        count += middle + sum(_convolution(width, width) for width in path[1:-1])
    if width := network.preview_channels:
        path = (latent, width, width, width, channels * network.factor**2)
        count += sum(_convolution(a, b) for a, b in pairwise(path))
    judges = network.discriminator_channels if experiment.training.adversarial_weight else ()
    count += sum((16 * a + 1) * b for a, b in pairwise((channels, *judges)))
    return count + (9 * judges[-1] + 1 if judges else 0)


def _convolution(channels: int, out_channels: int) -> int:
    """Of 3x3 pixels, with bias."""
    return (9 * channels + 1) * out_channels


def _normed_block(channels: int, out_channels: int) -> int:
    """Two group norms and convolutions, and a shortcut where the channels change."""
    count = _convolution(channels, out_channels) + _convolution(out_channels, out_channels)
    shortcut = (channels + 1) * out_channels if channels != out_channels else 0
    return count + 2 * (channels + out_channels) + shortcut


def _block(channels: int, out_channels: int) -> int:
    """Two 3x3 convolutions without bias, each with batch norm."""
    return 9 * (channels + out_channels) * out_channels + 4 * out_channels
