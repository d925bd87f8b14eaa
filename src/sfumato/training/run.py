"""The life of a run, the same for every method: build, resume, train, finish."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sfumato.config.schema import Experiment
from sfumato.training.folder import check_folder, claim_folder
from sfumato.training.hooks import CheckpointHook, LogHook, cut_back_records, stopping_on_signals
from sfumato.training.images import check_images, record_images
from sfumato.training.loop import Hook, Run, train


@dataclass(frozen=True, kw_only=True)
class Method:
    """What differs between methods of training.

    `resolve`: the experiment with each `auto` made concrete, after the checks that need no images;
    a resolved one is returned as it is. `images`: what it is trained on, as
    `data.records.trained_on` has it; None where that is not recorded. `build`: the run from its
    start, with the hooks that only this method has. `finish`: writes the result of a finished run
    where it is missing. `describe`: lines on the result. `lint`: warnings about an experiment.
    """

    schema: type[Experiment]
    build: Callable[[Any, Path, torch.device], Run]
    finish: Callable[[Any, Any], None]
    describe: Callable[[Any, Any], Sequence[str]]
    resolve: Callable[[Any], Any] = lambda experiment: experiment
    images: Callable[[Any], np.ndarray | None] = lambda experiment: None
    lint: Callable[[Any], list[str]] = lambda experiment: []


def prepare(
    method: Method,
    experiment: Any,
    folder: Path,
    *,
    device: torch.device,
    hooks: Sequence[Hook] = (),
) -> Run:
    """The run of an experiment in `folder`, resumed where it has a checkpoint.

    An experiment that is refused leaves no folder behind.
    """
    experiment = method.resolve(experiment)
    check_folder(experiment, folder)  # before images are decoded
    images, changes = method.images(experiment), None
    if images is not None:
        changes = check_images(images, folder, accept=experiment.data.accept_changes)
    run = method.build(experiment, folder, device)
    claim_folder(experiment, folder)
    training = experiment.training
    run.keep_checkpoints = training.keep_checkpoints
    run.hooks = [
        LogHook(folder / "metrics.jsonl", every_images=training.log_every_images),
        *hooks,
        *run.hooks,
        CheckpointHook(every_images=training.checkpoint_every_images),
    ]
    run.resume()
    if images is not None:
        record_images(images, folder, changes, images_seen=run.images_seen)
    cut_back_records(run)
    return run


def run_to_end(
    method: Method,
    experiment: Any,
    folder: Path,
    *,
    device: torch.device,
    hooks: Sequence[Hook] = (),
    on_start: Callable[[Run], None] = lambda run: None,
) -> Run:
    """Train an experiment to its end, or to a request to stop, and write the result.

    `on_start` gets the run before its first step.
    """
    experiment = method.resolve(experiment)
    run = prepare(method, experiment, folder, device=device, hooks=hooks)
    on_start(run)
    if not run.finished:
        with stopping_on_signals(run):
            train(run)
    if run.finished:
        method.finish(experiment, run)
    return run
