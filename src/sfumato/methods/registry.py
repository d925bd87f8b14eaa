"""The methods of training: one file and one entry each."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sfumato.config.schema import Experiment
from sfumato.generation.loading import resolve_device
from sfumato.methods.can import CAN
from sfumato.methods.classifier import CLASSIFIER
from sfumato.methods.clip import CLIP
from sfumato.methods.diffusion import DIFFUSION
from sfumato.methods.vae import VAE
from sfumato.training.loop import Hook, Run
from sfumato.training.run import Method, prepare, run_to_end

METHODS: dict[str, Method] = {
    "diffusion": DIFFUSION,
    "clip": CLIP,
    "classifier": CLASSIFIER,
    "can": CAN,
    "vae": VAE,
}


def method_of(experiment: Experiment) -> Method:
    """The method that trains `experiment`."""
    return next(method for method in METHODS.values() if method.schema is type(experiment))


def prepare_run(
    experiment: Experiment, folder: Path, *, device: str = "auto", hooks: Sequence[Hook] = ()
) -> Run:
    """The run of an experiment in `folder`, resumed where it has a checkpoint."""
    where = resolve_device(device)
    return prepare(method_of(experiment), experiment, folder, device=where, hooks=hooks)


def run_experiment(
    experiment: Experiment,
    folder: Path,
    *,
    device: str = "auto",
    hooks: Sequence[Hook] = (),
    look: Callable[[Any], Any] = lambda experiment: experiment,
    on_start: Callable[[Run], None] = lambda run: None,
) -> Run:
    """Train an experiment to its end, or to a request to stop, and write the result; `look` and
    `on_start` as in `run_to_end`."""
    return run_to_end(
        method_of(experiment),
        experiment,
        folder,
        device=resolve_device(device),
        hooks=hooks,
        look=look,
        on_start=on_start,
    )
