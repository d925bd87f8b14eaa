"""Checkpoints: written whole or not at all, verified when read, never the last good one removed.

A checkpoint is a folder `images-000012800/` with one safetensors file for each part of the
objective and a `state.json` that holds the clock, the hooks' state, the sha256 of every file, and
the versions, threads, kind of device and number of processes it was made with.
"""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from sfumato.base.environment import environment
from sfumato.base.errors import ConfigError, DamagedDataError, InputError, ResumeWarning
from sfumato.base.files import (
    read_json,
    remove_folder,
    sha256_of_file,
    whole_folder,
    write_json,
)
from sfumato.base.words import counted
from sfumato.training.records import epoch_size
from sfumato.training.state import Stateful, load_state, save_state

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint folder."""

    path: Path
    _verified: set[str] = field(default_factory=set, compare=False, repr=False)

    @cached_property
    def state(self) -> dict[str, Any]:
        """The content of `state.json`; `DamagedDataError` or `InputError` where it is missing."""
        state = read_json(self.path / "state.json")
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise DamagedDataError(f"{self.path / 'state.json'} is not a checkpoint's state.")
        return state

    @property
    def images_seen(self) -> int:
        return self.state["images_seen"]

    def sha256(self, part: str) -> str:
        """Hash of one part's file, as recorded when it was written."""
        return self.state["files"][part]["sha256"]

    def verify(self, part: str) -> Path:
        """The file of `part`, if it is the one that was written; else `DamagedDataError`.

        It is hashed once for this object.
        """
        file = self.path / f"{part}.safetensors"
        if part in self._verified:
            return file
        recorded = self.state["files"].get(part)
        if recorded is None:
            raise DamagedDataError(f"{self.path} has no part named '{part}'.")
        if not file.exists():
            raise DamagedDataError(f"{file} is missing.")
        size = file.stat().st_size
        if size != recorded["bytes"]:
            raise DamagedDataError(
                f"{file} is truncated: {size:,} of {recorded['bytes']:,} bytes."
                if size < recorded["bytes"]
                else f"{file} has {size:,} bytes instead of {recorded['bytes']:,}."
            )
        if sha256_of_file(file) != recorded["sha256"]:
            raise DamagedDataError(f"{file} is damaged: its sha256 is not the recorded one.")
        self._verified.add(part)
        return file

    def states(self, parts: Iterable[str]) -> dict[str, Any]:
        """Verify every part, then read the state dictionary of each."""
        files = {name: self.verify(name) for name in parts}
        return {name: load_state(file) for name, file in files.items()}


def load_part(part: Stateful, state: Mapping[str, Any], *, file: Path) -> None:
    """Load a module's or optimizer's state, which was read from `file`; `ConfigError` where the
    architecture is another."""
    if isinstance(part, torch.nn.Module):
        expected = {name: tuple(value.shape) for name, value in part.state_dict().items()}
        found = {name: tuple(value.shape) for name, value in state.items()}
        if expected != found:
            weight = next(n for n in {**expected, **found} if expected.get(n) != found.get(n))
            raise ConfigError(
                f"{file} holds another architecture: {weight} is {found.get(weight, 'absent')} "
                f"there and {expected.get(weight, 'absent')} in this model.",
                hint="Use the experiment.yaml that the checkpoint was made with.",
            )
    part.load_state_dict(state)
    if isinstance(part, torch.optim.Optimizer):
        _restore_memory_format(part)


def _restore_memory_format(optimizer: torch.optim.Optimizer) -> None:
    """Moments in the memory format of their weights, as they were before they went to a file."""
    for weight, moments in optimizer.state.items():
        if weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last):
            for name, value in moments.items():
                if isinstance(value, torch.Tensor) and value.shape == weight.shape:
                    moments[name] = value.contiguous(memory_format=torch.channels_last)


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(
        self, folder: Path, *, keep: int = 2, pinned: frozenset[int] = frozenset()
    ) -> None:
        """`keep`: the newest that stay; `pinned`: images seen of those that stay in any case."""
        self.folder = folder
        self.keep = keep
        self._pinned = {self.path(images_seen) for images_seen in pinned}

    def path(self, images_seen: int) -> Path:
        return self.folder / f"images-{images_seen:09d}"

    def all(self) -> list[Checkpoint]:
        """Every checkpoint folder, oldest first; not yet verified."""
        return [
            Checkpoint(path)
            for path in sorted(self.folder.glob("images-*"))
            if path.name.removeprefix("images-").isdecimal()  # not a copy that somebody made
        ]

    def counts(self) -> list[int]:
        """Images seen at each, oldest first, by the folders' names: their files may be damaged."""
        return [int(one.path.name.removeprefix("images-")) for one in self.all()]

    def data_set_size(self) -> int | None:
        """Images of an epoch, by the records of a checkpoint; None before the first is full."""
        for checkpoint in reversed(self.all()):
            try:
                size = epoch_size(checkpoint.state)
            except (DamagedDataError, InputError):
                continue
            if size is not None:
                return size
        return None

    def save(
        self, states: Mapping[str, Any], *, images_seen: int, extra: Mapping[str, Any]
    ) -> Checkpoint:
        """Write a checkpoint of the state dictionary of each part; once it is whole, remove what
        `keep` no longer covers."""
        path = self.path(images_seen)
        with whole_folder(path) as temporary:
            files = {}
            for name, state in states.items():
                file = temporary / f"{name}.safetensors"
                save_state(state, file)
                files[name] = {"sha256": sha256_of_file(file), "bytes": file.stat().st_size}
            about = {
                "format": FORMAT,
                "images_seen": images_seen,
                "files": files,
                "environment": environment(),
                **extra,
            }
            write_json(temporary / "state.json", about)
        for newer in self.all():
            if newer.path.name > path.name:  # damaged: the run went on from before it
                remove_folder(newer.path)
        self.remove_old(before=path)
        return Checkpoint(path)

    def remove_old(self, *, before: Path) -> None:
        """Keep `before`, a checkpoint known to be whole, and the newest `keep - 1` of the older.

        Those that are pinned stay and do not count. So the last good checkpoint is never removed:
        a better one exists by then.
        """
        older = [
            checkpoint
            for checkpoint in self.all()
            if checkpoint.path.name < before.name and checkpoint.path not in self._pinned
        ]
        for checkpoint in older[: max(0, len(older) - (self.keep - 1))]:
            remove_folder(checkpoint.path)

    def latest(self, *parts: str) -> Checkpoint | None:
        """The newest checkpoint whose `parts` (all without them) are whole; None if there is none.

        A damaged newest one is passed over with a `ResumeWarning`; `DamagedDataError` where every
        checkpoint is damaged.
        """
        damage: DamagedDataError | InputError | None = None
        for checkpoint in reversed(self.all()):
            try:
                for part in parts or checkpoint.state["files"]:
                    checkpoint.verify(part)
            except (DamagedDataError, InputError) as error:
                damage = damage or error
                continue
            if damage is not None:
                warnings.warn(
                    f"{damage.what} Using the checkpoint before it, at "
                    f"{counted(checkpoint.images_seen, 'image')}.",
                    ResumeWarning,
                    stacklevel=2,
                )
            return checkpoint
        if damage is not None:
            raise DamagedDataError(
                f"{damage.what} No other checkpoint is whole.",
                hint=f"Restore the file from a backup, or remove {self.folder} to start again.",
            ) from damage
        return None


def warn_of_changed_environment(recorded: Mapping[str, Any]) -> None:
    """A resumed run equals an unbroken one bit for bit only where these are the same."""
    now = environment()
    changed = [
        f"{name} {recorded[name]} -> {now[name]}"
        for name in now
        if name in recorded and recorded[name] != now[name]
    ]
    if changed:
        warnings.warn(
            f"This machine differs from the one the checkpoint was made on ({', '.join(changed)}): "
            "the run is resumed, but not bit for bit as it would have been there.",
            ResumeWarning,
            stacklevel=2,
        )
