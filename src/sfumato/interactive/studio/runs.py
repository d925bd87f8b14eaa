"""What the train tab shows: the runs in a folder, read as they are. Nothing is trained here."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sfumato.interactive.serving import Refusal, inside
from sfumato.studies.listing import run_folders, summaries
from sfumato.training.records import ACCURACY, read_records

SAMPLES = "samples"
_POINTS = 400
"""Of a curve; a screen shows no more."""
_NEWEST = 6


def listed(folder: Path) -> list[dict[str, Any]]:
    """A summary of each run, the newest first; none where the folder does not exist."""
    return [asdict(one) for one in summaries(folder)] if folder.is_dir() else []


def run_path(folder: Path, name: str) -> Path:
    """The folder of a run by its name in the list; `Refusal` (404) for any other."""
    for run in run_folders(folder):
        if name in (str(run), str(run.relative_to(folder))):
            return run
    raise Refusal(f"There is no run '{name[:80]}'.", status=404)


def curve(run: Path) -> dict[str, Any]:
    """Losses, accuracies and the newest grids of samples of a run."""
    records = [one for one in read_records(run / "metrics.jsonl") if _has_loss(one)]
    every = -(-len(records) // _POINTS) or 1
    shown = records[::-1][::every][::-1]  # the last one is always among them
    samples = sorted(one.name for one in (run / SAMPLES).glob("*.png"))
    return {
        "losses": [[one["images"], one["loss"]] for one in shown],
        "accuracies": _accuracies(run),
        "samples": samples[::-1][:_NEWEST],
    }


def _has_loss(record: dict[str, Any]) -> bool:
    """Whether it has one that is a number: JSON for a browser has no NaN."""
    loss, images = record.get("loss"), record.get("images")
    return isinstance(loss, int | float) and math.isfinite(loss) and isinstance(images, int)


def _accuracies(run: Path) -> list[list[float]]:
    """[images, best share of classes] of the quick evaluations."""
    found = []
    for record in read_records(run / ACCURACY):
        if record.get("count") and record.get("correct"):
            best = max(record["correct"].values()) / record["count"]
            found.append([record["images"], best])
    return found


def sample_path(run: Path, name: str) -> Path:
    """A grid of samples; `Refusal` (404) for one that is not there."""
    path = inside(run / SAMPLES, name)
    if path.suffix != ".png" or not path.is_file():
        raise Refusal(f"There is no picture '{name[:80]}'.", status=404)
    return path
