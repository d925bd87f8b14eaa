"""Which images a run is trained on: a run that goes on with others is refused, or records it."""

import hashlib
import warnings
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sfumato.base.errors import ConfigError, DamagedDataError, DataWarning
from sfumato.base.files import read_json, whole_file, write_json
from sfumato.training.checkpoint import Checkpoints

ABOUT = "images.json"


@dataclass(frozen=True, kw_only=True)
class Changes:
    """How many images are `new`, how many `gone`, and how many have `changed` caption or class."""

    new: int
    gone: int
    changed: int

    def __bool__(self) -> bool:
        return bool(self.new or self.gone or self.changed)

    def __str__(self) -> str:
        return (
            f"{self.new:,} new, {self.gone:,} gone, {self.changed:,} with another caption or class"
        )


def compare_images(before: np.ndarray, now: np.ndarray) -> Changes:
    """What became of the images `before`: both (N, 2) uint64, of `data.records.trained_on`."""
    images = [Counter(rows[:, 0].tolist()) for rows in (before, now)]
    whole = [Counter(map(tuple, rows.tolist())) for rows in (before, now)]
    kept = (images[0] & images[1]).total()
    return Changes(
        new=len(now) - kept,
        gone=len(before) - kept,
        changed=kept - (whole[0] & whole[1]).total(),
    )


def check_images(images: np.ndarray, folder: Path, *, accept: bool) -> Changes | None:
    """How `images` differ from those that the run in `folder` was trained on; None where it has no
    record of them, or no checkpoint yet.

    `ConfigError` where they differ, unless `accept`: then a `DataWarning`.
    """
    if not (folder / ABOUT).exists() or not Checkpoints(folder / "checkpoints").counts():
        return None
    changes = compare_images(_read(folder), images)
    if not changes:
        return changes
    what = f"The training images of {folder} have changed: {changes}."
    if not accept:
        raise ConfigError(
            what,
            hint="Choose another --out for these images, or restore those that it was trained on. "
            "--set data.accept_changes=true goes on with these and records it.",
        )
    warnings.warn(f"{what} The run goes on with these.", DataWarning, stacklevel=2)
    return changes


def record_images(
    images: np.ndarray, folder: Path, changes: Changes | None, *, images_seen: int
) -> None:
    """Write what the run in `folder` is trained on from `images_seen` on: their hashes in an .npy
    file that is named by their own hash, and count, hash and every change so far in images.json."""
    digest = digest_of(images)
    file = folder / _name(digest)
    if changes is None or changes:
        about = {"count": len(images), "sha256": digest}
        history: list[dict[str, Any]] = []
        if changes is not None:
            history = read_json(folder / ABOUT)["changes"]
            history.append({"images_seen": images_seen, **asdict(changes), **about})
        with whole_file(file) as temporary, temporary.open("wb") as opened:
            np.save(opened, images)
        write_json(folder / ABOUT, {**about, "changes": history})
    for other in folder.glob(_name("*")):  # a kill may have come between the two
        if other != file:
            other.unlink()


def _name(digest: str) -> str:
    return f"images-{digest[:16]}.npy"


def _read(folder: Path) -> np.ndarray:
    try:
        digest = str(read_json(folder / ABOUT)["sha256"])
        images = np.load(folder / _name(digest), allow_pickle=False)
        if digest_of(images) == digest:
            return images
    except (ValueError, EOFError, OSError, KeyError, TypeError):
        pass
    raise DamagedDataError(
        f"{folder / ABOUT} and the .npy file beside it are not what the run recorded.",
        hint="Restore them. Without images.json, the run goes on and records its images anew.",
    )


def digest_of(images: np.ndarray) -> str:
    """A SHA-256 of the images that a run is trained on."""
    return hashlib.sha256(np.ascontiguousarray(images).tobytes()).hexdigest()
