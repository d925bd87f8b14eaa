"""What a run's training took, by its records of speed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sfumato.config.schema import DiffusionExperiment, load_experiment
from sfumato.training.checkpoint import Checkpoint, Checkpoints
from sfumato.training.records import read_records


def processor_seconds(records: Sequence[Mapping[str, Any]], images_seen: int) -> float | None:
    """Seconds of training up to `images_seen`, each times the processors that it ran on; None
    without records, and where one does not say on how many.

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
    if not all("processors" in one for one in sessions):
        return None
    seconds = sum(one["seconds"] * one["processors"] for one in sessions)
    images = sum(one["seconds"] * one["images_per_second"] for one in sessions)
    return seconds * images_seen / images if images > 0 else None


def core_seconds(folder: Path | None, images_seen: int) -> tuple[float | None, str]:
    """Seconds of training up to `images_seen` times the cores or accelerators that it ran on, and
    what they are seconds of: a core, or the name of an accelerator. The training of the VAE that a
    run has its latents from is included.

    None where they are not known: without records, for a run that goes on from another model, for a
    student, and in the latents of a VAE that is no run of this machine.
    """
    if folder is None:
        return None, ""
    experiment = load_experiment(folder / "experiment.yaml")
    seconds, device = _own_core_seconds(folder, images_seen)
    if not isinstance(experiment, DiffusionExperiment) or seconds is None:
        return seconds, device
    if experiment.origin is not None or experiment.distillation is not None:
        return None, ""
    if experiment.codec.kind != "vae":
        return seconds, device
    before, device_before = _of_vae(Path(experiment.codec.vae))
    if before is None or device_before != device:
        return None, ""
    return before + seconds, device


def _of_vae(folder: Path) -> tuple[float | None, str]:
    """Of a finished run of `sfumato train vae`; None of anything else."""
    counts = Checkpoints(folder / "checkpoints").counts()
    return _own_core_seconds(folder, counts[-1]) if counts else (None, "")


def _own_core_seconds(folder: Path, images_seen: int) -> tuple[float | None, str]:
    seconds = processor_seconds(read_records(folder / "timing.jsonl"), images_seen)
    state = Checkpoint(Checkpoints(folder / "checkpoints").path(images_seen)).state
    if seconds is None or "device" not in state:  # written before checkpoints said so
        return None, ""
    if state["device"] == "cpu":
        return seconds, "core"
    return seconds, state["environment"]["accelerator"] or state["device"]
