"""What is asked of SLURM's own programs: to take a job, and which jobs there are."""

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from sfumato.base.errors import InputError

_FIELDS = ("JobArrayID", "State", "Reason", "NodeList", "TimeUsed", "TimeLeft", "RestartCnt")
_END = "\x1f"
"""Ends a field of a line: no name has this character."""


@dataclass(frozen=True, kw_only=True)
class QueuedJob:
    """A job in the queue, or one task of an array, as squeue shows it; times as SLURM writes
    them. `reason`: why it waits."""

    job: str
    state: str
    reason: str
    nodes: str
    used: str
    left: str
    restarts: int


def submit(script: str) -> str:
    """Give a batch script to SLURM; the number of the job. `InputError` with what sbatch says where
    it refuses."""
    done = _call(["sbatch", "--parsable"], script)
    if done.returncode:
        lines = [re.sub(r"^sbatch: (error: )?", "", one) for one in done.stderr.splitlines()]
        said = "; ".join(filter(None, lines)).rstrip(".")
        hint = "The script is shown with --print; --sbatch OPTION adds what this cluster asks for."
        if "partition" in said.lower():
            names = ", ".join(sorted(set(_lines(["sinfo", "--noheader", "--format=%R"]))))
            hint = f"Partitions of this cluster: {names}." if names else hint
        raise InputError(f"sbatch refuses the job: {said}.", hint=hint)
    return done.stdout.strip().partition(";")[0]


def queued_jobs() -> dict[str, QueuedJob]:
    """The jobs of this user in the queue, by number, NUMBER_TASK for a task of an array."""
    fields = ",".join(f"{field}:{_END}" for field in _FIELDS)
    done = _call(["squeue", "--me", "--array", "--noheader", f"--Format={fields}"])
    if done.returncode:
        said = " ".join(done.stderr.split())
        raise InputError(
            f"squeue does not answer: {said}", hint="`scontrol ping` says whether SLURM is up."
        )
    found = {}
    for line in done.stdout.splitlines():
        job, state, reason, nodes, used, left, restarts = line.split(_END)[: len(_FIELDS)]
        found[job] = QueuedJob(
            job=job,
            state=state,
            reason="" if reason == "None" else reason,
            nodes=nodes,
            used=used,
            left=left,
            restarts=int(restarts),
        )
    return found


def _lines(command: Sequence[str]) -> list[str]:
    return _call(command).stdout.split()


def _call(command: Sequence[str], given: str = "") -> "subprocess.CompletedProcess[str]":
    """Run a program of SLURM; `InputError` where there is none, or no cluster that it knows."""
    try:
        done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise InputError(
            f"{command[0]} is not installed here.",
            hint="Run this where SLURM's programs are: on a login node of the cluster. "
            "`sfumato submit ... --print` shows the script anywhere.",
        ) from error
    if done.returncode and "configuration source" in done.stderr:
        raise InputError(
            f"{command[0]} knows of no cluster: there is no slurm.conf here, and no server of it.",
            hint="Run this on a login node of the cluster, or name its file with SLURM_CONF. "
            "`sfumato submit ... --print` shows the script anywhere.",
        )
    return done
