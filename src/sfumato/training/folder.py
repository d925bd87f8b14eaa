"""Whose a run folder is: nothing of another experiment is overwritten."""

import sys
from pathlib import Path

from sfumato.base.errors import ConfigError, InputError
from sfumato.base.files import is_temporary, make_folder, remove_incomplete, write_text
from sfumato.config.overrides import build, differences, names_in, parse_yaml, read_text
from sfumato.config.schema import Experiment
from sfumato.training.checkpoint import Checkpoints


def claim_folder(experiment: Experiment, folder: Path) -> None:
    """Make `folder` this experiment's, or check that it is; nothing of another is overwritten."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file.", hint="Give --out a new folder.")
    file = folder / "experiment.yaml"
    if file.exists():
        values = parse_yaml(read_text(file), str(file))
        written = set(names_in(values))
        there = build(type(experiment), values, source=str(file))
        other = {
            name: values
            for name, values in differences(there, experiment).items()
            if not any(
                name == key or name.startswith(f"{key}.") for key in experiment.changeable_on_resume
            )
        }
        if other:
            shown = "; ".join(f"{n} is {a!r} there, {b!r} here" for n, (a, b) in other.items())
            hints = (
                f" Images that only moved: write their new place into data.source of {file}."
                if set(other) == {"data.source"}
                else ""
            )
            newer = [name for name in other if name not in written]
            if newer:
                hints += (
                    f" {file} was written before there was {', '.join(newer)}: to go on, write "
                    "there what the run was trained with."
                )
            raise ConfigError(
                f"{folder} holds another experiment: {shown}.",
                hint="Choose another --out, or the settings of that folder to go on with it."
                + hints,
            )
    elif folder.exists() and not all(is_temporary(path) for path in folder.iterdir()):
        raise ConfigError(
            f"{folder} exists and is not a run of sfumato.",
            hint="Choose a new or empty folder with --out; nothing there was touched.",
        )
    _refuse_a_length_already_passed(experiment, folder)
    make_folder(folder)
    for place in (folder, folder / "samples", folder / "checkpoints"):
        remove_incomplete(place)
    text = experiment.to_yaml()
    if not file.exists() or file.read_text("utf-8") != text:
        write_text(file, text)


def _refuse_a_length_already_passed(experiment: Experiment, folder: Path) -> None:
    """A run cannot be shortened to before its newest checkpoint; its record would be untrue."""
    checkpoints = Checkpoints(folder / "checkpoints")
    images, batch_size = experiment.length(checkpoints.data_set_size() or sys.maxsize)
    seen = max(checkpoints.counts(), default=0)
    if seen - batch_size >= images:
        raise ConfigError(
            f"{folder} has trained on {seen:,} images already, more than the {images:,} asked for.",
            hint="Give a larger training.images (or training.epochs), or another --out; nothing "
            "there was touched.",
        )
