"""The variables of torchrun and SLURM: whether they say one thing."""

import os
import socket
from dataclasses import dataclass

from sfumato.base.doctor.findings import Check, Finding, Host

_NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun and `sfumato train --processes` set."""


@dataclass(frozen=True)
class Launch:
    """A process among others, and where they meet."""

    rank: int
    world_size: int
    address: str
    port: int

    @property
    def agent_serves(self) -> bool:
        """Whether torchrun itself keeps the store at `address`; else rank 0 does."""
        return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)


def launch_of(host: Host) -> Launch | None:
    """The launch that the variables describe; None for a single process or where they are wrong."""
    rank, world, port = (host.number(name) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    address = host.environ.get("MASTER_ADDR")
    if rank is None or world is None or not port or not address:
        return None
    return Launch(rank, world, address, port) if world > 1 and rank < world else None


def check_launch(host: Host) -> Check | None:
    """None where nothing says that there are other processes."""
    given = [name for name in _NEEDED[:2] if name in host.environ]
    if not given:
        tasks = host.number("SLURM_STEP_NUM_TASKS")
        if tasks is None or tasks < 2:
            return None
        return Check("Ranks", [_unnamed_tasks(tasks)])
    findings = [*_incomplete(host), *_contradictions(host)]
    address = host.environ.get("MASTER_ADDR")
    if address and (problem := _unresolved(address)):
        findings.append(problem)
    if not findings:
        rank, world = host.environ["RANK"], host.environ["WORLD_SIZE"]
        findings = [Finding("ok", f"Rank {rank} of {world}; they meet at {address}")]
    return Check("Ranks", findings, {"world_size": host.environ.get("WORLD_SIZE")})


def _unnamed_tasks(tasks: int) -> Finding:
    return Finding(
        "wrong",
        f"srun started {tasks} processes, but RANK and WORLD_SIZE are not set: each is alone",
        "srun torchrun ..., or export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS "
        "LOCAL_RANK=$SLURM_LOCALID in each task",
    )


def _incomplete(host: Host) -> list[Finding]:
    """Variables that are missing or are no numbers."""
    missing = [name for name in _NEEDED if not host.environ.get(name)]
    findings = []
    if missing and not ("WORLD_SIZE" not in missing and host.number("WORLD_SIZE") == 1):
        given = [name for name in _NEEDED if name not in missing]
        text = f"{', '.join(given)} set without {', '.join(missing)}"
        hint = f"torchrun sets all of them; alone: unset {' '.join(given)}"
        findings.append(Finding("wrong", text, hint))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        text = host.environ.get(name)
        if text and host.number(name) is None:
            findings.append(Finding("wrong", f"{name} is '{text}', not a number", f"unset {name}"))
    port = host.number("MASTER_PORT")
    if port is not None and not 0 < port < 2**16:
        hint = "torchrun --standalone finds a free port on one machine."
        findings.append(Finding("wrong", f"MASTER_PORT is {port}: not a port", hint))
    return findings


def _contradictions(host: Host) -> list[Finding]:
    rank, world = host.number("RANK"), host.number("WORLD_SIZE")
    if rank is None or world is None:
        return []
    findings = []
    if world < 1:
        findings.append(Finding("wrong", f"WORLD_SIZE is {world}", "torchrun sets it: 1 or more."))
    elif rank >= world:
        text = f"RANK is {rank}, but WORLD_SIZE {world}: ranks count from 0"
        findings.append(Finding("wrong", text, "Ranks are 0 to WORLD_SIZE - 1."))
    local, local_world = host.number("LOCAL_RANK"), host.number("LOCAL_WORLD_SIZE")
    beside, name = (
        (world, "WORLD_SIZE") if local_world is None else (local_world, "LOCAL_WORLD_SIZE")
    )
    if local is not None and local >= beside:
        text = f"LOCAL_RANK is {local}, but {name} {beside}"
        findings.append(Finding("wrong", text, "Start the processes with torchrun."))
    return findings + _against_slurm(host, world, local_world)


def _against_slurm(host: Host, world: int, local_world: int | None) -> list[Finding]:
    """WORLD_SIZE against SLURM's tasks, each of which may be a torchrun with ranks of its own."""
    running, reserved = host.number("SLURM_STEP_NUM_TASKS"), host.number("SLURM_NTASKS")
    under_torchrun = "TORCHELASTIC_RUN_ID" in host.environ
    # Only srun says that tasks run. Within sbatch they are what was reserved, of which a torchrun
    # that is not started by srun takes any part.
    tasks = running if under_torchrun else running or reserved
    each = local_world if under_torchrun else 1
    if not tasks or not each or tasks * each == world:
        return []
    ranks = f"{tasks} processes" + (f" of {each} ranks" if each > 1 else "")
    text = f"WORLD_SIZE is {world}, but srun started {ranks}"
    if not running:
        text = f"WORLD_SIZE is {world}, but SLURM reserved {ranks}"
    hint = f"Start {tasks * each} ranks, or change --ntasks."
    return [Finding("wrong" if running else "note", text, hint)]


def _unresolved(address: str) -> Finding | None:
    try:
        socket.getaddrinfo(address, None)
    except OSError as error:
        return Finding(
            "wrong",
            f"MASTER_ADDR {address} does not resolve here ({error.strerror or error})",
            "export MASTER_ADDR=$(scontrol show hostnames $SLURM_JOB_NODELIST | head -n 1)",
        )
    return None
