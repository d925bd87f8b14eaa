"""Several processes that train one model: the same numbers, one log, one end."""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from sfumato.base.environment import processors
from sfumato.base.files import TEMPORARY_PREFIX
from sfumato.config.schema import load_experiment
from sfumato.training import launch
from sfumato.training.checkpoint import Checkpoints, load_part
from sfumato.training.distributed import World
from sfumato.training.hooks import LogHook
from sfumato.training.launch import run_processes
from sfumato.training.loop import Run, train
from sfumato.training.records import read_records
from sfumato.training.state import load_state, save_state
from tests.pictures import encoded, noise, write_parquet
from tests.ranks import (
    LONG,
    TINY,
    Forks,
    arguments,
    ended,
    is_alive,
    lines,
    pids,
    ranks_of,
    wait_for,
    written,
)

linux = pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends ranks on Linux alone")
STOPPED = 130


# The same numbers ---------------------------------------------------------------------------------

STEPS = 20
CASES = {
    1: (("float64", 1), ("float64", 3), ("float32", 1)),
    2: (("float64", 1), ("float64", 3), ("float32", 1), ("float32", 3)),
    4: (("float64", 3), ("float32", 1)),
}
"""By number of ranks: type of the weights, and micro-batches; 3 do not divide a rank's 4 rows."""


def train_20_steps(rank: int, size: int, variables: dict[str, str], out: Path) -> None:
    """One rank's part in the trainings of CASES; rank 0 writes weights and losses."""
    from sfumato.methods import diffusion
    from sfumato.training.distributed import open_world
    from sfumato.training.run import prepare

    os.environ.update({**variables, "RANK": str(rank), "LOCAL_RANK": str(rank)})
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    cpu, build = torch.device("cpu"), diffusion.build_unet
    with open_world(cpu) as world:
        for dtype, micro_batches in CASES[size]:
            kind = getattr(torch, dtype)
            diffusion.build_unet = lambda *a, kind=kind, **k: build(*a, **k).to(kind)
            experiment = load_experiment(
                "digits",
                [*TINY, f"training.micro_batches={micro_batches}", "training.images=320"],
            )
            name = f"{size}-{dtype}-{micro_batches}"
            run = prepare(diffusion.DIFFUSION, experiment, out / name, device=cpu, world=world)
            losses: list[float] = []
            run.hooks = [Losses(losses)]
            train(run)
            assert run.step == STEPS
            parts = {part: value.state_dict() for part, value in run.objective.parts().items()}
            if rank == 0:
                state = {**parts, "losses": torch.tensor(losses, dtype=torch.float64)}
                save_state(state, out / f"{name}.safetensors")


class Losses:
    """Collects the loss of each step."""

    def __init__(self, losses: list[float]) -> None:
        self.losses = losses

    def after_step(self, run: Run, metrics: Any) -> None:
        self.losses.append(metrics["loss"])

    def at_end(self, run: Run) -> None:
        return


@pytest.fixture(scope="module")
def trained(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What 1, 2 and 4 ranks made of the same global batches, by `size-dtype-micro_batches`."""
    out = tmp_path_factory.mktemp("trained")
    started = []
    for size in (1, 2, 4):
        variables = ranks_of(size)
        started += [forks.start(train_20_steps, rank, size, variables, out) for rank in range(size)]
    assert set(ended(started)) == {0}
    return {file.stem: load_state(file) for file in out.glob("*.safetensors")}


def furthest(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """The largest difference of a weight, relative to the size of its tensor."""
    assert found.keys() == expected.keys()
    return max(
        float((found[name] - value).abs().max() / value.abs().max())
        for name, value in expected.items()
    )


@pytest.mark.parametrize("name", ["1-float64-3", "2-float64-1", "2-float64-3", "4-float64-3"])
def test_weights_are_those_of_one_process(trained, name: str) -> None:
    whole = trained["1-float64-1"]
    for part in ("unet", "average"):
        assert furthest(trained[name][part], whole[part]) < 1e-9
    assert torch.allclose(trained[name]["losses"], whole["losses"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["2-float32-1", "2-float32-3", "4-float32-1"])
def test_losses_of_float32_are_those_of_one_process(trained, name: str) -> None:
    losses, whole = trained[name]["losses"], trained["1-float32-1"]["losses"]
    assert len(losses) == STEPS
    assert torch.allclose(losses, whole, rtol=1e-5, atol=0)


def test_more_micro_batches_than_rows_of_a_rank_are_refused(forks: Forks, tmp_path: Path) -> None:
    given = arguments(tmp_path / "run", "training.micro_batches=9")
    assert ended(forks.ranks(given, tmp_path / "out", size=2)) == [2, 2]
    assert "at most 8" in (tmp_path / "out-0").read_text("utf-8")


@dataclass(frozen=True)
class Unconnected(World):
    """Two ranks of equal numbers. `waited`: by step, whether its mean was waited for."""

    size: int = 2
    waited: list[bool] = field(default_factory=list)

    def begin_mean(self, values):
        self.waited.append(False)
        return partial(self.waited.__setitem__, len(self.waited) - 1, True)


def stub_run(folder: Path, device: str, world: World, *hooks: Any) -> Run:
    class Stub:
        batch_size = 4

        def step(self, batch, context):
            return {"loss": torch.ones(()), "grad_norm": torch.ones(())}

        def at(self, images_seen):
            return None

    stub: Any = Stub()
    return Run(
        folder=folder,
        objective=stub,
        batches=stub,
        seed=0,
        total_images=400,
        device=torch.device(device),
        world=world,
        hooks=hooks,
    )


def test_a_rank_waits_for_the_numbers_of_a_step_after_the_next_one(tmp_path: Path) -> None:
    world = Unconnected()
    run = stub_run(tmp_path, "cpu", world)
    for steps in range(3):
        run.take_step()
        assert world.waited == [True] * steps + [False]
    run.check()
    assert world.waited == [True] * 3


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("logged", [False, True])
def test_ranks_stop_after_the_same_step_where_one_reads_its_metrics_early(
    tmp_path: Path, logged: bool, device: str
) -> None:
    hooks = [LogHook(tmp_path / "metrics.jsonl", every_images=4)] if logged else []
    run = stub_run(tmp_path, device, Unconnected(), *hooks)
    for _ in range(3):
        run.take_step()
    run.stop_requested = True
    train(run)
    assert run.step == 5  # the request is part of step 4, and known after step 5


def test_moments_of_another_rank_keep_the_memory_format_of_their_weights(monkeypatch) -> None:
    def trained_optimizer() -> torch.optim.AdamW:
        torch.manual_seed(0)
        layer = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(layer.parameters())
        layer(torch.ones(1, 3, 5, 5)).sum().backward()
        optimizer.step()
        return optimizer

    optimizer = trained_optimizer()
    sent = optimizer.state_dict()
    for moments in sent["state"].values():
        moments["exp_avg"] = moments["exp_avg"].contiguous()
    monkeypatch.setattr(World, "share", lambda world, state, device: sent)
    state = World(rank=1, size=2).own_state(optimizer, None, torch.device("cpu"))
    load_part(optimizer, state, file=Path("optimizer.safetensors"))
    weight, moments = next(iter(optimizer.state.items()))
    assert moments["exp_avg"].stride() == weight.stride()


# Resume -------------------------------------------------------------------------------------------


def result(folder: Path) -> dict[str, str]:
    """sha256 of every file of a finished run, but of its last checkpoint alone: a stop adds one."""
    last = Checkpoints(folder / "checkpoints").all()[-1].path.name
    return {
        name: digest
        for name, digest in written(folder).items()
        if not name.startswith("checkpoints") or last in name
    }


def signal_itself(number: int, *, step: int) -> None:
    """Send this process a signal in the middle of step `step`."""
    before = Run.take_step

    def take_step(run: Run):
        if run.step == step - 1:
            os.kill(os.getpid(), number)
        return before(run)

    Run.take_step = take_step  # pyright: ignore


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(2, 2), (2, 1), (2, 4), (1, 2)])
def test_a_stopped_run_goes_on_with_another_number_of_processes(
    forks: Forks, whole: Path, tmp_path: Path, first: int, then: int
) -> None:
    folder = tmp_path / "run"
    # Several ranks know of it after the step that follows.
    stop = {first - 1: partial(signal_itself, signal.SIGUSR1, step=5 if first == 1 else 4)}
    stopped = forks.ranks(arguments(folder), tmp_path / "out", size=first, before=stop)
    assert ended(stopped) == [STOPPED] * first
    assert Checkpoints(folder / "checkpoints").counts()[-1] == 80  # no cadence ends there
    assert ended(forks.ranks(arguments(folder), tmp_path / "again", size=then)) == [0] * then
    assert "from the checkpoint at 80 images" in (tmp_path / "again-0").read_text("utf-8")
    records, expected = (read_records(place / "metrics.jsonl") for place in (folder, whole))
    assert [record["images"] for record in records] == [48, 96, 144, 160]
    for record, other in zip(records, expected, strict=True):
        assert record["lr"] == other["lr"]
        assert record["loss"] == pytest.approx(other["loss"], rel=1e-5)
    if first == then:
        assert result(folder) == result(whole)


# Kills --------------------------------------------------------------------------------------------


def kill_at_random(count: int, forks: Forks, whole: Path, base: Path) -> None:
    """Kill rank 0, rank 1 or the launcher `count` times, and start again at once each time."""
    draw = random.Random(count)
    started = time.monotonic()
    assert ended([forks.launcher(arguments(base / "timed"), base / "timed.out")]) == [0]
    usual_seconds = time.monotonic() - started
    expected = result(whole)
    landed = finished = 0
    folder, output = base / "0", base / "0.out"
    while landed < count or folder.exists():
        launcher = forks.launcher(arguments(folder), output, grace_seconds=1)
        before = pids(output)
        if landed < count:
            launcher.join(draw.uniform(0, usual_seconds))
            victims = [launcher.pid, *pids(output)[len(before) :]]
            victim = draw.choice(victims)
            if launcher.exitcode is None and is_alive(victim):
                os.kill(victim, signal.SIGKILL)
                landed += 1
        if launcher.pid is not None and launcher.exitcode is None:
            launcher.join(60)
        assert launcher.exitcode in (0, -9, 128 + 9), output.read_text("utf-8")
        if launcher.exitcode == 0:
            assert not any(map(is_alive, pids(output)[len(before) :]))
            assert result(folder) == expected
            finished += 1
            folder, output = base / str(finished), base / f"{finished}.out"
    for file in base.glob("*.pids"):
        wait_for(lambda file=file: not any(map(is_alive, pids(file))), seconds=10)
    assert finished >= 1
    assert not any(base.rglob(f"{TEMPORARY_PREFIX}*"))


@linux
def test_ranks_and_launcher_killed_at_5_random_moments(forks, whole, tmp_path) -> None:
    kill_at_random(5, forks, whole, tmp_path)


@linux
@pytest.mark.slow
def test_ranks_and_launcher_killed_at_100_random_moments(forks, whole, tmp_path) -> None:
    kill_at_random(100, forks, whole, tmp_path)


# Signals ------------------------------------------------------------------------------------------


def note_last_step(folder: Path) -> None:
    """Write at which step this rank ended into `folder`."""
    from sfumato.training import run as module

    def noted(run: Run) -> None:
        train(run)
        (folder / f"ended-{run.world.rank}").write_text(f"{run.step}")

    module.train = noted


def check_stopped(processes: list[ForkServerProcess], base: Path, *, ranks: int) -> None:
    """All end within 5 seconds, at the same step, with a whole checkpoint of it."""
    assert ended(processes, seconds=5) == [STOPPED] * len(processes)
    steps = [int((base / f"ended-{rank}").read_text()) for rank in range(ranks)]
    checkpoint = Checkpoints(base / "run" / "checkpoints").latest()
    assert checkpoint is not None
    assert set(steps) == {checkpoint.state["step"]}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_ends_one_process_with_a_checkpoint(forks, tmp_path, number) -> None:
    given = arguments(tmp_path / "run", *LONG)
    process = forks.command(given, tmp_path / "out", before=partial(note_last_step, tmp_path))
    wait_for(lambda: lines(tmp_path / "run") >= 2)
    os.kill(process.pid, number)
    check_stopped([process], tmp_path, ranks=1)


@linux
@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        *(pytest.param(one, marks=pytest.mark.slow) for one in (signal.SIGINT, signal.SIGUSR1)),
    ],
)
def test_a_signal_to_the_launcher_ends_all_with_a_checkpoint(forks, tmp_path, number) -> None:
    given = arguments(tmp_path / "run", *LONG)
    process = forks.launcher(given, tmp_path / "out", before=partial(note_last_step, tmp_path))
    wait_for(lambda: lines(tmp_path / "run") >= 2)
    os.kill(process.pid, number)
    check_stopped([process], tmp_path, ranks=2)
    assert not any(map(is_alive, pids(tmp_path / "out")))


@pytest.mark.parametrize(("rank", "number"), [(0, signal.SIGTERM), (1, signal.SIGINT)])
def test_a_signal_to_one_rank_ends_all_with_a_checkpoint(forks, tmp_path, rank, number) -> None:
    given = arguments(tmp_path / "run", *LONG)
    before = partial(note_last_step, tmp_path)
    started = forks.ranks(given, tmp_path / "out", size=2, before={0: before, 1: before})
    wait_for(lambda: lines(tmp_path / "run") >= 2)
    os.kill(started[rank].pid, number)
    check_stopped(started, tmp_path, ranks=2)


def save_for_ever() -> None:
    def save(run: Run) -> None:
        (run.folder / "saving").touch()
        time.sleep(600)

    Run.save = save


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_second_ctrl_c_leaves_at_once(forks: Forks, tmp_path: Path, ranks: int) -> None:
    given = arguments(tmp_path / "run", *LONG)
    start = forks.command if ranks == 1 else forks.launcher
    process = start(given, tmp_path / "out", before=save_for_ever)
    wait_for(lambda: lines(tmp_path / "run") >= 2)
    os.kill(process.pid, signal.SIGINT)
    wait_for((tmp_path / "run" / "saving").exists)
    time.sleep(0.6)
    os.kill(process.pid, signal.SIGINT)
    assert ended([process], seconds=5) == [STOPPED]


@pytest.mark.slow
@linux
def test_a_signal_to_the_whole_group_leaves_the_data_workers_to_the_training(
    forks: Forks, tmp_path: Path
) -> None:
    """As a batch system sends it: to the workers of a stream, too."""
    write_parquet(
        tmp_path / "data" / "train.parquet",
        [encoded(noise(row)) for row in range(90)],
        [row // 30 for row in range(90)],
        names=["oak", "elm", "ash"],
        row_group_size=20,
    )
    streamed = (f"data.source={tmp_path / 'data'}", "data.loading=stream", "data.workers=2")
    given = arguments(tmp_path / "run", *LONG, *streamed, preset="small")
    for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM):
        seen = lines(tmp_path / "run")
        process = forks.command(given, tmp_path / "out", before=os.setsid)
        wait_for(lambda seen=seen: lines(tmp_path / "run") >= seen + 2)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        workers = [int(child) for child in children.read_text().split()]
        assert len(workers) == 2
        os.killpg(process.pid, number)
        assert ended([process], seconds=5) == [STOPPED], (tmp_path / "out").read_text("utf-8")
        assert not any(map(is_alive, workers))
    images = [record["images"] for record in read_records(tmp_path / "run" / "metrics.jsonl")]
    assert images == list(range(48, images[-1] + 1, 48))


# Launchers ----------------------------------------------------------------------------------------


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Make the launcher's ranks run lines of shell instead of Python."""
    monkeypatch.setattr(launch, "GRACE_SECONDS", 1.0)
    file = tmp_path / "python"

    def write(*script: str) -> None:
        file.write_text("\n".join(["#!/bin/sh", *script]) + "\n")
        file.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(file))

    return write


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("exit 0", 0),
        ("exit 130", STOPPED),
        ("[ $RANK = 1 ] && exit 7; exec sleep 60", 7),
        pytest.param("[ $RANK = 1 ] && kill -9 $$; exec sleep 60", 128 + 9, marks=pytest.mark.slow),
        ("[ $RANK = 0 ] && exit 4; sleep 0.1; exit 5", 5),  # rank 0 noticed that rank 1 failed
        pytest.param("[ $RANK = 0 ] && exit 4; exec sleep 60", 4, marks=pytest.mark.slow),
        pytest.param(
            "[ $RANK = 1 ] && exit 7; trap '' TERM; while :; do sleep 0.1; done",
            7,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_launcher_ends_with_the_status_of_the_rank_that_failed(program, script, code) -> None:
    program(script)
    started = time.monotonic()
    assert run_processes(["train"], 2) == code
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("given", [None, "3"])
def test_ranks_share_the_cores(program, monkeypatch, tmp_path: Path, given: str | None) -> None:
    program(f'echo "$RANK $WORLD_SIZE $LOCAL_RANK $OMP_NUM_THREADS $3" > {tmp_path}/$RANK')
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert run_processes(["train"], 2) == 0
    threads = given or max(1, processors() // 2)
    for rank in range(2):
        text = (tmp_path / str(rank)).read_text("utf-8")
        assert text == f"{rank} 2 {rank} {threads} train\n"


def test_processes_that_do_not_divide_the_batch_are_refused_before_torch() -> None:
    code = (
        "import sys\nsys.argv = ['sfumato', 'train', 'digits', '--processes', '3']\n"
        "from sfumato.cli import main\n"
        "try:\n    main()\nexcept SystemExit as leaving:\n"
        "    assert 'torch' not in sys.modules\n    raise\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "multiple of 3" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("by", ["sfumato", "torchrun"])
def test_processes_of_their_own_train_and_stop(tmp_path: Path, by: str) -> None:
    """Without the shortcuts of the other tests: Python starts anew in every rank."""
    train_it = ["-m", "sfumato", *arguments("run", *LONG)]
    command = {
        "sfumato": [*train_it, "--processes", "2"],
        "torchrun": [
            *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *train_it,
        ],
    }[by]
    variables = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    with (tmp_path / "out").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=tmp_path, env=variables, stdout=output, stderr=output
        )
    try:
        wait_for(lambda: lines(tmp_path / "run") >= 2)
        process.terminate()
        code = process.wait(timeout=30)
    finally:
        process.kill()
    assert code == STOPPED if by == "sfumato" else code != 0
    checkpoint = Checkpoints(tmp_path / "run" / "checkpoints").latest()
    assert checkpoint is not None
    records = read_records(tmp_path / "run" / "metrics.jsonl")
    assert [record["images"] for record in records] == list(
        range(48, records[-1]["images"] + 1, 48)
    )
    assert records[-1]["images"] <= checkpoint.images_seen
    assert checkpoint.state["environment"]["threads"] == max(1, processors() // 2)
