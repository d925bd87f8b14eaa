"""Which numbers, pictures and files of a run folder a tracker gets, and by which names."""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sfumato.base.files import sha256_of_file
from sfumato.training.checkpoint import Checkpoints
from sfumato.training.records import ACCURACY, HELD_OUT, RECONSTRUCTION, sample_grids

Record = Mapping[str, Any]
CLOCK = ("images", "step", "seconds", "processors")


def numbers(record: Record, prefix: str = "") -> dict[str, float]:
    """The finite numbers of a record, those in it by `name/name`, without `CLOCK`."""
    found: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            found |= numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name not in CLOCK and math.isfinite(value):
            found[prefix + name] = float(value)
    return found


def shares(record: Record) -> dict[str, float]:
    """Class accuracies of a quick evaluation, by guidance scale."""
    return {f"accuracy/w{scale}": n / record["count"] for scale, n in record["correct"].items()}


SOURCES: Mapping[str, Callable[[Record], dict[str, float]]] = {
    "metrics.jsonl": numbers,
    "timing.jsonl": numbers,
    ACCURACY: shares,
    HELD_OUT: lambda record: numbers(record, "held_out/"),
    RECONSTRUCTION: lambda record: numbers(record, "reconstruction/"),
}
"""Files of records, and how the numbers of one are made from it."""


def pictures(folder: Path, *, after: int) -> Iterator[tuple[int, Path]]:
    """The grids of samples made after more than `after` images, with these counts."""
    for images_seen, file in sample_grids(folder):
        if images_seen > after:
            yield images_seen, file


def artifacts(
    folder: Path, known: Mapping[str, str], *, finished: bool
) -> Iterator[tuple[str, Path, str]]:
    """Files that are new or changed, with their names and hashes: the experiment, what checkpoints
    consist of, cards with metrics, and the averaged weights of a finished run. Other weights stay
    in the run folder: a checkpoint has several times as many bytes as its average."""
    found = [
        file
        for pattern in ("experiment.yaml", "checkpoints/images-*/state.json", "*/card.json")
        for file in sorted(folder.glob(pattern))
    ]
    if finished:
        averages = [
            one.path / "average.safetensors" for one in Checkpoints(folder / "checkpoints").all()
        ]
        found += [one for one in averages if one.exists()][-1:]
    for file in found:
        name = file.relative_to(folder).as_posix()
        try:
            sha = sha256_of_file(file)
        except FileNotFoundError:  # a checkpoint that was just removed
            continue
        if known.get(name) != sha:
            yield name, file, sha
