"""The weights that a run begins with: its folder has a copy, so it needs the origin no more."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from sfumato.base.errors import ConfigError, DamagedDataError
from sfumato.base.files import read_json, sha256_of_file, whole_folder, write_json
from sfumato.base.weights import weights_digest
from sfumato.config.schema import DiffusionExperiment
from sfumato.generation.model import Model
from sfumato.training.state import load_state, save_state

FOLDER = "origin"
"""In a run folder: the weights that it began with, and origin.json with their hashes."""
_FILE, _ABOUT = "unet.safetensors", "origin.json"


def weights_sha256(model: Model) -> str:
    """The hash of a model's weights: the recorded one, by which its images and cards name it."""
    return model.provenance.get("weights_sha256") or weights_digest(model.network).hexdigest()


def open_origin(path: str) -> Model:
    """The model at `path`, on the CPU."""
    from sfumato.generation.loading import load

    return load(path, device="cpu")


def origin_state(experiment: DiffusionExperiment, run: Path) -> tuple[Mapping[str, Tensor], Path]:
    """The weights that a run begins with, and where they were read: its own copy, else the model
    that `experiment` names. `ConfigError` where that has other weights by now, `DamagedDataError`
    for a copy that is not the one that was written."""
    origin, folder = experiment.origin, run / FOLDER
    assert origin is not None
    if folder.is_dir():
        file = folder / _FILE
        recorded = read_json(folder / _ABOUT)
        if not file.is_file() or sha256_of_file(file) != recorded["file_sha256"]:
            raise DamagedDataError(
                f"{file} is damaged: its sha256 is not the recorded one.",
                hint="Restore it from a backup, or train in a new folder.",
            )
        return load_state(file), file
    model = open_origin(origin.model)
    if (found := weights_sha256(model)) != origin.weights_sha256:
        raise ConfigError(
            f"{origin.model} has other weights than the run is to begin with: sha256 {found[:16]} "
            f"instead of {origin.weights_sha256[:16]}.",
            hint="Restore that model, or train from it as it is now, in a new folder.",
        )
    return model.network.state_dict(), Path(origin.model)


def keep_origin(experiment: DiffusionExperiment, run: Path) -> None:
    """Copy the weights that a run begins with into its folder, if they are not there."""
    if experiment.origin is None or (run / FOLDER).is_dir():
        return
    state, _ = origin_state(experiment, run)
    with whole_folder(run / FOLDER) as temporary:
        save_state(state, temporary / _FILE)
        about = experiment.origin.model_dump(mode="json")
        write_json(temporary / _ABOUT, {**about, "file_sha256": sha256_of_file(temporary / _FILE)})
