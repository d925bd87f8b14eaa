"""What can be trained: a registry of methods. A new one is an experiment, a run and an entry."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfumato.config.schema import (
    ClassifierExperiment,
    ClipExperiment,
    DiffusionExperiment,
    Experiment,
)
from sfumato.data.loaders import open_training
from sfumato.methods.classifier import finished_lines, run_classifier
from sfumato.methods.clip import RESULT, finished_figures, run_clip
from sfumato.methods.diffusion import run_experiment
from sfumato.training.lint import lint_experiment
from sfumato.training.loop import Run


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way of training: its experiment, its run, its lint, and what to say when it is done."""

    experiment: type[Experiment]
    run: Callable[..., Run]
    lint: Callable[[Any], list[str]]
    finished: Callable[[Any, Path], Sequence[str]]


def _finished_diffusion(experiment: DiffusionExperiment, folder: Path) -> Sequence[str]:
    captions, _ = open_training(experiment.data).examples()
    prompt = captions[min(7, len(captions) - 1)]
    return (
        f"Samples in {folder / 'samples'}.",
        f'Sample with: sfumato sample {folder} "{prompt}"',
    )


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
    ),
    "clip": Method(
        experiment=ClipExperiment,
        run=run_clip,
        lint=lambda experiment: [],
        finished=_finished_clip,
    ),
    "classifier": Method(
        experiment=ClassifierExperiment,
        run=run_classifier,
        lint=lambda experiment: [],
        finished=lambda experiment, folder: finished_lines(folder),
    ),
}


def method_of(experiment: Experiment) -> Method:
    """The method that trains `experiment`."""
    return next(method for method in METHODS.values() if method.experiment is type(experiment))
