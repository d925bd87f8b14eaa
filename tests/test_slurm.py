"""Jobs on a real SLURM of two nodes: stopped in every way, they end with the same weights."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from sfumato.training.checkpoint import Checkpoints
from tests.ranks import Forks, arguments, ended, written
from tests.slurm import Cluster, cluster, wait_until

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("cluster")]
__all__ = ["cluster"]
SECONDS = 400
"""How long a job may take; starting Python alone takes half a minute on a busy machine."""
RETURN_SECONDS = 15
STALL = '''
"""The last rank waits in the middle of its run, until a file named go is there or it must stop."""
import os, sys
if "train" in sys.orig_argv and "WORLD_SIZE" in os.environ:
    import time
    from pathlib import Path
    from sfumato.training.loop import Run

    place, job = Path(os.environ["STALL"]), os.environ["SLURM_JOB_ID"]
    step = Run.take_step

    def take_step(run):
        if run.step == 5 and run.world.rank == run.world.size - 1:
            (place / f"waits-{job}").touch()
            while not run.stop_requested and not (place / "go").exists():
                time.sleep(0.05)
        return step(run)

    Run.take_step = take_step
'''


@dataclass
class Jobs:
    """Submits tiny trainings. A job waits in step 6 until it is let go."""

    cluster: Cluster
    base: Path

    def submit(self, folder: Path, *options: str, preset: Sequence[str] = ("train",)) -> str:
        """`sfumato submit` in a process of its own; the number of the job."""
        given = arguments(folder)[1:]  # without `train`
        few = ["--gpus-per-node", "0", "--cpus", "1", "--memory", "1"]
        done = self.sfumato("submit", *preset, *given, *few, *options)
        assert done.returncode == 0, done.stderr
        return json.loads((folder / "slurm" / "job.json").read_text("utf-8"))["job"]

    def sfumato(self, *given: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "sfumato", *given]
        return subprocess.run(command, env=self.variables, capture_output=True, text=True)

    @property
    def variables(self) -> dict[str, str]:
        paths = [str(self.base), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {
            **os.environ,
            **self.cluster.variables,
            "PYTHONPATH": os.pathsep.join(paths),
            "STALL": str(self.base),
            "GLOO_SOCKET_IFNAME": "lo",
        }

    def wait_for_step_6(self, job: str) -> None:
        wait_until(lambda: (self.base / f"waits-{job}").exists(), seconds=SECONDS)

    def let_go(self) -> None:
        (self.base / "go").touch()

    def wait_for_end(self, job: str, folder: Path) -> str:
        """The output of a job that succeeds."""
        found = self.cluster.wait_for_state(job, "COMPLETED", "FAILED", seconds=SECONDS)
        output = "".join(file.read_text("utf-8") for file in (folder / "slurm").glob("*.out"))
        assert found["JobState"] == "COMPLETED", output
        return output


@pytest.fixture
def jobs(cluster: Cluster, tmp_path: Path) -> Jobs:
    base = tmp_path / "python path"
    base.mkdir()
    (base / "sitecustomize.py").write_text(STALL)
    return Jobs(cluster, base)


def result(folder: Path) -> dict[str, str]:
    """sha256 of every file of a finished run, but of its last checkpoint alone: a stop adds one."""
    last = Checkpoints(folder / "checkpoints").all()[-1].path.name
    return {
        name: digest
        for name, digest in written(folder).items()
        if not name.startswith(("slurm", "checkpoints")) or last in name
    }


def test_two_nodes_train_as_two_processes(jobs: Jobs, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a run"
    jobs.let_go()
    job = jobs.submit(folder, "--nodes", "2", "--time", "30")
    output = jobs.wait_for_end(job, folder)
    assert f"Start 1 of job {job} on n[1-2]" in output
    assert "in 2 processes" in output
    assert jobs.cluster.job(job)["Restarts"] == "0"
    assert result(folder) == result(whole)


def test_a_job_is_requeued_before_its_limit_and_goes_on(
    jobs: Jobs, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    job = jobs.submit(folder, "--nodes", "2", "--time", "60", "--save-seconds", "240")
    jobs.wait_for_step_6(job)
    hours, minutes, _ = map(int, jobs.cluster.job(job)["RunTime"].split(":"))
    jobs.cluster("scontrol", "update", f"job={job}", f"TimeLimit={60 * hours + minutes + 5}")
    wait_until(lambda: jobs.cluster.job(job)["Restarts"] == "1", seconds=SECONDS)
    jobs.cluster("scontrol", "update", f"job={job}", "TimeLimit=60")  # the machine may be slow
    output = jobs.wait_for_end(job, folder)
    assert f"Job {job} is requeued." in output
    # Ranks read that they agree to stop beside the step after: step 7 was finished.
    assert "Resuming from the checkpoint at 112 images" in output
    assert jobs.cluster.job(job)["Restarts"] == "1"
    assert result(folder) == result(whole)


@pytest.mark.parametrize("partition", ["low", "graceful"])
def test_a_job_of_a_higher_partition_preempts_it(
    jobs: Jobs, whole: Path, tmp_path: Path, partition: str
) -> None:
    """SLURM requeues a job of `low`; one of `graceful` it would end five minutes later."""
    folder = tmp_path / "run"
    job = jobs.submit(folder, "--nodes", "2", "--partition", partition)
    jobs.wait_for_step_6(job)
    given = ["--partition=high", "--nodes=2", "--cpus-per-task=2", f"--output={tmp_path}/high"]
    other = jobs.cluster("sbatch", "--parsable", *given, "--wrap", "sleep 1")
    jobs.cluster.wait_for_state(other, "COMPLETED")
    output = jobs.wait_for_end(job, folder)
    assert "Resuming from the checkpoint at 112 images" in output
    assert (f"Job {job} is requeued." in output) == (partition == "graceful")
    assert jobs.cluster.job(job)["Restarts"] == "1"
    assert result(folder) == result(whole)


def test_an_array_of_which_one_task_is_requeued_and_one_cancelled(
    jobs: Jobs, forks: Forks, tmp_path: Path
) -> None:
    folder = tmp_path / "sweep"
    over = ["--over", "seed=0,1", "--over", "training.optimizer.lr=1e-3,1e-4"]
    job = jobs.submit(folder, *over, preset=["sweep"])
    names = [f"seed={seed},lr={lr}" for seed in (0, 1) for lr in ("1e-3", "1e-4")]
    tasks = {f"{job}_{task}": folder / name for task, name in enumerate(names)}
    for task in tasks:  # before that they all have the number of the array
        jobs.cluster.wait_for_state(task, "RUNNING", seconds=SECONDS)
    numbers = {task: jobs.cluster.job(task)["JobId"] for task in tasks}
    assert len(set(numbers.values())) == 4
    for number in numbers.values():
        jobs.wait_for_step_6(number)
    # One of the tasks has the number of the array, which means all tasks to scontrol.
    one = next(task for task, number in numbers.items() if number == job)
    other = next(task for task in tasks if task != one)
    jobs.cluster("scancel", "--batch", "--signal=USR1", one)
    jobs.cluster("scancel", other)
    wait_until(lambda: jobs.cluster.job(one)["Restarts"] == "1", seconds=SECONDS)
    jobs.let_go()
    for task in tasks:
        state = "CANCELLED" if task == other else "COMPLETED"
        jobs.cluster.wait_for_state(task, state, seconds=SECONDS)
    restarts = {task: jobs.cluster.job(task)["Restarts"] for task in tasks}
    assert restarts == {task: str(int(task == one)) for task in tasks}
    assert (folder / "results.md").is_file()
    table = jobs.sfumato("submit", "results", str(folder)).stdout.splitlines()
    assert table[0].split() == ["seed", "lr", "state", "images", "loss", "accuracy", "(%)"]
    ends = {task: ["finished", "160"] for task in tasks} | {other: ["interrupted", "96"]}
    assert [row.split()[:4] for row in table[1:5]] == [
        [*(part.partition("=")[2] for part in tasks[task].name.split(",")), *ends[task]]
        for task in tasks
    ]
    seed, lr = (part.partition("=")[2] for part in tasks[one].name.split(","))
    given = arguments(tmp_path / "alone", f"seed={seed}", f"training.optimizer.lr={lr}")
    assert ended([forks.command(given, tmp_path / "out")], SECONDS) == [0]
    assert result(tasks[one]) == result(tmp_path / "alone")


def test_a_node_dies(jobs: Jobs, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    job = jobs.submit(folder, "--nodes", "2")
    jobs.wait_for_step_6(job)
    jobs.cluster.kill_node("n2")
    jobs.let_go()  # the job comes to step 6 again
    wait_until(lambda: jobs.cluster.states()["n2"].startswith("down"), seconds=SECONDS)
    listed = jobs.sfumato("jobs", str(tmp_path), "--json")
    assert [one["job"] for one in json.loads(listed.stdout)] == [job]
    # SLURM 22.05 tells a node that comes back to end the job that was there, and then counts one
    # node less for the job that it has just started again: the node comes back a little later.
    time.sleep(RETURN_SECONDS)
    jobs.cluster.start_node("n2")
    output = jobs.wait_for_end(job, folder)
    assert "Resuming from the checkpoint at 64 images" in output  # the last that was saved
    assert int(jobs.cluster.job(job)["Restarts"]) >= 1
    assert result(folder) == result(whole)


def test_a_partition_that_does_not_exist_is_refused(jobs: Jobs, tmp_path: Path) -> None:
    given = ["submit", "train", "digits", "--out", str(tmp_path / "run"), "--partition", "nope"]
    done = jobs.sfumato(*given)
    assert done.returncode == 2
    assert "invalid partition specified: nope" in done.stderr
    assert "Partitions of this cluster: graceful, high, low." in done.stderr
    assert not (tmp_path / "run").exists()


def test_the_defaults_and_a_second_submission_which_is_refused(jobs: Jobs, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    given = ["submit", "train", "digits", "--out", str(folder), "--cpus", "2"]
    jobs.cluster("scontrol", "update", "partition=low", "State=DOWN")
    try:
        assert jobs.sfumato(*given).returncode == 0
        job = json.loads((folder / "slurm" / "job.json").read_text("utf-8"))["job"]
        asked = jobs.cluster.job(job)
        assert asked["TRES"].startswith("cpu=2,mem=32G,node=1,")
        assert asked["TresPerNode"] == "gres:gpu:1"
        again = jobs.sfumato(*given)
        assert again.returncode == 2
        assert f"job {job} is PENDING" in again.stderr
    finally:
        jobs.cluster("scancel", "--user=root")
        jobs.cluster("scontrol", "update", "partition=low", "State=UP")
