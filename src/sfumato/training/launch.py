"""Several processes of one training on this machine: `sfumato train --processes N`.

Like `torchrun --standalone`, but one Ctrl-C ends all of them with a checkpoint, and this process
needs no torch.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from types import FrameType

from sfumato.base.environment import processors
from sfumato.base.errors import DistributedError

GRACE_SECONDS = 10
"""How long the others may take to end by themselves after one has failed, and after SIGTERM."""
_PR_SET_PDEATHSIG = 1


def run_processes(arguments: Sequence[str], count: int) -> int:
    """Run `sfumato ARGUMENTS` in `count` processes and return their exit status: that of the first
    that failed, if one did; the others are then ended.

    Ctrl-C, SIGTERM and SIGUSR1 are passed on to all of them. `DistributedError` inside torchrun.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise DistributedError(
            "torchrun has started this process, and --processes would start others from it.",
            hint="Use torchrun --nproc-per-node N, or --processes N, not both.",
        )
    common = _variables(count)
    children: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        _signal(children, number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        for rank in range(count):
            child = subprocess.Popen(
                [sys.executable, "-m", "sfumato", *arguments],
                env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                start_new_session=True,  # a terminal's Ctrl-C reaches them by this process, once
                preexec_fn=partial(_end_with, os.getpid()) if sys.platform == "linux" else None,
            )
            children.append(child)
        return _wait(children)
    finally:
        _signal(children, signal.SIGKILL)
        for number, handler in before.items():
            signal.signal(number, handler)


def _variables(count: int) -> dict[str, str]:
    """The environment that all ranks have."""
    # A shell inside srun has the variables of its own single task.
    inherited = {name: value for name, value in os.environ.items() if "SLURM_STEP" not in name}
    common = {
        **inherited,
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, processors() // count))),
    }
    if sys.platform == "linux":  # elsewhere the loopback device has another name
        common.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return common


def _wait(children: Sequence["subprocess.Popen[bytes]"]) -> int:
    """Wait for all; once one has failed, end the others."""
    failed: int | None = None
    deadline, stopped = float("inf"), False
    while any(child.poll() is None for child in children):
        if not stopped:
            if failed is None and _first_failed(children) is not None:
                deadline = time.monotonic() + GRACE_SECONDS
            # Again in the grace time: a rank that fails closes its connections before it has ended.
            failed = _first_failed(children, failed)
        if time.monotonic() > deadline:
            _signal(children, signal.SIGKILL if stopped else signal.SIGTERM)
            deadline, stopped = time.monotonic() + GRACE_SECONDS, True
        time.sleep(0.05)
    codes = [child.returncode for child in children]
    failed = failed if stopped else _first_failed(children, failed)
    if failed is None:
        return 0
    if len(set(codes)) > 1:  # where all end alike, each has said why
        how = f"exit code {codes[failed]}" if codes[failed] > 0 else _signal_name(-codes[failed])
        sys.stderr.write(
            f"error: Rank {failed} of {len(children)} ended first, with {how}; the others were "
            "ended.\n  -> Its own output is above. The same command resumes from the last "
            "checkpoint.\n"
        )
    return codes[failed] if codes[failed] > 0 else 128 - codes[failed]


def _first_failed(
    children: Sequence["subprocess.Popen[bytes]"], known: int | None = None
) -> int | None:
    """The rank that failed by itself, or else because it lost another; `known` if that did not."""
    failed = [rank for rank, child in enumerate(children) if child.poll()]
    if known is not None:
        failed.insert(0, known)
    own = [r for r in failed if children[r].returncode != DistributedError.exit_code]
    return next(iter(own or failed), None)


def _signal(children: Sequence["subprocess.Popen[bytes]"], number: int) -> None:
    for child in children:
        if child.poll() is None:
            child.send_signal(number)


def _signal_name(number: int) -> str:
    return f"signal {number} ({signal.Signals(number).name})"


def _end_with(parent: int) -> None:
    """Linux ends a process with its parent, so that none is left over; SIGTERM lets it save."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before
        os._exit(128 + signal.SIGTERM)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
