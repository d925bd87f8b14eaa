"""Where the time of a training step goes: the paper's Table 3, of the step that really trains.

The stages are marks in the training code (`base/stages.py`); nothing is written a second time. On
a GPU they are events on its stream, so a stage is what the device spends or waits there: loading
that is hidden behind the step before costs nothing.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from sfumato import __version__
from sfumato.base.environment import command, hardware, now
from sfumato.base.files import write_json
from sfumato.base.stages import listening
from sfumato.evaluation.metrics.intervals import Estimate, bootstrap_mean
from sfumato.report.page import png_of
from sfumato.training.loop import Batches, Run
from sfumato.training.run import fast_convolutions

STAGES = {
    "data": "data loading",
    "transfer": "move to device",
    "text": "text encoding",
    "dropout": "caption dropout",
    "noise": "noise",
    "forward": "forward pass",
    "loss": "loss",
    "backward": "backward pass",
    "optimizer": "optimizer",
    "averages": "averaged weights",
    "other": "other",
    "simulated": "simulated step",
}
"""Titles of the stages in their order. Captions are encoded before training, so `text` reads them
from a table; `other`: what lies between the marks."""
PAPER_MS = {
    "data": 1857.2,
    "transfer": 0.5,
    "text": 78.8,
    "dropout": 9.0,
    "noise": 8.3,
    "forward": 272.6,
    "loss": 7.2,
    "backward": 405.9,
}
"""Table 3 of the paper, 16 images a step on an A100; 2639.5 ms in all."""
WARM_UP_STEPS = 3
_MUCH = 0.1
_TRACED_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class Profile:
    """`steps`: seconds of each stage in each step; `whole_seconds`: a step by the clock, of the
    same steps; `plain_seconds`: of as many steps before them, without marks."""

    name: str
    batch_size: int
    device: str
    steps: list[dict[str, float]]
    whole_seconds: float
    plain_seconds: float

    def estimates(self) -> dict[str, Estimate]:
        """Mean seconds of each stage that occurs, with a 95 % interval over the steps."""
        found = [name for name in STAGES if any(name in step for step in self.steps)]
        return {
            name: bootstrap_mean(
                torch.tensor([step.get(name, 0.0) for step in self.steps], dtype=torch.float64)
            )
            for name in found
        }

    @property
    def simulated(self) -> bool:
        """Whether the device was one of `SimulatedDevice`."""
        return "simulated" in self.steps[0]

    @property
    def seconds(self) -> float:
        """The stages of a step together."""
        return sum(sum(step.values()) for step in self.steps) / len(self.steps)

    def share(self, *names: str) -> float:
        """The share of these stages in a step."""
        mine = sum(step.get(name, 0.0) for step in self.steps for name in names)
        return mine / len(self.steps) / self.seconds

    def bottleneck(self) -> str:
        """What to change first, in a sentence."""
        loading = self.share("data", "transfer")
        network = self.share("forward", "backward", "simulated")
        rest = max(
            (name for name in STAGES if name not in ("data", "transfer", "forward", "backward")),
            key=self.share,
        )
        of_all = f"{1e3 * self.seconds:,.1f} ms"
        if loading > _MUCH:
            return (
                f"Data: {loading:.0%} of a step of {of_all} is waiting for images; without it "
                f"training would be {1 / (1 - loading):.2f} times as fast. `sfumato prepare` "
                "decodes once; data.workers decodes with more processes."
            )
        if network >= 0.5:
            return (
                f"The network: {network:.0%} of a step of {of_all}, and images are there in time "
                f"({loading:.1%}). A larger batch helps only as far as it lowers the "
                f"{1e3 * self.seconds / self.batch_size:,.3g} ms of an image: `sfumato bench "
                "batch-size` measures it."
            )
        return (
            f"Overhead: {STAGES[rest]} takes {self.share(rest):.0%} of a step of {of_all}, the "
            f"network {network:.0%}. A larger batch (training.batch_size) spreads it over more "
            "images."
        )


# Measuring ----------------------------------------------------------------------------------------


class StageTimer:
    """Marks where stages begin: by the clock on a CPU, by events on the stream of a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._current = "other"
        self._steps: list[list[tuple[str, Any]]] = []

    def switch(self, name: str) -> str:
        outer, self._current = self._current, name
        self._steps[-1].append((name, self._mark()))
        return outer

    def begin_step(self) -> None:
        """A step begins here; the one before it ends."""
        mark = self._mark()
        if self._steps:
            self._steps[-1].append(("", mark))
        self._steps.append([("other", mark)])

    def seconds(self) -> list[dict[str, float]]:
        """Of each stage in each step but the last, which has only begun."""
        found = []
        for marks in self._steps[:-1]:
            step: dict[str, float] = {}
            for (name, start), (_, end) in pairwise(marks):
                taken = start.elapsed_time(end) / 1e3 if self._cuda else end - start
                step[name] = step.get(name, 0.0) + taken
            found.append(step)
        return found

    def _mark(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def profile_training(run: Run, *, name: str, steps: int) -> Profile:
    """Time the stages of `steps` steps of a run, after as many without marks and a few to warm
    up."""
    timer = StageTimer(run.device)

    def marked() -> None:
        timer.begin_step()
        run.take_step()

    with fast_convolutions(run.device):
        _seconds_a_step(run, run.take_step, WARM_UP_STEPS)
        plain = _seconds_a_step(run, run.take_step, steps)
        with listening(timer):
            whole = _seconds_a_step(run, marked, steps, end=timer.begin_step)
    return Profile(
        name=name,
        batch_size=run.batches.batch_size,
        device=str(run.device),
        steps=timer.seconds(),
        whole_seconds=whole,
        plain_seconds=plain,
    )


def _seconds_a_step(
    run: Run,
    step: Callable[[], object],
    count: int,
    *,
    end: Callable[[], None] = lambda: None,
) -> float:
    def wait() -> None:
        run.check()
        if run.device.type == "cuda":
            torch.cuda.synchronize(run.device)

    wait()
    started = time.perf_counter()
    for _ in range(count):
        step()
    end()
    wait()
    return (time.perf_counter() - started) / count


# A step of a given length -------------------------------------------------------------------------


class SimulatedDevice:
    """A device whose steps take `seconds`, as a GPU takes them: the host queues one step ahead and
    is free meanwhile. Tells how long the device was idle before each step."""

    def __init__(
        self,
        seconds: float,
        *,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._seconds, self._clock, self._sleep = seconds, clock, sleep
        self._free_at = clock()

    def step(self) -> float:
        """Queue a step whose images are there now; returns the seconds that the device waited for
        them. The host waits for the step before."""
        arrived = self._clock()
        started = max(arrived, self._free_at)
        idle = started - self._free_at
        if started > arrived:
            self._sleep(started - arrived)
        self._free_at = started + self._seconds
        return idle


def profile_loading(
    batches: Batches, device: SimulatedDevice, *, name: str, step_seconds: float, steps: int
) -> Profile:
    """How long steps of `step_seconds` wait for `batches`."""
    waited: list[float] = []
    started = time.perf_counter()
    for step in range(WARM_UP_STEPS + steps):
        batches.at(step * batches.batch_size)
        waited.append(device.step())
        if step == WARM_UP_STEPS - 1:
            started = time.perf_counter()
    whole = (time.perf_counter() - started) / steps
    measured = waited[WARM_UP_STEPS:]
    return Profile(
        name=name,
        batch_size=batches.batch_size,
        device="a simulated device",
        steps=[{"data": idle, "simulated": step_seconds} for idle in measured],
        whole_seconds=whole,
        plain_seconds=whole,
    )


# What is written ----------------------------------------------------------------------------------


class _Annotations:
    """Stages as named ranges of torch's profiler."""

    def __init__(self) -> None:
        self._current, self._range = "other", torch.profiler.record_function("other")
        self._range.__enter__()

    def switch(self, name: str) -> str:
        self.close()
        outer, self._current = self._current, name
        self._range = torch.profiler.record_function(name)
        self._range.__enter__()
        return outer

    def close(self) -> None:
        self._range.__exit__(None, None, None)


def write_trace(run: Run, path: Path) -> None:
    """A Chrome trace of three steps, with the stages as ranges: chrome://tracing and Perfetto read
    it."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if run.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler, _annotated():
        for _ in range(_TRACED_STEPS):
            run.take_step()
        run.check()
    profiler.export_chrome_trace(str(path))


@contextmanager
def _annotated() -> Iterator[None]:
    ranges = _Annotations()
    try:
        with listening(ranges):
            yield
    finally:
        ranges.close()


def save_profile(profile: Profile, path: Path, **conditions: Any) -> None:
    """Every step as JSON, with the machine and the `conditions` it was measured under."""
    record = {
        "date": now(),
        "sfumato": __version__,
        "command": command(),
        "hardware": hardware(),
        **conditions,
        "milliseconds": {
            name: {**_in_ms(one), "share": profile.share(name)}
            for name, one in profile.estimates().items()
        },
        "bottleneck": profile.bottleneck(),
        **asdict(profile),
    }
    write_json(path, record)


def _in_ms(one: Estimate) -> dict[str, float]:
    low, high = one.interval
    return {"mean": 1e3 * one.value, "low": 1e3 * low, "high": 1e3 * high}


def chart(profile: Profile, *, paper: Mapping[str, float] | None = None) -> bytes:
    """PNG: a bar for each stage in milliseconds with its interval and share; `paper`: marks beside
    them."""
    from matplotlib.figure import Figure

    found = profile.estimates()
    names: Sequence[str] = [*found][::-1]
    means = [1e3 * found[name].value for name in names]
    lows, highs = zip(*(found[name].interval for name in names), strict=True)
    spans = [
        [mean - 1e3 * low for mean, low in zip(means, lows, strict=True)],
        [1e3 * high - mean for mean, high in zip(means, highs, strict=True)],
    ]
    figure = Figure(figsize=(8, 0.42 * len(names) + 1.5), dpi=130, layout="constrained")
    axes = figure.subplots()
    colours = ["#b5651d" if name in ("data", "transfer") else "#2a6f97" for name in names]
    titles = [STAGES[name] for name in names]
    bars = axes.barh(titles, means, xerr=spans, color=colours, error_kw={"lw": 1, "capsize": 2})
    labels = [
        f"{mean:,.3g} ms, {profile.share(name):.1%}"
        for mean, name in zip(means, names, strict=True)
    ]
    axes.bar_label(bars, labels, padding=5, fontsize=9)
    known = {STAGES[name]: ms for name, ms in (paper or {}).items() if name in found}
    if known:
        style = {"ms": 14, "mew": 1.5, "color": "#7a7a7a", "ls": ""}
        axes.plot(list(known.values()), list(known), "|", **style)
    axes.set_xlim(0, 1.3 * max([*means, *known.values()]))
    marks = "; grey marks: the paper's Table 3 (A100)" if known else ""
    axes.set_xlabel(f"milliseconds of a step{marks}")
    axes.set_title(
        f"{profile.name}, {profile.batch_size} images a step on {profile.device}: "
        f"{1e3 * profile.seconds:,.1f} ms",
        fontsize=10,
    )
    axes.spines[["top", "right"]].set_visible(False)
    return png_of(figure)
