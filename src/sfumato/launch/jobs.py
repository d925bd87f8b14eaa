"""Jobs and the folders that they train in: what `sfumato submit` leaves there, and where it runs.

A job's folder is that of a run, or of a sweep, which has a `sweep.json` and a run in each folder
inside.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sfumato.base.environment import command, now
from sfumato.base.errors import InputError
from sfumato.base.files import JOB, make_folder, read_json, write_json, write_text
from sfumato.launch.slurm import QueuedJob, queued_jobs, submit
from sfumato.studies.listing import RunSummary, summary

SCRIPT, RECORD, SWEEP = "job.sh", "job.json", "sweep.json"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job that was submitted, or one task of an array, and what the folder of its run says, None
    before the run has begun; `queued` is None once it has left the queue."""

    job: str
    folder: str
    run: RunSummary | None
    queued: QueuedJob | None


def submit_job(
    folder: Path, script: str, *, runs: Mapping[str, Sequence[str]] | None = None
) -> str:
    """Submit the script of a job that trains in `folder`, and keep it there; the job's number.
    `runs`: those of a sweep, which its first task may ask for at once.

    `InputError` where a job of this folder is in the queue, or sbatch refuses; what was made for it
    is then removed.
    """
    _refuse_second(folder)
    place = folder / JOB
    new = [one for one in (place, *place.parents) if not one.exists()]
    make_folder(place)  # SLURM does not make the folder of a job's output
    first = runs is not None and not (folder / SWEEP).exists()
    if first:
        write_json(folder / SWEEP, {"runs": runs})
    try:
        for starts in place.glob("starts*"):  # those of an earlier job
            starts.unlink()
        job = submit(script)
    except InputError:
        if first:
            (folder / SWEEP).unlink()
        for one in new:
            with suppress(OSError):  # not empty
                one.rmdir()
        raise
    write_text(place / SCRIPT, script)
    write_json(place / RECORD, {"job": job, "submitted": now(), "command": command()})
    return job


def _refuse_second(folder: Path) -> None:
    if not (folder / JOB / RECORD).exists():
        return
    job = read_json(folder / JOB / RECORD)["job"]
    for name, queued in queued_jobs().items():
        if name.partition("_")[0] == job:
            raise InputError(
                f"{folder} has been submitted already: job {name} is {queued.state}.",
                hint=f"`scancel {job}` ends it, with a checkpoint where it runs; then submit "
                "again, or give another --out.",
            )


def jobs_below(folder: Path) -> list[Job]:
    """The jobs whose runs are at or below `folder`, the newest first; `InputError` where it is no
    folder or where squeue does not answer."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder.", hint="Give a folder that holds runs.")
    queued = queued_jobs()
    found = [
        Job(job=name, folder=str(run), run=summary_of(run), queued=queued.get(name))
        for place, record in _records(folder)
        for name, run in _runs(place, record["job"])
    ]
    return sorted(found, key=_number, reverse=True)


def _number(job: Job) -> list[int]:
    return [int(part) for part in job.job.split("_")]


def _records(folder: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    for place, inner, _ in os.walk(folder):
        if (Path(place) / JOB / RECORD).exists():
            inner.clear()
            yield Path(place), read_json(Path(place) / JOB / RECORD)
        inner[:] = sorted(name for name in inner if not name.startswith("."))


def _runs(folder: Path, job: str) -> Iterator[tuple[str, Path]]:
    """The job of a folder and its run; of a sweep those of each task."""
    if not (folder / SWEEP).exists():
        yield job, folder
        return
    for task, name in enumerate(read_json(folder / SWEEP)["runs"]):
        yield f"{job}_{task}", folder / name


def summary_of(run: Path) -> RunSummary | None:
    """What a run folder says; None before the run has begun."""
    return summary(run) if (run / "experiment.yaml").exists() else None
