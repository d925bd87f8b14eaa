"""Parameter counts by arithmetic are those of the networks."""

import pytest
import torch

from sfumato.config.overrides import preset_names
from sfumato.config.schema import (
    CanExperiment,
    ClassifierExperiment,
    ClipExperiment,
    DiffusionExperiment,
    VaeExperiment,
    load_experiment,
)
from sfumato.models.autoencoder import build_vae
from sfumato.models.can import build_can
from sfumato.models.classifier import build_classifier
from sfumato.models.preview import build_preview
from sfumato.models.sizes import parameter_count
from sfumato.models.unet import build_unet
from sfumato.text.tokenizer import train_tokenizer
from sfumato.text.towers import build_towers

ODD = [
    ["model.block_out_channels=[32]", "model.levels=[attention]"],
    ["model.block_out_channels=[64, 32, 96]", "model.levels=[attention, plain, attention]"],
    ["model.layers_per_block=3", "model.cross_attention_dim=40", "data.channels=3"],
    ["model.head_channels=8", "model.norm_num_groups=4", "model.dropout=0.5"],
]


def parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def count_of(experiment) -> int:
    """The parameters of the network itself, which has no storage here."""
    with torch.device("meta"):
        match experiment:
            case DiffusionExperiment(data=data, model=model):
                channels = 3 if data.channels == "auto" else data.channels
                return parameters(build_unet(model, resolution=32, channels=channels, seed=0))
            case ClassifierExperiment(network=network):
                return parameters(build_classifier(network, channels=3, classes=10, seed=0))
            case ClipExperiment(towers=towers, vocabulary=vocabulary):
                tokenizer = train_tokenizer((), vocab_size=0)
                missing = (vocabulary - len(tokenizer)) * towers.text_width
                return parameters(build_towers(towers, tokenizer, seed=0)) + missing
            case CanExperiment(network=network):
                both = build_can(network, channels=3, classes=10, seed=0, text_width=512)
                return sum(map(parameters, both))
            case VaeExperiment(network=network):
                vae = build_vae(network, channels=3, resolution=64, seed=0)
                return parameters(vae) + parameters(build_preview(network, channels=3, seed=0))
    raise AssertionError(experiment)


@pytest.mark.parametrize("name", preset_names())
def test_the_count_of_every_preset(name: str) -> None:
    experiment = load_experiment(name)
    assert parameter_count(experiment) == count_of(experiment)


@pytest.mark.parametrize("overrides", ODD)
def test_the_count_of_unusual_networks(overrides: list[str]) -> None:
    experiment = load_experiment("digits", overrides)
    assert parameter_count(experiment) == count_of(experiment)


def test_the_count_of_unusual_classifiers_and_towers() -> None:
    for name, overrides in (
        ("classifier", ["network.width=24", "network.blocks=[2,1,3]"]),
        ("can", ["network.conditional=true", "network.style_hidden=[]"]),
        ("can", ["network.conditional=true", "network.condition=caption"]),
        ("can-paper", ["network.upsampling=transposed", "network.spectral_norm=false"]),
        ("clip", ["towers.text_layers=3", "towers.image_widths=[8,16,16,40]", "vocabulary=900"]),
    ):
        experiment = load_experiment(name, overrides)
        assert parameter_count(experiment) == count_of(experiment)
