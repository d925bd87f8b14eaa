"""Records of a run as JSON lines.

`metrics.jsonl` is a function of the experiment: a resumed run has the same lines as an unbroken
one. What depends on the machine (speed, time) goes to `timing.jsonl`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from sfumato.base.files import make_folder, write_text, writing

ACCURACY = "accuracy.jsonl"
"""Quick evaluations of a run: images seen, and `correct` of `count` images by guidance scale."""

HELD_OUT = "held_out.jsonl"
"""Of a student: images seen, and the loss on trajectories that are not trained on."""

RECONSTRUCTION = "reconstruction.jsonl"
"""Of an autoencoder: images seen, and how well test images come back, beside PCA and bicubic."""


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    make_folder(path.parent)
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def read_records(path: Path) -> list[dict[str, Any]]:
    """Every whole line; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text("utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def cut_back(path: Path, *, images_seen: int) -> None:
    """Keep only the records up to `images_seen`: what the resumed run has really done."""
    if path.exists():
        kept = [record for record in read_records(path) if record["images"] <= images_seen]
        text = "".join(json.dumps(record) + "\n" for record in kept)
        if text != path.read_text("utf-8"):
            write_text(path, text)


class Tail:
    """The records of a file that grows, from the first of more than `after` images on.

    Records are by rising `images`, so the first is found without reading those before it.
    """

    def __init__(self, path: Path, *, after: int = -1) -> None:
        self.path = path
        self._after = after
        self._offset: int | None = None

    def read(self, *, most_bytes: int = 2**18) -> list[dict[str, Any]]:
        """Whole records that were not read before, about `most_bytes` of them; none where there is
        no file. A file that was cut back is read on from its end."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return []
        with file:
            if self._offset is None:
                self._offset = offset_after(file, self._after)
            self._offset = min(self._offset, file.seek(0, 2))
            found: list[dict[str, Any]] = []
            while not found:
                file.seek(self._offset)
                whole, newline, _ = file.read(most_bytes).rpartition(b"\n")
                if not newline:
                    break
                self._offset += len(whole) + len(newline)
                # Where the search met a line that was being written, some are of fewer images.
                records = map(json.loads, whole.splitlines())
                found = [record for record in records if record["images"] > self._after]
            return found


def offset_after(file: IO[bytes], images_seen: int) -> int:
    """Where in a file of records the first of more than `images_seen` images begins, by bisection;
    its length where there is none."""
    low, high = 0, file.seek(0, 2)
    while low < high:
        middle = (low + high) // 2
        file.seek(max(0, middle - 1))
        if middle:
            file.readline()  # to the first line that begins at `middle` or later
        start = file.tell()
        line = file.readline()
        if line.endswith(b"\n") and json.loads(line)["images"] <= images_seen:
            low = start + len(line)
        else:
            high = middle
    return low


def sample_grids(folder: Path) -> list[tuple[int, Path]]:
    """The grids of samples that a run made, each with the images seen, in this order."""
    found = []
    for file in (folder / "samples").glob("images-*.png"):
        number = file.stem.removeprefix("images-")
        if number.isdecimal():  # not a copy that somebody put beside them
            found.append((int(number), file))
    return sorted(found)


def epoch_size(state: Mapping[str, Any]) -> int | None:
    """Images of an epoch, by the state.json of a checkpoint; None where the first is not over."""
    place = state["position"]
    return (state["images_seen"] - place["samples"]) // place["epoch"] if place["epoch"] else None
