"""kill -9 at random moments: the run that goes on is the unbroken one, byte for byte."""

import multiprocessing
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import pytest
import torch
import transformers

from sfumato.base.files import TEMPORARY_PREFIX
from sfumato.config.schema import load_experiment
from sfumato.methods.registry import run_experiment
from tests.ranks import PRELOADED, contents

SETTINGS = [
    "data.resolution=8",
    "model.block_out_channels=[8,16]",
    "model.levels=[plain,attention]",
    "training.images=160",
    "training.log_every_images=48",
    "training.sample_every_images=64",
    "training.checkpoint_every_images=32",
    "sampling.steps=2",
]


def go_on(folder: Path) -> None:
    """What `sfumato train` does on `folder`, in a process that will be killed."""
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()  # a killed one leaks its semaphore
    run_experiment(load_experiment("digits", SETTINGS), folder, device="cpu")


class Processes:
    """Starts runs in milliseconds: each is forked from a process that has imported everything."""

    def __init__(self, target: Callable[[Path], None] = go_on) -> None:
        self.target = target
        self.context: ForkServerContext = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(list(PRELOADED))

    def warm_up(self) -> None:
        """Start the process that is forked, which imports everything."""
        nothing = self.context.Process(target=int)
        nothing.start()
        nothing.join()

    def start(self, folder: Path) -> ForkServerProcess:
        process = self.context.Process(target=self.target, args=(folder,))
        process.start()
        return process


@dataclass(frozen=True)
class Unbroken:
    """A run that nobody killed, and how long such a run takes."""

    files: dict[str, str]
    seconds: float


@pytest.fixture(scope="module")
def processes() -> Processes:
    return Processes()


@pytest.fixture(scope="module")
def unbroken(processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    return unbroken_run(processes, tmp_path_factory.mktemp("unbroken") / "run")


def unbroken_run(processes: Processes, folder: Path) -> Unbroken:
    processes.warm_up()
    started = time.monotonic()
    process = processes.start(folder)
    process.join()
    seconds = time.monotonic() - started
    assert process.exitcode == 0
    return Unbroken(files=contents(folder), seconds=seconds)


@dataclass
class Kills:
    """What the kills of one test met."""

    landed: int = 0
    in_writes: int = 0
    finished_runs: int = 0


def kill_at_random(count: int, processes: Processes, unbroken: Unbroken, base: Path) -> Kills:
    """Kill runs at `count` moments drawn evenly over a run, and compare every finished one."""
    draw = random.Random(count)
    kills = Kills()
    folder = base / "run"
    while kills.landed < count or folder.exists():
        process = processes.start(folder)
        # After the last kill the run in progress is let finish, so that it is compared, too.
        process.join(draw.uniform(0, unbroken.seconds) if kills.landed < count else None)
        process.kill()
        process.join()
        if process.exitcode != 0:
            assert process.exitcode == -9, "the run failed by itself; its traceback is above"
            kills.landed += 1
            kills.in_writes += any(folder.rglob(f"{TEMPORARY_PREFIX}*"))
            continue
        assert contents(folder) == unbroken.files
        kills.finished_runs += 1
        folder.rename(base / str(kills.finished_runs))
    print(kills)
    return kills


def test_an_unbroken_run_writes_all_that_is_compared(unbroken: Unbroken) -> None:
    names = set(unbroken.files)
    assert {"experiment.yaml", "metrics.jsonl", "model/model_index.json"} <= names
    for images in ("128", "160"):
        parts = ("unet.safetensors", "average.safetensors", "optimizer.safetensors", "state.json")
        assert {f"checkpoints/images-000000{images}/{part}" for part in parts} <= names
    assert {f"samples/images-000000{images}.png" for images in ("064", "128", "160")} <= names
    assert not any(TEMPORARY_PREFIX in name for name in names)


def test_killed_at_15_random_moments(processes, unbroken, tmp_path) -> None:
    kills = kill_at_random(15, processes, unbroken, tmp_path)
    assert kills.finished_runs >= 1


@pytest.mark.slow
def test_killed_at_100_random_moments(processes, unbroken, tmp_path) -> None:
    """Enough kills that some fall into the writing of a checkpoint, a sample or the export."""
    kills = kill_at_random(100, processes, unbroken, tmp_path)
    assert kills.finished_runs >= 5
    assert kills.in_writes >= 5


def go_on_can(folder: Path) -> None:
    """`go_on` of a CAN, with everything that its steps draw."""
    from tests.test_can import VARIANTS, tiny

    torch.set_num_threads(1)
    run_experiment(tiny(**VARIANTS["stable"]), folder, device="cpu")


def test_a_can_killed_at_5_random_moments(tmp_path) -> None:
    """Both networks, both optimizers, and what is watched: byte for byte."""
    processes = Processes(go_on_can)
    unbroken = unbroken_run(processes, tmp_path / "unbroken")
    parts = ("generator", "discriminator", "average", "optimizer", "discriminator_optimizer")
    names = {f"checkpoints/images-000000096/{part}.safetensors" for part in parts}
    written = {*names, "metrics.jsonl", "can/can.json", "can/generator.safetensors"}
    assert written <= {*unbroken.files}
    kills = kill_at_random(5, processes, unbroken, tmp_path)
    assert kills.finished_runs >= 1


def go_on_student(teacher: Path, folder: Path) -> None:
    """`go_on` of trajectories and of two students, the second of which begins as the first."""
    from sfumato.generation.loading import load
    from sfumato.methods.distillation import Plan, student_experiment, teachers_trajectories
    from tests.test_distil import SHORT

    torch.set_num_threads(1)
    model = load(teacher, device="cpu").with_(guidance=2.0)
    plan = Plan(teacher=str(teacher), nfe=(4, 1), folder=folder, count=70, teacher_steps=8)
    for nfe in plan.nfe:
        experiment = student_experiment(plan, model, nfe, ["data.source=digits", *SHORT])
        teachers_trajectories(plan, model, experiment, on_part=lambda made: None)
        run_experiment(experiment, plan.run(nfe), device="cpu")


@pytest.mark.slow
def test_students_killed_at_5_random_moments(small_run: Path, tmp_path: Path) -> None:
    """Trajectories, both students and their held-out losses: byte for byte."""
    processes = Processes(partial(go_on_student, small_run))
    unbroken = unbroken_run(processes, tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "unbroken")  # the others record the same folder
    kills = kill_at_random(5, processes, unbroken, tmp_path)
    assert kills.finished_runs >= 1
    names = set(unbroken.files)
    for nfe in (4, 1):
        written = (
            "held_out.jsonl",
            "metrics.jsonl",
            "checkpoints/images-000000096/unet.safetensors",
        )
        assert {f"nfe-{nfe}/{name}" for name in written} <= names
    assert any(name.startswith("trajectories/") for name in names)
