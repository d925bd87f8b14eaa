"""What can be trained: a registry of methods. A new one is an experiment, a run and an entry."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sfumato.config.schema import (
    ClassifierExperiment,
    ClipExperiment,
    DiffusionExperiment,
    Experiment,
)
from sfumato.config.sections import DataConfig
from sfumato.data.loaders import open_training
from sfumato.methods.classifier import finished_lines, run_classifier
from sfumato.methods.clip import RESULT, finished_figures, run_clip
from sfumato.methods.diffusion import run_experiment
from sfumato.models.classifier import build_classifier
from sfumato.models.unet import parameter_count
from sfumato.text.tokenizer import train_tokenizer
from sfumato.text.towers import IMAGE_PX, build_towers
from sfumato.training.lint import lint_experiment
from sfumato.training.loop import Run


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way of training: its experiment, its run, its lint, and what to say when it is done."""

    experiment: type[Experiment]
    run: Callable[..., Run]
    lint: Callable[[Any], list[str]]
    finished: Callable[[Any, Path], Sequence[str]]
    describe: Callable[[Any], "Description"]


@dataclass(frozen=True, kw_only=True)
class Description:
    """A preset in a table: trainable parameters and the shape of its images."""

    parameters: str
    images: str


def _finished_diffusion(experiment: DiffusionExperiment, folder: Path) -> Sequence[str]:
    captions, _ = open_training(experiment.data).examples()
    prompt = captions[min(7, len(captions) - 1)]
    return (
        f"Samples in {folder / 'samples'}.",
        f'Draw with: sfumato sample {folder} "{prompt}"',
    )


def _describe_diffusion(experiment: DiffusionExperiment) -> Description:
    data = experiment.data
    count = parameter_count(
        experiment.model,
        resolution=64 if data.resolution == "auto" else data.resolution,
        channels=3 if data.channels == "auto" else data.channels,
    )
    return Description(parameters=f"{count:,}", images=_shape(data))


def _shape(data: DataConfig) -> str:
    shape = f"{data.resolution}x{data.resolution}x{data.channels}"
    return shape if data.is_resolved else "by the data"


def _describe_clip(experiment: ClipExperiment) -> Description:
    with torch.device("meta"):
        tokenizer = train_tokenizer((), vocab_size=0)
        towers = build_towers(experiment.towers, tokenizer, seed=0)
    rest = (experiment.vocabulary - len(tokenizer)) * experiment.towers.text_width
    count = sum(parameter.numel() for parameter in towers.parameters()) + rest
    return Description(parameters=f"{count:,}", images=f"{IMAGE_PX}x{IMAGE_PX}x3")


def _describe_classifier(experiment: ClassifierExperiment) -> Description:
    with torch.device("meta"):
        network = build_classifier(experiment.network, channels=3, classes=10, seed=0)
    count = sum(parameter.numel() for parameter in network.parameters())
    return Description(parameters=f"{count:,}", images=_shape(experiment.data))


def _finished_clip(experiment: ClipExperiment, folder: Path) -> Sequence[str]:
    return (
        *(
            f"Zero-shot on real {name} test images, held-out captions: "
            f"{100 * accuracy.value:.1f} % ({100 * accuracy.low:.1f} - {100 * accuracy.high:.1f})"
            for name, accuracy in finished_figures(folder).items()
        ),
        f"Use it with: sfumato train digits --set text.encoder={folder / RESULT}",
    )


METHODS: dict[str, Method] = {
    "diffusion": Method(
        experiment=DiffusionExperiment,
        run=run_experiment,
        lint=lint_experiment,
        finished=_finished_diffusion,
        describe=_describe_diffusion,
    ),
    "clip": Method(
        experiment=ClipExperiment,
        run=run_clip,
        lint=lambda experiment: [],
        finished=_finished_clip,
        describe=_describe_clip,
    ),
    "classifier": Method(
        experiment=ClassifierExperiment,
        run=run_classifier,
        lint=lambda experiment: [],
        finished=lambda experiment, folder: finished_lines(folder),
        describe=_describe_classifier,
    ),
}


def method_of(experiment: Experiment) -> Method:
    """The method that trains `experiment`."""
    return next(method for method in METHODS.values() if method.experiment is type(experiment))
