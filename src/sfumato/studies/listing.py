"""What a look at run folders tells: state, progress and the best figure of each, without torch.

Files are read as they are; a folder that cannot be understood is listed with what is wrong.
"""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from sfumato.base.errors import InputError, SfumatoError
from sfumato.base.files import read_json
from sfumato.base.lock import is_locked
from sfumato.config.schema import Experiment, load_experiment
from sfumato.evaluation.metrics.shares import wilson_limits
from sfumato.training.records import ACCURACY, epoch_size, read_records

State = Literal["training", "interrupted", "finished", "damaged"]
UNREADABLE = (SfumatoError, OSError, ValueError, KeyError, TypeError, AttributeError)
"""What reading a file of another content than expected raises."""


@dataclass(frozen=True, kw_only=True)
class BestFigure:
    """A class accuracy of `count` images at w = `guidance_scale`, None of a CAN, with its 95 %
    interval; `source`: the file in the run folder that has it."""

    value: float
    low: float
    high: float
    count: int
    guidance_scale: float | None
    source: str

    @property
    def text(self) -> str:
        """`98.5 (97.5-99.1)`, in per cent."""
        value, low, high = (f"{100 * share:.1f}" for share in (self.value, self.low, self.high))
        return f"{value} ({low}-{high})"


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """One run folder. `total_images` is None where the number of training images is not recorded;
    `loss`: the newest that is finite; `problems`: what could not be read."""

    folder: str
    state: State
    preset: str = ""
    images_seen: int = 0
    total_images: int | None = None
    loss: float | None = None
    best: BestFigure | None = None
    date: str = ""
    """Of the last change of its records, UTC."""
    problems: tuple[str, ...] = ()


def summaries(folder: Path) -> list[RunSummary]:
    """The runs at or below `folder`, the newest first. `InputError` where it is no folder."""
    if not folder.is_dir():
        raise InputError(
            f"{folder} is a file." if folder.exists() else f"{folder} does not exist.",
            hint="Give a folder that holds runs of `sfumato train`.",
        )
    found = [replace(summary(run), folder=_name(run, folder)) for run in run_folders(folder)]
    return sorted(found, key=lambda one: (one.date, one.folder), reverse=True)


def _name(run: Path, folder: Path) -> str:
    return str(run) if run == folder else str(run.relative_to(folder))


def run_folders(folder: Path) -> Iterator[Path]:
    """Run folders at or below `folder`, damaged ones among them; a run's own folders are left."""
    for place, inner, files in os.walk(folder):
        if "experiment.yaml" in files or "metrics.jsonl" in files or "checkpoints" in inner:
            inner.clear()
            yield Path(place)
        inner[:] = sorted(name for name in inner if not name.startswith("."))


def summary(run: Path) -> RunSummary:
    """What the files of one run folder say."""
    problems: list[str] = []
    experiment = experiment_of(run, problems)
    saved = saved_images(run, problems)
    records = _records(run / "metrics.jsonl", problems)
    locked = is_locked(run)
    seen = max([saved or 0, *(one["images"] for one in records)]) if locked else saved or 0
    total = None if experiment is None else total_of(run, experiment)
    losses = (one["loss"] for one in reversed(records) if one["images"] <= seen)
    state: State = "interrupted"
    if locked:
        state = "training"
    elif experiment is None or saved is None:
        state = "damaged"
    elif total is not None and seen >= total:
        state = "finished"
    return RunSummary(
        folder=str(run),
        state=state,
        preset="" if experiment is None else experiment.name,
        images_seen=seen,
        total_images=total,
        loss=next((loss for loss in losses if math.isfinite(loss)), None),
        best=max(_figures(run, problems), key=lambda one: (one.low, one.count), default=None),
        date=_date(run),
        problems=tuple(problems),
    )


def experiment_of(run: Path, problems: list[str]) -> Experiment | None:
    try:
        return load_experiment(str(run / "experiment.yaml"))
    except UNREADABLE as error:
        problems.append(getattr(error, "what", str(error)))
        return None


def saved_images(run: Path, problems: list[str]) -> int | None:
    """Images seen at the newest checkpoint whose files have the recorded sizes; 0 before the first
    checkpoint, None where all are damaged."""
    folders = sorted((run / "checkpoints").glob("images-*"), reverse=True)
    for folder in folders:
        try:
            state = read_json(folder / "state.json")
            for part, about in state["files"].items():
                size = (folder / f"{part}.safetensors").stat().st_size
                if size != about["bytes"]:
                    raise ValueError(f"{part}.safetensors has {size:,} bytes")
            return int(state["images_seen"])
        except UNREADABLE as error:
            what = getattr(error, "what", str(error))
            problems.append(f"checkpoint {folder.name} is damaged: {what}")
    return None if folders else 0


def _records(file: Path, problems: list[str]) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that have a loss."""
    try:
        return [
            {"images": int(one["images"]), "loss": float(one["loss"])} for one in read_records(file)
        ]
    except UNREADABLE as error:
        problems.append(f"{file.name} is damaged: {error!r}")
        return []


def total_of(run: Path, experiment: Experiment) -> int | None:
    """Length of the run in images: by its epochs, where images.json counts the training images.
    Those of a student are passes over trajectories, whose number its checkpoints tell."""
    if getattr(experiment, "distillation", None) is not None:
        count = _trajectories(run)
    else:
        try:
            count = int(read_json(run / "images.json")["count"])
        except UNREADABLE:
            count = 0
    total, _ = experiment.length(count)
    return total or None


def _trajectories(run: Path) -> int:
    """Trajectories of an epoch of a student, by its newest checkpoint past the first; 0 before."""
    for folder in sorted((run / "checkpoints").glob("images-*"), reverse=True):
        try:
            if size := epoch_size(read_json(folder / "state.json")):
                return size
        except UNREADABLE:
            continue
    return 0


def _figures(run: Path, problems: list[str]) -> Iterator[BestFigure]:
    """The class accuracies in a run folder: quick evaluations, tuning and cards."""
    files = {ACCURACY: _quick, "tuning/tuning.json": _tuned}
    cards = sorted(run.glob("*/card.json"))
    for name, read in {**files, **{str(card.relative_to(run)): _card for card in cards}}.items():
        if not (run / name).exists():
            continue
        try:
            yield from list(read(run / name, name))
        except UNREADABLE as error:
            problems.append(f"{name} is damaged: {getattr(error, 'what', repr(error))}")


def _quick(file: Path, name: str) -> Iterator[BestFigure]:
    for record in read_records(file):
        count = int(record["count"])
        for scale, right in record["correct"].items():
            low, high = wilson_limits(right, count)
            value = right / count
            yield BestFigure(
                value=value,
                low=low,
                high=high,
                count=count,
                guidance_scale=float(scale),
                source=name,
            )


def _tuned(file: Path, name: str) -> Iterator[BestFigure]:
    choice = read_json(file)["choice"]
    yield _of_estimate(choice["class_accuracy"], choice["guidance_scale"], name)


def _card(file: Path, name: str) -> Iterator[BestFigure]:
    for row in read_json(file)["rows"]:
        if "class_accuracy" in row["metrics"] and "seeds" in row["settings"]:  # it was sampled
            found = row["metrics"]["class_accuracy"]
            yield _of_estimate(found, row["settings"].get("guidance_scale"), name)


def _of_estimate(found: dict[str, Any], scale: float | None, name: str) -> BestFigure:
    """A class accuracy that was written with its interval."""
    return BestFigure(
        value=float(found["value"]),
        low=float(found["low"]),
        high=float(found["high"]),
        count=int(found["count"]),
        guidance_scale=None if scale is None else float(scale),
        source=name,
    )


def _date(run: Path) -> str:
    """When its records last changed, as ISO 8601 in UTC."""
    names = ("experiment.yaml", "metrics.jsonl", "timing.jsonl", "checkpoints")
    times = [(run / name).stat().st_mtime for name in names if (run / name).exists()]
    return datetime.fromtimestamp(max(times), UTC).isoformat("T", "seconds")


def as_json(found: list[RunSummary]) -> str:
    """The summaries as a JSON list."""
    from dataclasses import asdict

    return json.dumps([asdict(one) for one in found], indent=2)
