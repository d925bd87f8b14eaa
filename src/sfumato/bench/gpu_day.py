"""What a few minutes of one GPU are used for: the same numbers, the speed, the paper's runs.

Everything that can be prepared is prepared before: the data, the classifier. After each part the
record is written, so a session that is cut keeps what it has measured.
"""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from sfumato import __version__
from sfumato.base.environment import command, hardware, now
from sfumato.base.files import write_json
from sfumato.bench.network_cost import network_cost
from sfumato.bench.plain_loops import example_training, plain_training
from sfumato.bench.stand_in import on_stand_in
from sfumato.bench.steps import (
    LEAST_PAIRS,
    Comparison,
    compare_training,
    prepared_training,
)
from sfumato.config.schema import DiffusionExperiment, load_experiment
from sfumato.evaluation.evaluate import evaluate
from sfumato.generation.loading import load
from sfumato.methods.registry import run_experiment
from sfumato.training.hooks import TimeLimitHook
from sfumato.training.progress import TrainingProgress
from sfumato.training.run import fast_convolutions

Log = Callable[[str], None]
_MATRIX_SECONDS = 0.5
"""Matrix products of one arithmetic are timed for so long, and once at least."""
FORWARD_AND_BACKWARD = 3
"""FLOPs of a training step over those of its forward pass."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to do and with what; a part without its data is left out, which the record says."""

    out: Path
    device: str = "auto"
    minutes: float = 8.0
    tests: Path | None = None
    """The file of tests for GPUs."""
    presets: Sequence[str] = ("mnist", "cifar10-small", "cifar10", "wikiart")
    """Whose steps are timed, on random images."""
    mnist: Path | None = None
    cifar10: Path | None = None
    classifier: str = "auto"
    """That of CIFAR-10's class accuracy: a run of `sfumato train classifier`."""
    settings: Sequence[str] = ()
    """For every preset, as `--set` takes them."""
    batch_size: int = 512
    """Of `cifar10-small`, at the rate `lr`: its own batch leaves a large GPU idle."""
    lr: float = 8e-4
    count: int = 1_000
    """Images of each guidance scale."""


@dataclass
class Day:
    """The record of a day, and its clock."""

    plan: Plan
    log: Log
    record: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds_left(self) -> float:
        return 60 * self.plan.minutes - (time.monotonic() - self.started)

    @contextmanager
    def part(self, name: str) -> Iterator[dict[str, Any]]:
        """A part of the record, written when it ends; one that fails does not end the day."""
        found: dict[str, Any] = {}
        self.record[name] = found
        self.log(f"{name} ({self.seconds_left:.0f} s left)")
        started = time.monotonic()
        try:
            yield found
        except Exception as error:  # the next part is worth its minutes all the same
            found["failed"] = f"{type(error).__name__}: {error}"
            self.log(f"  failed: {found['failed']}")
        found["seconds"] = round(time.monotonic() - started, 1)
        write_json(self.plan.out / "gpu-day.json", self.record)


def gpu_day(plan: Plan, log: Log = print) -> dict[str, Any]:
    """Run every part of `plan` that has its data; returns the record, which is also in
    `out/gpu-day.json`."""
    day = Day(plan, log)
    data = {"mnist": plan.mnist, "cifar10-small": plan.cifar10}
    day.record.update(
        date=now(),
        sfumato=__version__,
        command=command(),
        hardware=hardware(),
        left_out=[name for name, folder in data.items() if folder is None],
    )
    with day.part("tests") as found:
        _tests(plan, found)
    with day.part("matrix_rate") as found:
        found.update(matrix_rates(plan.device))
    for preset in plan.presets:
        with day.part(f"step {preset}") as found:
            found.update(step_speed(day, preset))
    if plan.mnist is not None:
        with day.part("mnist") as found:
            found.update(_mnist(day, plan.mnist))
    if plan.cifar10 is not None:
        with day.part("cifar10-small") as found:
            found.update(_cifar10(day, plan.cifar10))
    return day.record


def _tests(plan: Plan, found: dict[str, Any]) -> None:
    """The tests for GPUs but for the compiled steps, which take minutes to compile."""
    if plan.tests is None:
        found["left_out"] = "no file of tests was given"
        return
    arguments = ["-m", "gpu", "-k", "not compiled", "-n", "0", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", str(plan.tests), *arguments],
        capture_output=True,
        text=True,
        timeout=max(60.0, 60 * plan.minutes / 3),
        check=False,
    )
    lines = done.stdout.splitlines()
    found["exit_code"] = done.returncode
    endings = [line for line in lines if re.search(r"\d+ \w+ in", line)]
    found["summary"] = endings[-1].strip("= ") if endings else ""
    found["failed_tests"] = [line for line in lines if line.startswith(("FAILED", "ERROR"))]


# Speed --------------------------------------------------------------------------------------------


def matrix_rates(device: str, *, size: int | None = None) -> dict[str, float]:
    """TFLOP/s of a square matrix product by arithmetic: the roof of every step. float32 with TF32,
    in which torch computes float32 convolutions on a GPU."""
    from sfumato.generation.loading import resolve_device

    where = resolve_device(device)
    before, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, True
    size = size or (8192 if where.type == "cuda" else 1024)
    rates = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        a, b = (torch.randn(size, size, device=where).to(dtype) for _ in range(2))
        a @ b  # the first one loads the library
        best, taken = float("inf"), 0.0
        while taken < _MATRIX_SECONDS:
            _wait(where)
            started = time.perf_counter()
            a @ b
            _wait(where)
            seconds = time.perf_counter() - started
            best, taken = min(best, seconds), taken + seconds
        rates[name] = 2 * size**3 / best / 1e12
    torch.backends.cuda.matmul.allow_tf32 = before
    return rates


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def step_speed(day: Day, preset: str) -> dict[str, Any]:
    """The step of a preset: its time, its share of the floor that its FLOPs set, and its ratio to
    two loops written plainly."""
    with TemporaryDirectory(prefix="sfumato-bench-") as folder:
        experiment = _on_random_images(day.plan, preset, Path(folder))
        with (
            prepared_training(experiment, day.plan.device) as run,
            fast_convolutions(run.device),
        ):
            cuda = run.device.type == "cuda"
            if cuda:
                torch.cuda.reset_peak_memory_stats(run.device)
            run.total_images = run.images_seen + 2 * run.batches.batch_size
            while not run.finished:
                run.take_step()
            peak = torch.cuda.max_memory_allocated(run.device) if cuda else None
            loops = {"bare": plain_training, "diffusers_example": example_training}
            compared = {
                name: compare_training(
                    run, written(experiment, run), pairs=LEAST_PAIRS, steps=4 if cuda else 1
                )
                for name, written in loops.items()
            }
    return _speed(day, experiment, compared, peak)


def _speed(
    day: Day, experiment: DiffusionExperiment, compared: dict[str, Comparison], peak: int | None
) -> dict[str, Any]:
    cost, training = network_cost(experiment), experiment.training
    bare = compared["bare"]
    seconds = float(np.median(bare.ours_seconds)) / (bare.images / training.batch_size)
    flops = FORWARD_AND_BACKWARD * cost.forward_flops * training.batch_size
    rate = 1e12 * day.record["matrix_rate"][training.precision]
    return {
        "batch_size": training.batch_size,
        "precision": training.precision,
        "parameters": cost.parameters,
        "step_ms": 1e3 * seconds,
        "images_per_second": training.batch_size / seconds,
        "tflops": flops / seconds / 1e12,
        "share_of_floor": flops / rate / seconds,
        "peak_memory_bytes": peak,
        "over": {name: asdict(one.ratio) for name, one in compared.items()},
    }


def _on_random_images(plan: Plan, preset: str, folder: Path) -> DiffusionExperiment:
    """A preset on noise: no data set is needed."""
    own = {
        "cifar10-small": f"training.batch_size={plan.batch_size}",
        "wikiart": "training.precision=bfloat16",  # in float32 its batch needs 120 GB
    }
    settings = [own[preset]] if preset in own else []
    wanted = load_experiment(preset, [*settings, *plan.settings], schema=DiffusionExperiment)
    return on_stand_in(wanted, folder / "data")


# The paper's runs ---------------------------------------------------------------------------------


def _mnist(day: Day, data: Path) -> dict[str, Any]:
    """The paper's 20 epochs of MNIST with figures 1 to 7."""
    from sfumato.paper.figures import write_figures

    settings = [f"data.source={data}", "text.encoder=bundled", *day.plan.settings]
    found = _trained(day, "mnist", settings, seconds=0.5 * day.seconds_left)
    write_figures(load(day.plan.out / "mnist", device=day.plan.device), day.plan.out / "figures")
    return found


def _cifar10(day: Day, data: Path) -> dict[str, Any]:
    """`cifar10-small` for the minutes left, its length set by the speed that was measured, and its
    card."""
    plan = day.plan
    reserve = min(90.0, 0.3 * day.seconds_left)
    seconds = day.seconds_left - reserve
    measured = day.record.get("step cifar10-small", {}).get("images_per_second", 100.0)
    images = max(plan.batch_size, int(0.9 * seconds * measured))
    settings = [
        f"data.source={data}",
        "text.encoder=bundled",
        f"training.batch_size={plan.batch_size}",
        f"training.optimizer.lr={plan.lr}",
        f"training.images={images}",
        f"training.sample_every_images={images}",
        f"training.averaging.halflife_images={max(1, images // 20)}",
        *plan.settings,
    ]
    found = _trained(day, "cifar10-small", settings, seconds=seconds)
    card = evaluate(
        load(plan.out / "cifar10-small", device=plan.device),
        count=plan.count,
        guidance_scales=[1.0, 1.5, 2.0],
        device=plan.device,
        classifier=plan.classifier,
        log=day.log,
    )
    rows = [
        {"title": row.title, "count": row.count, **{k: str(v) for k, v in row.metrics.items()}}
        for row in card.rows
    ]
    return {**found, "rows": rows}


def _trained(day: Day, preset: str, settings: list[str], *, seconds: float) -> dict[str, Any]:
    """Train a preset into a folder of its name, at most for `seconds`."""
    experiment = load_experiment(preset, settings, schema=DiffusionExperiment)
    started = time.monotonic()
    run = run_experiment(
        experiment,
        day.plan.out / preset,
        device=day.plan.device,
        hooks=[TrainingProgress(), TimeLimitHook(seconds=max(1.0, seconds))],
    )
    taken = time.monotonic() - started
    return {
        "images_seen": run.images_seen,
        "finished": run.finished,
        "training_seconds": round(taken, 1),
        "batch_size": experiment.training.batch_size,
        "lr": experiment.training.optimizer.lr,
        "settings": settings,
    }
