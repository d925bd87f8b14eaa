"""What a run's training took, by its records of speed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sfumato.config.schema import DiffusionExperiment, load_experiment
from sfumato.training.checkpoint import Checkpoint, Checkpoints
from sfumato.training.records import read_records


def seconds_of(records: Sequence[Mapping[str, Any]], images_seen: int) -> float | None:
    """Seconds of training up to `images_seen`; None without records.

    Each start of a run counts its seconds from 0 and records the mean speed since. Images that no
    record covers, such as those of a first step, are taken to be as fast as the others.
    """
    sessions: list[Mapping[str, Any]] = []
    for one in records:
        if sessions and one["images"] > images_seen:
            break
        if sessions and one["seconds"] >= sessions[-1]["seconds"]:
            sessions.pop()
        sessions.append(one)
    seconds = sum(one["seconds"] for one in sessions)
    images = sum(one["seconds"] * one["images_per_second"] for one in sessions)
    return seconds * images_seen / images if images > 0 else None


def core_seconds(folder: Path | None, images_seen: int) -> tuple[float | None, str]:
    """Seconds of training up to `images_seen` times the cores or accelerators that it ran on, and
    what they are seconds of: a core, or the name of an accelerator.

    None where they are not known: without records, and for a run that goes on from another model,
    a student, and one in the latents of an autoencoder, whose records are those of a last stage.
    """
    if folder is None or _is_last_stage(folder):
        return None, ""
    seconds = seconds_of(read_records(folder / "timing.jsonl"), images_seen)
    state = Checkpoint(Checkpoints(folder / "checkpoints").path(images_seen)).state
    if seconds is None or "device" not in state:  # written before checkpoints said so
        return None, ""
    machine, processes = state["environment"], state["processes"]
    if state["device"] == "cpu":
        return seconds * processes * machine["threads"], "core"
    return seconds * processes, machine["accelerator"] or state["device"]


def _is_last_stage(folder: Path) -> bool:
    experiment = load_experiment(folder / "experiment.yaml")
    return isinstance(experiment, DiffusionExperiment) and (
        experiment.origin is not None
        or experiment.distillation is not None
        or experiment.codec.kind == "vae"
    )
