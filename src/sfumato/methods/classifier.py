"""Training a classifier: its experiment, its run, and what it is worth on real images."""

from collections.abc import Callable, Sequence
from pathlib import Path

from sfumato.base.files import read_json
from sfumato.config.schema import ClassifierExperiment
from sfumato.data.survey import settle
from sfumato.evaluation.classifier import FILE_NAME, RESULT
from sfumato.evaluation.classifier_training import classifier_run, write_classifier
from sfumato.generation.loading import resolve_device
from sfumato.training.folder import claim_folder
from sfumato.training.hooks import CheckpointHook, LogHook, cut_back_records, stopping_on_signals
from sfumato.training.loop import Hook, Run, train


def prepare_classifier(
    experiment: ClassifierExperiment, folder: Path, *, device: str, hooks: Sequence[Hook] = ()
) -> Run:
    """Build the run in `folder`, resumed where it has a checkpoint; `experiment.data` has no auto.

    `InputError` for a data set without two classes; nothing is written for it.
    """
    training = experiment.training
    run = classifier_run(
        experiment.data,
        folder,
        network=experiment.network,
        training=training,
        seed=experiment.seed,
        device=resolve_device(device),
    )
    claim_folder(experiment, folder)
    run.provenance = {"experiment": experiment.name}
    run.hooks = [
        LogHook(folder / "metrics.jsonl", every_images=training.log_every_images),
        *hooks,
        CheckpointHook(every_images=training.checkpoint_every_images),
    ]
    run.resume()
    cut_back_records(run)
    return run


def run_classifier(
    experiment: ClassifierExperiment,
    folder: Path,
    *,
    device: str = "auto",
    hooks: Sequence[Hook] = (),
    on_start: Callable[[Run], None] = lambda run: None,
) -> Run:
    """Train to the end (or to a request to stop); then tune, measure and write `classifier/`."""
    experiment = experiment.model_copy(update={"data": settle(experiment.data)})
    run = prepare_classifier(experiment, folder, device=device, hooks=hooks)
    on_start(run)
    if not run.finished:
        with stopping_on_signals(run):
            train(run)
    if run.finished and not (folder / RESULT / FILE_NAME).exists():
        write_classifier(run, experiment.data, folder / RESULT)
    return run


def finished_lines(folder: Path) -> tuple[str, ...]:
    """What a finished run is worth, for people."""
    about = read_json(folder / RESULT / FILE_NAME)
    accuracy = about["test_accuracy"]
    chance = 1 / len(about["class_names"])
    doubt = (
        (f"That is no better than guessing ({100 * chance:.0f} %): it tells nothing.",)
        if accuracy["low"] <= chance
        else ()
    )
    tuned = f", temperature {about['temperature']:.2f}" if about["tuning"] else ""
    return (
        f"Classifier in {folder / RESULT}: {100 * accuracy['value']:.2f} % of "
        f"{accuracy['count']:,} real images right ({100 * accuracy['low']:.2f} - "
        f"{100 * accuracy['high']:.2f}; the "
        f"{about['weights']} weights{tuned}).",
        f"Measured on {about['test_images']}.",
        *doubt,
    )
