"""Training the classifier of evaluations, and its accuracy on real images."""

from collections.abc import Sequence
from pathlib import Path

import torch

from sfumato.base.files import read_json
from sfumato.config.schema import ClassifierExperiment
from sfumato.data.records import trained_on
from sfumato.data.survey import settle
from sfumato.evaluation.classifier import RESULT
from sfumato.evaluation.classifier_training import FILE_NAME, classifier_run, write_classifier
from sfumato.training.distributed import World
from sfumato.training.loop import Run
from sfumato.training.run import Method


def _resolve(experiment: ClassifierExperiment) -> ClassifierExperiment:
    return experiment.model_copy(update={"data": settle(experiment.data)})


def _build(
    experiment: ClassifierExperiment, folder: Path, device: torch.device, world: World
) -> Run:
    """`InputError` for a data set without two classes."""
    run = classifier_run(
        experiment.data,
        folder,
        network=experiment.network,
        training=experiment.training,
        seed=experiment.seed,
        device=device,
    )
    run.provenance = {"experiment": experiment.name}
    return run


def _finish(experiment: ClassifierExperiment, run: Run) -> None:
    """Choose weights and temperature, measure, and write the result."""
    file = run.folder / RESULT / FILE_NAME
    if not file.exists() or read_json(file)["images_seen"] != run.images_seen:
        write_classifier(run, experiment.data, run.folder / RESULT)


def _describe(experiment: ClassifierExperiment, run: Run) -> Sequence[str]:
    about = read_json(run.folder / RESULT / FILE_NAME)
    accuracy = about["test_accuracy"]
    of_class = [sum(row) for row in about["confusion"]]
    chance = max(of_class) / sum(of_class)  # of guessing the largest class
    tuned = f", temperature {about['temperature']:.2f}" if about["tuning"] else ""
    lines = [
        f"Classifier in {run.folder / RESULT}: {100 * accuracy['value']:.2f} % of "
        f"{accuracy['count']:,} real images correct ({100 * accuracy['low']:.2f} - "
        f"{100 * accuracy['high']:.2f}; the {about['weights']} weights{tuned}).",
        f"Measured on {about['test_images']}.",
    ]
    if accuracy["low"] <= chance:
        lines.append(
            f"This is no better than chance ({100 * chance:.0f} %): do not use it for evaluation."
        )
    return lines


CLASSIFIER = Method(
    schema=ClassifierExperiment,
    resolve=_resolve,
    images=lambda experiment: trained_on(experiment.data, "classifier"),
    build=_build,
    finish=_finish,
    describe=_describe,
)
