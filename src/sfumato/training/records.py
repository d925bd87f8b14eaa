"""Records of a run as JSON lines.

`metrics.jsonl` is a function of the experiment: a resumed run has the same lines as an unbroken
one. What depends on the machine (speed, time) goes to `timing.jsonl`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
