"""Where time and memory of a training step go: Tables 3 and 4 of the paper, and a dry run."""

import json
import signal
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from sfumato.base.errors import InputError, SfumatoError
from sfumato.base.stages import listening, stage
from sfumato.bench import memory
from sfumato.bench.memory import (
    MemoryModel,
    Trial,
    find_batch_sizes,
    smallest_close_to_best,
    try_size,
)
from sfumato.bench.profile import (
    STAGES,
    Profile,
    SimulatedDevice,
    StageTimer,
    chart,
    profile_loading,
    profile_training,
    write_trace,
)
from sfumato.bench.run_estimate import estimate_run, training_images
from sfumato.bench.stand_in import on_stand_in
from sfumato.bench.steps import prepared_training
from sfumato.config.schema import load_experiment
from sfumato.config.sections import DataConfig
from sfumato.methods.registry import prepare_run

TINY = [
    "data.resolution=8",
    "model.block_out_channels=[8,16]",
    "model.levels=[plain,attention]",
    "training.batch_size=8",
]
CPU = torch.device("cpu")


def tiny(*more: str):
    return load_experiment("digits", [*TINY, *more])


class Clock:
    """Seconds that pass only when they are slept."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


# Stages -------------------------------------------------------------------------------------------


class Heard:
    def __init__(self) -> None:
        self.names = ["other"]

    def switch(self, name: str) -> str:
        self.names.append(name)
        return self.names[-2]


def test_a_stage_inside_another_interrupts_it() -> None:
    heard = Heard()
    with stage("nobody listens"), listening(heard), stage("data"):
        with stage("transfer"):
            pass
        with pytest.raises(ValueError, match="no"), stage("transfer"):
            raise ValueError("no")
    with stage("nobody listens"):
        pass
    assert heard.names == ["other", "data", "transfer", "data", "transfer", "data", "other"]


def test_stages_of_a_step_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    timer = StageTimer(CPU)
    with listening(timer):
        for wait in (1.0, 2.0):
            timer.begin_step()
            clock.sleep(0.5)
            with stage("data"):
                clock.sleep(wait)
                with stage("transfer"):
                    clock.sleep(0.25)
                clock.sleep(1.0)
        timer.begin_step()
    assert timer.seconds() == [
        {"other": 0.5, "data": 2.0, "transfer": 0.25},
        {"other": 0.5, "data": 3.0, "transfer": 0.25},
    ]


@pytest.mark.parametrize("settings", [[], ["training.micro_batches=2", "training.mirrored=true"]])
def test_the_stages_are_the_whole_step(settings: list[str]) -> None:
    with prepared_training(tiny(*settings), "cpu") as run:
        found = profile_training(run, name="tiny", steps=12)
        assert run.images_seen == 8 * (12 + 12 + 3)
    assert abs(found.seconds / found.whole_seconds - 1) < 0.03
    assert set(found.estimates()) == set(STAGES) - {"transfer", "simulated"}
    assert sum(map(found.share, STAGES)) == pytest.approx(1)
    for one in found.estimates().values():
        assert one.low <= one.value <= one.high


def test_listening_changes_no_bit_of_a_step(tmp_path: Path) -> None:
    runs = [prepare_run(tiny(), tmp_path / name, device="cpu") for name in ("plain", "marked")]
    losses = [run.take_step()["loss"] for run in runs]
    timer = StageTimer(CPU)
    with listening(timer):
        timer.begin_step()
        marked = runs[1].take_step()["loss"]
    assert losses[0] == losses[1]
    assert marked == runs[0].take_step()["loss"]


def profile_of(**milliseconds: float) -> Profile:
    step = {name: ms / 1e3 for name, ms in milliseconds.items()}
    whole = sum(step.values())
    return Profile(
        name="wikiart",
        batch_size=16,
        device="cpu",
        steps=[step] * 4,
        whole_seconds=whole,
        plain_seconds=whole,
    )


@pytest.mark.parametrize(
    ("milliseconds", "words"),
    [
        # The paper's Table 3: 1857.7 of 2639.5 ms, and 2639.5 / (2639.5 - 1857.7) = 3.376
        (
            {"data": 1857.2, "transfer": 0.5, "text": 78.8, "dropout": 9.0, "noise": 8.3}
            | {"forward": 272.6, "loss": 7.2, "backward": 405.9},
            ("Data: 70% of a step of 2,639.5 ms", "3.38 times as fast"),
        ),
        (
            {"data": 1, "forward": 30, "backward": 60, "optimizer": 9},
            ("The network: 90%", "6.25 ms of an image"),
        ),
        ({"forward": 10, "backward": 20, "optimizer": 70}, ("Overhead: optimizer takes 70%",)),
    ],
)  # fmt: skip
def test_the_bottleneck_is_named(milliseconds: dict, words: tuple[str, ...]) -> None:
    for part in words:
        assert part in profile_of(**milliseconds).bottleneck()


def test_chart_and_trace(tmp_path: Path) -> None:
    png = chart(profile_of(data=1.0, forward=2.0), paper={"data": 3.0, "loss": 1.0})
    assert png.startswith(b"\x89PNG")
    with prepared_training(tiny(), "cpu") as run:
        write_trace(run, tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    names = [event.get("name") for event in events if event.get("cat") == "user_annotation"]
    assert {"data", "forward", "backward", "optimizer"} <= set(names)
    assert names.count("backward") == 3


# A step of a given length -------------------------------------------------------------------------


@pytest.mark.parametrize(("load", "step"), [(0.3, 1.0), (1.5, 1.0), (1.0, 1.0)])
def test_a_simulated_device_waits_as_long_as_loading_is_slower(load: float, step: float) -> None:
    """Loading runs beside the step before: the wait is max(0, load - step)."""
    clock = Clock()
    device = SimulatedDevice(step, clock=clock, sleep=clock.sleep)
    waits, ends = [], []
    for _ in range(6):
        clock.sleep(load)
        waits.append(device.step())
        ends.append(clock.now)
    assert waits[0] == pytest.approx(load)
    assert waits[1:] == pytest.approx([max(0.0, load - step)] * 5)
    assert [b - a for a, b in pairwise(ends[1:])] == pytest.approx([max(load, step)] * 4)


def test_loading_is_profiled_without_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of 20 ms and steps of 5: the device stands still for 15 of 20 ms."""
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)

    class Batches:
        batch_size = 4

        def __init__(self) -> None:
            self.seen: list[int] = []

        def at(self, images_seen: int) -> None:
            self.seen.append(images_seen)
            clock.sleep(0.02)

    batches, device = Batches(), SimulatedDevice(0.005, clock=clock, sleep=clock.sleep)
    found = profile_loading(batches, device, name="x", step_seconds=0.005, steps=5)  # pyright: ignore
    assert batches.seen == list(range(0, 32, 4))
    assert found.simulated
    assert found.share("data") == pytest.approx(0.75)
    assert found.seconds == pytest.approx(0.02)
    assert found.whole_seconds == pytest.approx(0.02)


# Batch sizes --------------------------------------------------------------------------------------


def device_of(limit: int, *, fixed: float = 1e9, image: float = 5e8, bend: float = 0.0):
    """Trials of a device whose memory is a line (or bends away), and whose speed saturates."""
    asked: list[int] = []

    def try_out(experiment, size: int, *, device: torch.device, steps: int) -> Trial:
        asked.append(size)
        peak = fixed + image * size + bend * size**2
        if peak > limit:
            return Trial(batch_size=size, failed="out of memory")
        return Trial(batch_size=size, peak_bytes=round(peak), step_seconds=[0.1 + 0.01 * size])

    return try_out, asked


def sizes_of(monkeypatch, limit: int = 80 * 10**9, sizes=(2, 4, 8, 16), line=None, **options):
    monkeypatch.setattr(memory, "device_bytes", lambda device: limit)
    try_out, asked = device_of(limit, **(line or {}))
    found = find_batch_sizes(
        tiny(), sizes, device=CPU, try_out=try_out, log=lambda text: None, **options
    )
    return found, asked


def test_a_line_is_found_again_and_checked(monkeypatch) -> None:
    """(80 - 2 - 1) GB / 0.5 GB = 154 images; the paper's 76 is a card of 40 GB."""
    found, asked = sizes_of(monkeypatch)
    assert found.model.fixed_bytes == pytest.approx(1e9, rel=1e-6)
    assert found.model.image_bytes == pytest.approx(5e8, rel=1e-6)
    assert found.held_out_error == pytest.approx(0, abs=1e-6)
    assert (found.largest, found.checked.batch_size) == (154, 154)
    assert asked == [2, 4, 8, 16, 154, 1, 32, 64, 128]
    paper = MemoryModel(fixed_bytes=0, image_bytes=0.5e9)
    assert (paper.largest(38e9), paper.largest(78e9)) == (76, 156)


def test_the_recommended_batch_is_the_smallest_that_is_as_fast(monkeypatch) -> None:
    """Images a second: B / (0.1 + 0.01 B). 154: 93.9; 128: 92.8, within 3 %; 64: 86.5, not."""
    assert sizes_of(monkeypatch)[0].recommended().batch_size == 128
    trials = [Trial(batch_size=size, step_seconds=[size / 100]) for size in (1, 2, 4)]
    assert smallest_close_to_best([*trials, Trial(batch_size=8, failed="x")]).batch_size == 1


def test_memory_that_bends_is_survived_and_made_smaller(monkeypatch) -> None:
    found, _ = sizes_of(monkeypatch, line={"bend": 2e6})
    failed = [trial.batch_size for trial in found.trials if trial.failed]
    assert failed
    assert found.checked is not None
    assert found.checked.peak_bytes <= 78e9
    assert found.largest == found.checked.batch_size < min(failed)
    assert abs(found.held_out_error) < 0.1


def test_another_memory_is_answered_and_not_tried(monkeypatch) -> None:
    found, asked = sizes_of(monkeypatch, limit_bytes=400 * 10**9, most=64)
    assert (found.largest, found.checked) == (794, None)
    assert max(asked) == 64
    found, asked = sizes_of(monkeypatch, limit_bytes=40 * 10**9)
    assert (found.largest, found.checked.batch_size) == (74, 74)


def test_too_few_sizes_that_fit_are_refused(monkeypatch, refused) -> None:
    with refused(SfumatoError):
        sizes_of(monkeypatch, limit=3 * 10**9)
    with pytest.raises(ValueError, match="two sizes"):
        MemoryModel.fit([Trial(batch_size=2, peak_bytes=1), Trial(batch_size=2, peak_bytes=2)])


@pytest.mark.slow
def test_a_size_trains_in_a_process_of_its_own(refused) -> None:
    before = memory.peak_bytes(CPU)
    trial = try_size(tiny(), 4, device=CPU, steps=2)
    assert not trial.failed
    assert len(trial.step_seconds) == 2
    assert 50e6 < trial.peak_bytes < 20e9
    assert memory.peak_bytes(CPU) < before + 50e6
    with refused(InputError):
        try_size(tiny("training.micro_batches=2"), 1, device=CPU, steps=1)


def _killed(parent, *rest) -> None:
    signal.raise_signal(signal.SIGKILL)


def _full(parent, experiment, *rest) -> None:
    def too_much(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    memory.prepared_training = too_much
    memory._train(parent, experiment, *rest)


@pytest.mark.slow
@pytest.mark.parametrize(("what", "why"), [(_killed, "signal 9"), (_full, "out of memory")])
def test_a_size_that_runs_out_of_memory_is_an_answer(monkeypatch, what, why: str) -> None:
    process = memory.multiprocessing.get_context("spawn").Process

    def start(self) -> None:
        self._target = what
        process_start(self)

    process_start = process.start
    monkeypatch.setattr(process, "start", start)
    trial = try_size(tiny(), 4, device=CPU, steps=1)
    assert why in trial.failed
    assert trial.peak_bytes == 0


# A dry run ----------------------------------------------------------------------------------------


def fixed_trial(experiment, size: int, *, device, steps: int, warm_up: int) -> Trial:
    return Trial(batch_size=size, peak_bytes=10**9, step_seconds=[0.5] * steps)


def test_a_run_is_estimated_from_a_step(monkeypatch) -> None:
    monkeypatch.setattr("sfumato.bench.run_estimate.device_bytes", lambda device: 20 * 10**9)
    experiment = load_experiment("wikiart", ["training.batch_size=2", "training.epochs=10"])
    found = estimate_run(experiment, device=CPU, try_out=fixed_trial)
    assert found.parts == 1
    assert found.data_set_size == round(0.95 * 81_444) == 77_372
    assert found.total_images == 773_720
    assert found.images_per_second == 4
    assert found.hours == pytest.approx(773_720 / 4 / 3600)


def test_what_does_not_fit_is_measured_in_parts(monkeypatch) -> None:
    """`wikiart` counts 5 x 4 x 347,990,531 bytes and 1.77 GB an image: 8 images in 20 of 25 GB."""
    monkeypatch.setattr("sfumato.bench.run_estimate.device_bytes", lambda device: 27 * 10**9)
    found = estimate_run(load_experiment("wikiart"), device=CPU, try_out=fixed_trial)
    assert found.cost.training_bytes(8, half=False) / 1e9 == pytest.approx(6.96 + 14.17, abs=0.01)
    assert (found.trial.batch_size, found.parts, found.step_seconds) == (8, 8, 4.0)
    assert found.counted_bytes / 1e9 == pytest.approx(120.4, abs=0.1)


def test_checkpointing_lowers_the_memory_that_is_counted() -> None:
    from sfumato.bench.network_cost import network_cost

    plain, saving = (
        network_cost(load_experiment("wikiart", settings))
        for settings in ([], ["training.gradient_checkpointing=true"])
    )
    assert saving.activation_bytes < 0.25 * plain.activation_bytes
    assert saving.forward_flops == plain.forward_flops


def test_a_checkpointed_step_is_the_same_step(tmp_path: Path) -> None:
    """Up to the order of additions; dropout draws the same numbers twice."""
    losses, weights = [], []
    for value in ("false", "true"):
        settings = (f"training.gradient_checkpointing={value}", "model.dropout=0.2")
        run = prepare_run(tiny(*settings), tmp_path / value, device="cpu")
        losses.append([run.take_step()["loss"] for _ in range(3)])
        weights.append([one.detach().clone() for one in run.objective.parameters])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for plain, saving in zip(*weights, strict=True):
        torch.testing.assert_close(plain, saving, rtol=1e-4, atol=1e-5)


def test_lengths_that_are_not_known_and_steps_that_fail(refused, monkeypatch) -> None:
    with refused(InputError):
        estimate_run(
            load_experiment("wikiart", ["data.source=some/where"]), device=CPU, try_out=fixed_trial
        )
    assert training_images(DataConfig(source="digits")) == 897
    with refused(SfumatoError):
        estimate_run(
            tiny(),
            device=CPU,
            try_out=lambda *rest, **options: Trial(batch_size=8, failed="out of memory"),
        )


def test_a_dry_run_of_data_that_are_not_there(sfumato) -> None:
    found = sfumato("train", "wikiart-tiny", "--data", "./nowhere", "--dry-run")
    assert found.code == 2
    assert "nowhere does not exist" in found.err


def test_a_dry_run_prints_and_writes_nothing(sfumato, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("sfumato.bench.run_estimate.try_size", fixed_trial)
    preset = tmp_path / "tiny.yaml"
    preset.write_text(tiny("training.images=7200").to_yaml())
    found = sfumato(
        *("train", str(preset), "--dry-run", "--price", "3", "--device", "cpu"), cwd=tmp_path
    )
    assert found.code == 0, found.err
    lines = {line.split()[0]: line for line in found.out.splitlines() if line}
    assert lines["Step"].startswith("Step    8 images in 0.5 s on ")
    assert lines["Memory"] == "Memory  1.00 GB at the peak"
    assert lines["Speed"] == "Speed   16 images/s"
    assert lines["Length"] == "Length  7,200 images"
    assert lines["Time"] == "Time    7.5 minutes, without samples and checkpoints"
    assert lines["Cost"] == "Cost    0.38 $ at 3 $ an hour (--price)"
    assert list(tmp_path.iterdir()) == [preset]
    refused = sfumato("train", "classifier", "digits", "--dry-run")
    assert (refused.code, "Leave --dry-run out" in refused.err) == (2, True)


# The commands -------------------------------------------------------------------------------------


def test_profile_writes_a_record_a_chart_and_a_trace(sfumato, tmp_path: Path) -> None:
    preset = tmp_path / "tiny.yaml"
    preset.write_text(tiny().to_yaml())
    out, trace = tmp_path / "profile.json", tmp_path / "trace.json"
    found = sfumato(
        *("bench", "profile", str(preset), "--batch-size", "4", "--steps", "3", "--stand-in"),
        *("--out", str(out), "--trace", str(trace)),
    )
    assert found.code == 0, found.err
    assert "backward pass" in found.out
    record = json.loads(out.read_text())
    assert (record["batch_size"], len(record["steps"]), record["stand_in"]) == (4, 3, True)
    total = sum(one["mean"] for one in record["milliseconds"].values())
    assert total == pytest.approx(1e3 * np.mean([sum(s.values()) for s in record["steps"]]))
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert trace.exists()


def test_simulated_steps_need_no_network_and_no_text_encoder(sfumato) -> None:
    found = sfumato(
        *("bench", "profile", "wikiart", "--simulate-step-ms", "2", "--batch-size", "16"),
        *("--data", "digits", "--steps", "4", "--set", "data.label_column=auto"),
    )
    assert found.code == 0, found.err
    assert "simulated step" in found.out
    assert "2,639.5" in found.out  # the paper's column
    refused = sfumato("bench", "profile", "wikiart", "--simulate-step-ms", "2", "--stand-in")
    assert refused.code == 2


def test_batch_size_prints_both_answers(sfumato, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(memory, "device_bytes", lambda device: 8 * 10**9)
    monkeypatch.setattr(memory, "try_size", device_of(8 * 10**9)[0])
    out = tmp_path / "memory.json"
    found = sfumato("bench", "batch-size", "digits", "--device", "cpu", "--out", str(out))
    assert found.code == 0, found.err
    text = " ".join(found.out.split())
    assert "1.000 GB + 500.0 MB an image" in text
    assert "Largest batch in 8.0 GB less 2 GB: 10 images (a real step took 6.00 GB)" in text
    assert "Use 10 images a step" in text
    assert json.loads(out.read_text())["recommended"] == 10
    assert sfumato("bench", "batch-size", "digits", "--sizes", "2,4").code == 2


def test_noise_stands_in_for_any_data(tmp_path: Path) -> None:
    experiment = on_stand_in(load_experiment("wikiart-tiny"), tmp_path / "data", images=20)
    run = prepare_run(experiment, tmp_path / "run", device="cpu")
    assert run.batches.at(0).images.shape == (32, 3, 32, 32)
    assert experiment.text.encoder == "bundled"
