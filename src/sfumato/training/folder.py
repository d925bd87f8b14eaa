"""Which experiment a run folder belongs to: nothing of another one is overwritten."""

import sys
from pathlib import Path

from sfumato.base.errors import ConfigError, InputError
from sfumato.base.files import JOB, is_temporary, make_folder, remove_incomplete, write_text
from sfumato.base.lock import LOCK
from sfumato.base.words import counted
from sfumato.config.overrides import build, differences, names_in, parse_yaml, read_text
from sfumato.config.schema import Experiment
from sfumato.training.checkpoint import Checkpoints

DATA = "data"
"""Inside a run folder: the images of a run that got them from Python instead of a source."""


def claim_folder(experiment: Experiment, folder: Path) -> None:
    """Make `folder` this experiment's; raises as `check_folder`."""
    check_folder(experiment, folder)
    make_folder(folder)
    inner = ("samples", "checkpoints", "trackers", DATA)
    for place in (folder, *(folder / name for name in inner)):
        remove_incomplete(place)
    file, text = folder / "experiment.yaml", experiment.to_yaml()
    if not file.exists() or file.read_text("utf-8") != text:
        write_text(file, text)


def check_folder(experiment: Experiment, folder: Path) -> None:
    """Check that `folder` is new, or a run of this experiment; nothing is written.

    `ConfigError` for a run of another experiment, or one that has trained for longer;
    `InputError` for a file.
    """
    check_is_run(folder)
    file = folder / "experiment.yaml"
    if file.exists():
        _check_same_experiment(experiment, file)
    _check_length(experiment, folder)


def check_is_run(folder: Path) -> None:
    """`ConfigError` or `InputError` for what is neither new, nor empty, nor a run folder."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file.", hint="Give --out a new folder.")
    if not folder.exists() or (folder / "experiment.yaml").exists():
        return
    if not all(map(_may_come_first, folder.iterdir())):
        raise ConfigError(
            f"{folder} exists and is not a run of sfumato.",
            hint="Choose a new or empty folder with --out; nothing there was touched.",
        )


def _may_come_first(path: Path) -> bool:
    """Whether `path` may be in a run folder before experiment.yaml."""
    return (
        path.name in (LOCK, JOB)
        or is_temporary(path)
        or (
            path.name == DATA
            and path.is_dir()
            and all(is_temporary(file) or file.suffix == ".parquet" for file in path.iterdir())
        )
    )


def _check_same_experiment(experiment: Experiment, file: Path) -> None:
    values = parse_yaml(read_text(file), str(file))
    written = set(names_in(values))
    recorded = build(type(experiment), values, source=str(file))
    changed = {
        name: values
        for name, values in differences(recorded, experiment).items()
        if not experiment.may_change(name)
    }
    if not changed:
        return
    shown = "; ".join(f"{n} is {a!r} there, {b!r} here" for n, (a, b) in changed.items())
    hints = ["Choose another --out, or the settings of that folder to resume it."]
    if set(changed) == {"data.source"}:
        hints.append(
            f"If the images were only moved, write their new place into data.source of {file}."
        )
    if new := [name for name in changed if name not in written]:
        hints.append(
            f"{file} was written before there was {', '.join(new)}: to resume, add there what the "
            "run was trained with."
        )
    raise ConfigError(f"{file.parent} holds another experiment: {shown}.", hint=" ".join(hints))


def _check_length(experiment: Experiment, folder: Path) -> None:
    """A run cannot be shortened to before its newest checkpoint: its record would be wrong."""
    checkpoints = Checkpoints(folder / "checkpoints")
    images, batch_size = experiment.length(checkpoints.data_set_size() or sys.maxsize)
    seen = max(checkpoints.counts(), default=0)
    if seen - batch_size >= images:
        raise ConfigError(
            f"{folder} has trained on {counted(seen, 'image')} already, more than the {images:,} "
            "asked for.",
            hint="Give a larger training.images (or training.epochs), or another --out; nothing "
            "there was touched.",
        )
