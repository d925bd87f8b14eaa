"""A SLURM of two nodes on this machine: a controller, two node daemons and their own munge.

Needs root. What is missing is installed from Debian's packages; where that is impossible the tests
that ask for it skip, with the reason.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from sfumato.training.launch import _end_with, _free_port
from tests.ranks import is_alive

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel")
PACKAGES = ("slurm-wlm", "munge")
CONFIGURATION = """\
ClusterName=local
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={state}/munge.socket,cred_expire=5
StateSaveLocation={state}/controller
SlurmdSpoolDir={state}/%n
SlurmctldPidFile={state}/controller.pid
SlurmdPidFile={state}/%n.pid
SlurmctldLogFile={state}/controller.log
SlurmdLogFile={state}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=30
MinJobAge=300
SlurmdTimeout=10
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=n[1-2] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[{first}-{second}] CPUs=2 \
RealMemory=64000 Gres=gpu:1 State=UNKNOWN
PartitionName=low Nodes=n[1-2] Default=YES MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE
PartitionName=graceful Nodes=n[1-2] MaxTime=INFINITE PriorityTier=1 PreemptMode=CANCEL GraceTime=300
PartitionName=high Nodes=n[1-2] MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
"""
GPUS = "NodeName=n1 Name=gpu File=/dev/null\nNodeName=n2 Name=gpu File=/dev/zero\n"
"""Files that stand in for GPUs: SLURM hands them out, nothing opens them."""


class Cluster:
    """The daemons of one cluster. Its programs find it by `SLURM_CONF` of `variables`."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.variables = {"SLURM_CONF": str(state / "slurm.conf")}
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        self._write()
        munge = [f"--{name}={self.state}/munge.{name}" for name in ("socket", "pid-file")]
        munge += [f"--{name}={self.state}/munge.{name}" for name in ("key-file", "seed-file")]
        munge += [f"--log-file={self.state}/munge.log"]
        # It would refuse folders that others may write into, such as /tmp.
        self._daemon("munged", "--foreground", "--force", *munge)
        wait_until(lambda: (self.state / "munge.socket").exists(), seconds=60)
        self._daemon("slurmctld", "-D", "-f", self.variables["SLURM_CONF"])
        for node in ("n1", "n2"):
            self.start_node(node)
        wait_until(lambda: self.states() == {"n1": "idle", "n2": "idle"}, seconds=60)

    def start_node(self, node: str) -> None:
        self._daemon("slurmd", "-D", "-N", node, "-f", self.variables["SLURM_CONF"], name=node)

    def kill_node(self, node: str) -> None:
        """Kill a node's daemon and everything that it runs, at once, as a loss of power would."""
        self.daemons[node].kill()
        found = {pid for pid in processes() if variables_of(pid).get("SLURMD_NODENAME") == node}
        for pid in found | {parent_of(pid) for pid in found}:
            if b"slurmstepd" in command_of(pid) or pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.daemons[node].wait()

    def end(self) -> None:
        """Cancel all jobs, end all daemons, each by its process."""
        self("scancel", "--user=root", check=False)
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not self("squeue", "--noheader", check=False), seconds=60)
        for pid in processes():  # what a job has left over
            if variables_of(pid).get("SLURM_CONF") == self.variables["SLURM_CONF"]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for name in reversed(self.daemons):
            self.daemons[name].terminate()
        for daemon in self.daemons.values():
            try:
                daemon.wait(timeout=30)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def __call__(self, *command: str, check: bool = True) -> str:
        """What one of SLURM's programs prints."""
        environ = {**os.environ, **self.variables}
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
        assert not check or done.returncode == 0, (command, done.stderr)
        return done.stdout.strip()

    def states(self) -> dict[str, str]:
        """The state of each node."""
        lines = self("sinfo", "--noheader", "--Node", "--format=%N %t", check=False).splitlines()
        return dict(line.split() for line in lines)

    def job(self, job: str) -> dict[str, str]:
        """What the controller knows of a job."""
        text = self("scontrol", "--oneliner", "show", "job", job)
        pairs = (part.split("=", 1) for part in text.split() if "=" in part)
        return dict(pairs)

    def wait_for_state(self, job: str, *states: str, seconds: float = 180) -> dict[str, str]:
        wait_until(lambda: self.job(job)["JobState"] in states, seconds=seconds)
        return self.job(job)

    def _daemon(self, *command: str, name: str = "") -> None:
        log = (self.state / f"{name or command[0]}.out").open("ab")
        with log:
            end_with_us = partial(_end_with, os.getpid())
            self.daemons[name or command[0]] = subprocess.Popen(
                command, stdout=log, stderr=log, preexec_fn=end_with_us
            )

    def _write(self) -> None:
        for folder in ("controller", "n1", "n2"):
            (self.state / folder).mkdir(parents=True, exist_ok=True)
        os.chmod(self.state, 0o755)
        (self.state / "munge.key-file").write_bytes(os.urandom(1024))
        os.chmod(self.state / "munge.key-file", 0o600)
        first = free_pair()
        text = CONFIGURATION.format(
            state=self.state, controller=_free_port(), first=first, second=first + 1
        )
        (self.state / "slurm.conf").write_text(text)
        (self.state / "gres.conf").write_text(GPUS)


def free_pair() -> int:
    """The first of two ports that follow each other, free a moment ago."""
    import socket

    while True:
        port = _free_port()
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port + 1))
            return port


def wait_until(condition: Callable[[], object], *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"did not happen within {seconds} seconds"
        time.sleep(0.2)


def processes() -> list[int]:
    return [int(place.name) for place in Path("/proc").iterdir() if place.name.isdigit()]


def variables_of(pid: int) -> dict[str, str]:
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/environ").read_bytes().decode("utf-8", "replace")
        return dict(part.split("=", 1) for part in text.split("\0") if "=" in part)
    return {}


def command_of(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def parent_of(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[1])
    return 0


def install() -> str:
    """Install what is missing; why that is impossible, or nothing."""
    if sys.platform != "linux":
        return "SLURM runs on Linux"
    if os.geteuid() != 0:
        return "starting SLURM needs root"
    if all(map(shutil.which, PROGRAMS)):
        return ""
    if shutil.which("apt-get") is None:
        return "SLURM is not installed, and there is no apt-get to install it"
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
        given = ["apt-get", *command]
        done = subprocess.run(given, env=environ, capture_output=True, text=True, timeout=600)
        if done.returncode:
            return f"{' '.join(given)}: {done.stderr.strip()[-300:]}"
    return ""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    reason = install()
    if reason:
        pytest.skip(reason)
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.end()
        assert not any(is_alive(daemon.pid) for daemon in cluster.daemons.values())
