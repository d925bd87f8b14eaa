"""What goes wrong with several processes ends all of them within a minute, with a clear message,
and nothing that was saved is lost."""

import errno
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from sfumato.base import lock
from sfumato.base.errors import DistributedError, SfumatoWarning, TrainingError
from sfumato.base.files import TEMPORARY_PREFIX
from sfumato.training import checkpoint as checkpoints_module
from sfumato.training import distributed, launch
from sfumato.training.checkpoint import Checkpoints
from sfumato.training.distributed import ALONE, RENDEZVOUS_SECONDS, World, world_of
from sfumato.training.loop import Run
from sfumato.training.records import read_records
from tests.ranks import LONG, Forks, arguments, ended, lines, ranks_of, wait_for, written

LOST, KILLED = DistributedError.exit_code, -int(signal.SIGKILL)


def check_goes_on(forks: Forks, folder: Path, whole: Path) -> str:
    """Resume a run with two ranks: it becomes the one without a fault. What rank 0 said."""
    output = folder.with_name("resumed")
    assert ended(forks.ranks(arguments(folder), output, size=2)) == [0, 0]
    assert written(folder) == written(whole)
    assert not any(folder.rglob(f"{TEMPORARY_PREFIX}*"))
    return output.with_name("resumed-0").read_text("utf-8")


# One rank fails -----------------------------------------------------------------------------------


def fail_in_step(number: int) -> None:
    """Rank 1 has a defect in step `number`."""
    before = Run.take_step

    def take_step(run: Run):
        if run.world.rank == 1 and run.step == number - 1:
            raise ValueError("a defect of rank 1")
        return before(run)

    Run.take_step = take_step  # pyright: ignore


def test_an_exception_on_one_rank_ends_all(forks: Forks, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    before = partial(fail_in_step, 4)
    assert ended([forks.launcher(arguments(folder), tmp_path / "out", before=before)]) == [1]
    said = (tmp_path / "out").read_text("utf-8")
    places = [said.index(text) for text in ("Traceback", "a defect of rank 1", "lost", "Rank 1 of")]
    assert places == sorted(places)  # the cause first
    assert said.count("Traceback") == 1
    assert Checkpoints(folder / "checkpoints").counts() == [32]
    check_goes_on(forks, folder, whole)


def lose_numbers_in_step(number: int) -> None:
    """The loss of rank 1 is not finite in step `number`."""
    from sfumato.training.objectives.diffusion import DiffusionObjective

    before, steps = DiffusionObjective.loss, count(1)

    def loss(objective: DiffusionObjective, *inputs: Any, **named: Any):
        losses = before(objective, *inputs, **named)
        return losses * float("nan") if next(steps) == number else losses

    DiffusionObjective.loss = loss  # pyright: ignore


@pytest.mark.slow
@pytest.mark.parametrize(("step", "saved"), [(4, [32]), (5, [32, 64])])
def test_a_loss_of_one_rank_that_is_not_finite_ends_all_and_changes_nothing(
    forks: Forks, whole: Path, tmp_path: Path, step: int, saved: list[int]
) -> None:
    """Found by a hook, where one reads the step; else after the next step."""
    folder = tmp_path / "run"
    before = {1: partial(lose_numbers_in_step, step)}
    ranks = forks.ranks(arguments(folder), tmp_path / "out", size=2, before=before)
    found_by = [0, 1] if step == 5 else [0]
    codes = ended(ranks)
    for rank in found_by:
        assert codes[rank] == TrainingError.exit_code
        said = (tmp_path / f"out-{rank}").read_text("utf-8")
        assert f"no longer finite after {16 * (step - 1)} images" in said
    assert Checkpoints(folder / "checkpoints").counts() == saved
    check_goes_on(forks, folder, whole)


def fail_in_build() -> None:
    from sfumato.methods import diffusion

    def defect(*given: Any, **named: Any) -> None:
        raise OSError("no such data")

    diffusion.open_training = defect


@pytest.mark.slow
def test_a_rank_that_fails_before_the_first_step_ends_the_other(forks, tmp_path: Path) -> None:
    given = arguments(tmp_path / "run")
    assert ended(forks.ranks(given, tmp_path / "out", size=2, before={1: fail_in_build})) == [4, 2]
    assert "no such data" in (tmp_path / "out-1").read_text("utf-8")


def kill_in_save(*, part: int) -> None:
    """The process is killed while it writes the `part`th part of a checkpoint."""
    before, written = checkpoints_module.save_state, []

    def save_state(state: Any, path: Path) -> None:
        written.append(path)
        if len(written) == part:
            path.write_bytes(b"half a file")
            os.kill(os.getpid(), signal.SIGKILL)
        before(state, path)

    checkpoints_module.save_state = save_state


@pytest.mark.slow
def test_a_kill_during_a_save_loses_nothing(forks: Forks, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    before = {0: partial(kill_in_save, part=5)}  # of the second checkpoint, with three parts each
    codes = ended(forks.ranks(arguments(folder), tmp_path / "out", size=2, before=before))
    assert codes == [KILLED, LOST]
    assert any(folder.rglob(f"{TEMPORARY_PREFIX}*"))
    check_goes_on(forks, folder, whole)


@pytest.mark.slow
def test_a_truncated_checkpoint_is_passed_over(forks: Forks, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    codes = ended(
        [forks.launcher(arguments(folder), tmp_path / "o", before=partial(fail_in_step, 10))]
    )
    assert codes == [1]  # a step after the checkpoint: by then its numbers are those of both
    newest = Checkpoints(folder / "checkpoints").all()[-1].path
    assert newest.name == "images-000000128"
    file = newest / "unet.safetensors"
    os.truncate(file, file.stat().st_size // 2)
    said = check_goes_on(forks, folder, whole)
    assert "truncated" in said
    assert "at 96 images" in said


# Files --------------------------------------------------------------------------------------------


def no_space_left(*, part: int) -> None:
    """As on a full disk: the `part`th part of a checkpoint cannot be written."""
    before, written = checkpoints_module.save_state, []

    def save_state(state: Any, path: Path) -> None:
        written.append(path)
        if len(written) == part:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        before(state, path)

    checkpoints_module.save_state = save_state


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for one checkpoint."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount")
    if done.returncode:
        pytest.skip("a file system may not be mounted here")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def check_full(forks: Forks, folder: Path, base: Path, **options: Any) -> None:
    codes = ended(forks.ranks(arguments(folder), base / "out", size=2, **options))
    assert codes == [2, LOST]
    assert "No space" in (base / "out-0").read_text("utf-8")
    assert not any(folder.rglob(f"{TEMPORARY_PREFIX}*"))
    newest = Checkpoints(folder / "checkpoints").latest()
    assert newest is not None
    assert newest.images_seen >= 32


def test_a_full_disk(forks: Forks, tmp_path: Path) -> None:
    check_full(forks, tmp_path / "run", tmp_path, before={0: partial(no_space_left, part=5)})


def test_a_disk_that_is_really_full(forks: Forks, small_disk: Path, tmp_path: Path) -> None:
    check_full(forks, small_disk / "run", tmp_path)


@pytest.mark.slow
def test_rank_0_alone_needs_the_run_folder(forks: Forks, whole: Path, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    (there / "run").mkdir(parents=True)
    (there / "run" / "precious").write_text("not a run of sfumato")
    before = {0: partial(os.chdir, here), 1: partial(os.chdir, there)}
    given = arguments("run")
    codes = ended(forks.ranks(given, tmp_path / "out", size=2, before=before))
    assert codes == [0, 0]
    assert written(here / "run") == written(whole)
    assert [path.name for path in there.rglob("*")] == ["run", "precious"]


@pytest.mark.slow
def test_rank_1_may_have_a_folder_that_it_cannot_write(forks, whole, tmp_path: Path) -> None:
    given = [arguments(tmp_path / "run"), arguments("/dev/null/run")]
    assert ended(forks.ranks(given, tmp_path / "out", size=2)) == [0, 0]
    assert written(tmp_path / "run") == written(whole)


def shorten_the_wait() -> None:
    lock.WAIT_SECONDS = 1


def test_a_run_folder_has_one_training_at_a_time(forks: Forks, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = forks.command(arguments(folder, *LONG), tmp_path / "first")
    wait_for(lambda: lines(folder) >= 1)
    before = {0: shorten_the_wait}
    second = forks.ranks(arguments(folder, *LONG), tmp_path / "second", size=2, before=before)
    assert ended(second) == [2, LOST]
    said = (tmp_path / "second-0").read_text("utf-8")
    assert f"process {first.pid} on {os.uname().nodename}" in said
    assert first.is_alive()
    first.kill()
    first.join()
    seen = lines(folder)
    third = forks.command(arguments(folder, *LONG), tmp_path / "third", before=shorten_the_wait)
    wait_for(lambda: lines(folder) >= seen + 1)
    third.terminate()
    assert ended([third]) == [130]
    images = [record["images"] for record in read_records(folder / "metrics.jsonl")]
    assert images == sorted(set(images))


# Ranks that do not belong together ----------------------------------------------------------------


def other_code() -> None:
    from sfumato.training import run

    run.code_digest = lambda: "another"


@pytest.mark.parametrize("differs", ["configuration", "code"])
def test_ranks_that_differ_are_refused(forks: Forks, tmp_path: Path, differs: str) -> None:
    mine = arguments(tmp_path / "run")
    theirs = [*mine, "--set", "seed=5"] if differs == "configuration" else mine
    before = {1: other_code} if differs == "code" else {}
    codes = ended(forks.ranks([mine, theirs], tmp_path / "out", size=2, before=before))
    assert codes == [LOST, LOST]
    for rank in range(2):
        said = (tmp_path / f"out-{rank}").read_text("utf-8")
        assert f"differ in their {differs}" in said
    assert not (tmp_path / "run").exists()


def wait_less(seconds: float) -> None:
    distributed.RENDEZVOUS_SECONDS = seconds


def test_a_rendezvous_that_nobody_opens(forks: Forks, tmp_path: Path) -> None:
    variables = {**ranks_of(2), "RANK": "1", "LOCAL_RANK": "1"}
    given = arguments(tmp_path / "run")
    process = forks.command(given, tmp_path / "out", before=partial(wait_less, 1), **variables)
    assert ended([process], seconds=20) == [LOST]
    said = (tmp_path / "out").read_text("utf-8")
    assert variables["MASTER_PORT"] in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_ranks_that_never_come(forks: Forks, tmp_path: Path) -> None:
    variables = ranks_of(4)
    started = [
        forks.command(
            arguments(tmp_path / "run"),
            tmp_path / f"out-{rank}",
            before=partial(wait_less, 3),
            **{**variables, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert ended(started, seconds=20) == [LOST, LOST]
    for rank in range(2):
        assert "Rank 2, 3 of 4" in (tmp_path / f"out-{rank}").read_text("utf-8")


def test_absent_ranks_are_waited_for_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """One deadline for all of them, not one after the other."""
    monkeypatch.setattr(distributed, "RENDEZVOUS_SECONDS", 1)
    for name, value in {**ranks_of(9), "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    started = time.monotonic()
    with pytest.raises(DistributedError, match="1, 2, 3, 4, 5, 6, 7, 8"):
        distributed._meet(world_of(os.environ))
    assert time.monotonic() - started < 5


def test_the_wait_for_ranks_is_below_a_minute() -> None:
    assert RENDEZVOUS_SECONDS + launch.GRACE_SECONDS < 60


@pytest.mark.slow
def test_the_real_wait_for_ranks_is_below_a_minute(forks: Forks, tmp_path: Path) -> None:
    started = []
    for rank in range(2):  # rank 0 waits for rank 1; rank 1 for a rank 0 that is elsewhere
        variables = {**ranks_of(2), "RANK": str(rank), "LOCAL_RANK": str(rank)}
        given = arguments(tmp_path / "run")
        started.append(forks.command(given, tmp_path / f"out-{rank}", **variables))
    assert ended(started, seconds=60) == [LOST, LOST]


def look_slowly(seconds: float, *, rank: str, fails: bool = False) -> None:
    """The look at the data takes `rank` longer than ranks wait for each other."""
    from sfumato.data import survey as module

    before = module.survey
    distributed.RENDEZVOUS_SECONDS = seconds / 2

    def survey(config: Any) -> Any:
        if os.environ["RANK"] == rank:
            time.sleep(seconds)
            if fails:
                raise OSError("no such data")
        return before(config)

    module.survey = survey


@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True])
def test_a_rank_may_look_at_the_data_for_longer_than_ranks_wait(forks, tmp_path, fails) -> None:
    """They meet before; and one that fails then ends the others at once."""
    before = partial(look_slowly, 4, rank="1", fails=fails)
    given = arguments(tmp_path / "run", "training.images=32")
    started = forks.ranks(given, tmp_path / "out", size=2, before={0: before, 1: before})
    assert ended(started, seconds=30) == ([LOST, 2] if fails else [0, 0])
    assert (tmp_path / "run").exists() != fails


def test_nccl_connects_where_its_errors_are_told(monkeypatch, refused) -> None:
    """With a `device_id`; else it connects in the first collective, and all ranks seem lost."""
    chosen: list[Any] = []

    def init_process_group(backend: str, **given: Any) -> None:
        chosen.append(given["device_id"])
        raise RuntimeError("NCCL error: duplicate GPU\nmore")

    monkeypatch.setattr(torch.distributed, "init_process_group", init_process_group)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(distributed.socket, "gethostname", lambda: "node7")
    with refused(DistributedError):
        distributed._connect(World(rank=3, size=4, local_rank=1), torch.device("cuda"), None)
    assert chosen == [torch.device("cuda:1")] * 2


COMPLETE = {**ranks_of(2), "RANK": "1", "LOCAL_RANK": "1"}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"RANK": None}, "RANK"),
        ({"RANK": ""}, "RANK"),
        ({"WORLD_SIZE": None}, "WORLD_SIZE"),
        ({"MASTER_ADDR": None}, "MASTER_ADDR"),
        ({"RANK": "2"}, "RANK is 2"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is 0"),
        ({"RANK": "one"}, "'one'"),
        ({"RANK": "-1"}, "'-1'"),
        ({"WORLD_SIZE": "two"}, "'two'"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK"),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK is 2"),
        ({"LOCAL_WORLD_SIZE": "1"}, "LOCAL_RANK is 1"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT"),
        ({"MASTER_PORT": "65536"}, "MASTER_PORT"),
        ({"SLURM_STEP_NUM_TASKS": "4"}, "srun started 4"),
        ({"SLURM_STEP_NUM_TASKS": "4", "RANK": None, "WORLD_SIZE": None}, "srun started 4"),
    ],
)
def test_an_environment_that_contradicts_itself_is_refused(change: Any, word: str) -> None:
    variables = {**COMPLETE, **change}
    with pytest.raises(DistributedError, match=word) as raised:
        world_of({name: value for name, value in variables.items() if value is not None})
    assert raised.value.hint


@pytest.mark.parametrize(
    "variables",
    [{}, {"SLURM_STEP_NUM_TASKS": "1"}, {"LOCAL_RANK": "3", "MASTER_PORT": "x"}],
)
def test_an_environment_without_ranks_is_one_process(variables: dict[str, str]) -> None:
    assert world_of(variables) is ALONE


def test_an_environment_of_ranks() -> None:
    world = world_of({**COMPLETE, "SLURM_STEP_NUM_TASKS": "2"})
    assert (world.rank, world.size, world.local_rank) == (1, 2, 1)
    elastic = {"TORCHELASTIC_RUN_ID": "1", "SLURM_STEP_NUM_TASKS": "9"}  # one torchrun a node
    assert world_of({**COMPLETE, **elastic}).size == 2


def test_a_launcher_inside_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    with pytest.raises(DistributedError, match="torchrun"):
        launch.run_processes(["train"], 2)


def test_another_error_is_not_the_loss_of_a_rank() -> None:
    assert not distributed._is_loss(RuntimeError("CUDA out of memory"))


def test_a_file_system_without_locks_is_said_so(tmp_path: Path, monkeypatch, warned) -> None:
    """The work goes on: what cannot be refused is at least warned of."""

    def unsupported(handle: Any, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with warned(SfumatoWarning), lock.locked(tmp_path / "run"):
        assert (tmp_path / "run" / ".lock").exists()
    assert not (tmp_path / "run").exists()
