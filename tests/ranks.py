"""Ranks and launchers that start in milliseconds: forked from a process that has imported all."""

import atexit
import contextlib
import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

from sfumato.training.launch import _free_port

TINY = (
    "data.resolution=8",
    "model.block_out_channels=[8,16]",
    "model.levels=[plain,attention]",
    "model.norm_num_groups=4",
    "training.batch_size=16",
    "training.images=160",
    "training.averaging.halflife_images=8",
    "training.log_every_images=48",
    "training.sample_every_images=64",
    "training.checkpoint_every_images=32",
    "sampling.steps=2",
)
LONG = (
    *("training.images=1000000", "training.averaging.halflife_images=1500"),
    *("training.sample_every_images=1000000", "training.checkpoint_every_images=1000000"),
)
"""Added to TINY: a run that ends when it is told to."""
PRELOADED = (
    *("pytest", "sklearn.datasets", "sfumato.cli", "sfumato.methods.diffusion", "torch._dynamo"),
    *("transformers.models.clip.modeling_clip", "transformers.models.clip.tokenization_clip"),
    *("diffusers.models.unets.unet_2d_condition", "diffusers.pipelines.pipeline_utils"),
    *("diffusers.image_processor", "diffusers.schedulers.scheduling_ddim", "diffusers.guiders"),
    *("sfumato.methods.registry", "sfumato.generation.export", "PIL.ImageDraw", "matplotlib.cm"),
    "tests.warm",
)
"""What a training run imports."""
WAIT_SECONDS = 60
"""No fault may take longer to end a run."""
Before = Callable[[], object]
_POPEN = subprocess.Popen


def arguments(folder: Path | str, *settings: str, preset: str = "digits") -> list[str]:
    """The arguments of `sfumato` that train a tiny network."""
    changes = [part for setting in (*TINY, *settings) for part in ("--set", setting)]
    return ["train", preset, "--device", "cpu", "--out", str(folder), *changes]


class Forks:
    """Starts processes that have imported everything."""

    def __init__(self) -> None:
        self.context: ForkServerContext = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(list(PRELOADED))
        self._started: list[ForkServerProcess] = []

    def start(self, target: Callable[..., object], *given: Any) -> ForkServerProcess:
        process = self.context.Process(target=target, args=given)
        process.start()
        self._started.append(process)
        return process

    def command(
        self,
        given: Sequence[str],
        output: Path,
        *,
        before: Before | None = None,
        **variables: str,
    ) -> ForkServerProcess:
        """`sfumato GIVEN` with its output in a file; `before` is called in its process."""
        return self.start(run_command, given, variables, output, before)

    def ranks(
        self,
        given: Sequence[str] | Sequence[Sequence[str]],
        output: Path,
        *,
        size: int,
        before: Mapping[int, Before] | None = None,
        **variables: str,
    ) -> list[ForkServerProcess]:
        """The ranks of `sfumato GIVEN`, started by hand; each writes to `output`-RANK. `given`
        may differ by rank."""
        world = ranks_of(size)
        each = [given] * size if isinstance(given[0], str) else given
        return [
            self.command(
                list(mine),
                output.with_name(f"{output.name}-{rank}"),
                before=(before or {}).get(rank),
                **{**world, "RANK": str(rank), "LOCAL_RANK": str(rank), **variables},
            )
            for rank, mine in enumerate(each)
        ]

    def launcher(
        self,
        given: Sequence[str],
        output: Path,
        *,
        before: Before | None = None,
        grace_seconds: float = 10,
    ) -> ForkServerProcess:
        """`sfumato GIVEN --processes 2`, whose launcher forks its ranks instead of starting Python
        anew; `before` is called in each rank."""
        return self.start(run_launcher, [*given, "--processes", "2"], output, before, grace_seconds)

    def end(self) -> None:
        for process in self._started:
            process.kill()
            process.join()


def ranks_of(size: int) -> dict[str, str]:
    """The environment of the ranks of a world, without their own numbers."""
    return {
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "GLOO_SOCKET_IFNAME": "lo",
    }


def ended(processes: Sequence[ForkServerProcess], seconds: float = WAIT_SECONDS) -> list[int]:
    """Exit codes of processes that must end within `seconds`."""
    deadline = time.monotonic() + seconds
    for process in processes:
        process.join(max(0, deadline - time.monotonic()))
        assert process.exitcode is not None, f"still running after {seconds} seconds"
    return [int(process.exitcode or 0) for process in processes]


def wait_for(condition: Callable[[], object], *, seconds: float = WAIT_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"did not happen within {seconds} seconds"
        time.sleep(0.01)


def lines(folder: Path) -> int:
    """Records of metrics.jsonl so far."""
    file = folder / "metrics.jsonl"
    return file.read_text("utf-8").count("\n") if file.exists() else 0


def contents(folder: Path) -> dict[str, str]:
    """sha256 of every file below `folder`, by name."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def written(folder: Path) -> dict[str, str]:
    """The contents of a run folder, without what depends on the machine."""
    return {name: sha for name, sha in contents(folder).items() if name != "timing.jsonl"}


def is_alive(pid: int) -> bool:
    """Whether a process runs; Linux alone. One that nobody has waited for has ended, too."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text("utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")


def pids(output: Path) -> list[int]:
    """The ranks that a launcher with this output has started, by rank."""
    file = output.with_suffix(".pids")
    return [int(line) for line in file.read_text("utf-8").split()] if file.exists() else []


# In the started processes -------------------------------------------------------------------------


def run_command(
    given: Sequence[str], variables: Mapping[str, str], output: Path, before: Before | None
) -> None:
    import torch
    import transformers

    from sfumato.cli import main

    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()  # a killed one leaks its semaphore
    os.environ.update({"OMP_NUM_THREADS": "1", **variables})
    written = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(written, 1)
    os.dup2(written, 2)
    if before is not None:
        before()
    sys.argv = ["sfumato", *given]
    atexit._clear()
    try:
        main()
    finally:
        atexit._run_exitfuncs()  # as Python would at its end


def run_launcher(
    given: Sequence[str], output: Path, before: Before | None, grace_seconds: float
) -> None:
    from sfumato.training import launch

    launch.GRACE_SECONDS = grace_seconds

    def forked(command: Sequence[str], **options: Any) -> "Forked":
        child = Forked(command, output, before, **options)
        with output.with_suffix(".pids").open("a") as file:
            file.write(f"{child.pid}\n")
        return child

    subprocess.Popen = forked  # pyright: ignore
    run_command(given, {}, output, None)


class Forked:
    """What the launcher uses of `subprocess.Popen`, without a second import of torch."""

    def __init__(
        self,
        command: Sequence[str],
        output: Path,
        before: Before | None,
        *,
        env: Mapping[str, str],
        start_new_session: bool,
        preexec_fn: Before,
    ) -> None:
        assert start_new_session
        assert list(command[:3]) == [sys.executable, "-m", "sfumato"]
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid:
            return
        code: object = 1
        try:
            os.setsid()
            subprocess.Popen = _POPEN  # pyright: ignore  # a rank may start programs
            for number in (signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            preexec_fn()
            with contextlib.suppress(KeyboardInterrupt):
                run_command(command[3:], env, output, before)
                code = 0
        except SystemExit as leaving:
            code = leaving.code or 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code if isinstance(code, int) else 1)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)
