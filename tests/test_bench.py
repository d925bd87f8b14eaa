"""Speed beside a plain loop over diffusers. The bars are for a quiet machine.

Here they are loose, and in CPU time, so that a busy machine reaches them, too.
"""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.base.errors import InputError
from sfumato.bench.gpu_day import Plan, gpu_day
from sfumato.bench.network_cost import network_cost
from sfumato.bench.order import compare_orders
from sfumato.bench.plain_loops import example_training, plain_sampling, plain_training
from sfumato.bench.steps import (
    LEAST_PAIRS,
    compare,
    compare_sampling,
    compare_training,
    prepared_training,
    untrained_model,
)
from sfumato.cli.gpu_day import print_day
from sfumato.config.schema import load_experiment
from sfumato.methods.registry import prepare_run

TINY = [
    "data.resolution=8",
    "model.block_out_channels=[16,32]",
    "model.levels=[plain,attention]",
    "sampling.steps=3",
]
LOOSE = 0.7


def tiny(*more: str):
    return load_experiment("digits", [*TINY, *more])


@pytest.mark.slow
def test_a_training_step_keeps_up_with_a_bare_loop() -> None:
    with prepared_training(tiny(), "cpu") as run:
        step = plain_training(tiny(), run)
        comparison = compare_training(run, step, pairs=9, steps=3, clock=time.process_time)
    assert comparison.ratio.value >= LOOSE
    assert len(comparison.ours_seconds) == len(comparison.plain_seconds) == 9
    assert comparison.ratio.low <= comparison.ratio.value <= comparison.ratio.high
    assert comparison.images == 48


@pytest.mark.slow
def test_sampling_keeps_up_and_needs_half_the_nfe_without_guidance() -> None:
    # In smaller networks a call's fixed costs hide how many rows it has.
    model = untrained_model(tiny("model.block_out_channels=[32,64]"), device="cpu")
    one_call, guided = compare_sampling(
        model, scales=(1, 5), batch=32, pairs=7, clock=time.process_time
    )
    assert guided.ratio.value >= LOOSE
    assert one_call.ratio.value >= 1.3  # at best 2: 64 rows against 32
    assert (one_call.bar, guided.bar) == (1.8, 0.97)


@pytest.mark.parametrize(
    ("written_plainly", "prediction_type"),
    [
        (plain_training, "v_prediction"),
        (example_training, "v_prediction"),
        *(
            pytest.param(written, kind, marks=pytest.mark.slow)
            for written, kind in (
                (plain_training, "epsilon"),
                (plain_training, "sample"),
                (example_training, "epsilon"),
            )
        ),
    ],
)
def test_the_plain_loops_train(written_plainly, prediction_type: str, tmp_path: Path) -> None:
    """So it is no straw man: its loss falls."""
    experiment = tiny(f"diffusion.prediction_type={prediction_type}")
    step = written_plainly(experiment, prepare_run(experiment, tmp_path / "run"))
    losses = [float(step().detach()) for _ in range(40)]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_the_plain_sampling_loop_draws_the_same_pictures(scale: float) -> None:
    """Where the two agree on the noise levels: DDIM in steps that divide T, nothing clipped."""
    model = untrained_model(tiny("data.value_range=[-50, 50]"), device="cpu")
    model = model.with_(sampler="DDIM", steps=4)
    plain = plain_sampling(model, ["A handwritten digit 3"], scale=scale)()
    ours = model.sample("A handwritten digit 3", 0, guidance=scale).x0
    torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-3)


def test_a_flow_has_no_loop_beside_it(refused, tmp_path: Path) -> None:
    flow = tiny("diffusion.process=rectified_flow", "sampling.sampler=Heun")
    run = prepare_run(flow, tmp_path / "run")
    for written_plainly in (plain_training, example_training):
        with refused(InputError):
            written_plainly(flow, run)
    with refused(InputError):
        plain_sampling(untrained_model(flow, device="cpu"), ["a digit"], scale=1)
    with refused(InputError):
        compare_orders(flow, tmp_path / "orders", seeds=[0])


def test_the_order_changes_from_pair_to_pair_and_warming_up_is_not_timed() -> None:
    calls: list[str] = []
    comparison = compare(
        "calls",
        lambda: calls.append("o"),
        lambda: calls.append("p"),
        pairs=LEAST_PAIRS,
        bar=1.0,
        images=1,
        device=torch.device("cpu"),
        clock=time.perf_counter,
    )
    assert "".join(calls[2:]) == "oppo" * 3 + "op"
    assert len(calls) == 2 * (LEAST_PAIRS + 1)
    assert comparison.ratio.count == LEAST_PAIRS


def test_too_few_pairs_steps_or_images_are_refused(refused) -> None:
    with prepared_training(tiny(), "cpu") as run:
        with refused(InputError):
            compare_training(run, print, pairs=6, steps=1)
        with refused(InputError):
            compare_training(run, print, pairs=7, steps=0)
    with refused(InputError):
        compare_sampling(untrained_model(tiny(), device="cpu"), scales=(), batch=0, pairs=7)


@pytest.mark.slow
def test_the_commands_print_a_table_and_write_a_record(sfumato, tmp_path: Path) -> None:
    preset = tmp_path / "tiny.yaml"
    preset.write_text(tiny().to_yaml())
    trained = sfumato(
        *("bench", "train", str(preset), "--pairs", "7", "--steps", "1"),
        *("--out", str(tmp_path / "train.json")),
    )
    assert trained.code == 0, trained.err
    assert "training step" in trained.out
    record = json.loads((tmp_path / "train.json").read_text())
    (comparison,) = record["comparisons"]
    assert comparison["ratio"]["count"] == len(comparison["ours_seconds"]) == 7
    assert record["environment"]["torch"] == torch.__version__
    assert record["batch_size"] == 16

    drawn = sfumato(
        *("bench", "sample", str(preset), "--pairs", "7", "--steps", "2", "--batch", "4"),
        *("--scales", "0,5", "--sampler", "ddpm", "--out", str(tmp_path / "sample.json")),
    )
    assert drawn.code == 0, drawn.err
    assert "w = 5" in drawn.out
    record = json.loads((tmp_path / "sample.json").read_text())
    assert (record["sampler"], record["steps"]) == ("DDPM", 2)
    assert [row["bar"] for row in record["comparisons"]] == [1.8, 0.97]


@pytest.mark.slow
def test_a_gpu_day_on_a_cpu_records_each_part_and_what_failed(tmp_path: Path) -> None:
    """The parts that need data are left out; one that fails does not end the day."""
    plan = Plan(
        out=tmp_path / "day",
        device="cpu",
        minutes=0.5,
        presets=("digits",),
        settings=[setting for setting in TINY if not setting.startswith("data.")],
        mnist=tmp_path / "nothing",
    )
    lines: list[str] = []
    record = gpu_day(plan, lines.append)
    assert json.loads((plan.out / "gpu-day.json").read_text()) == record
    speed = record["step digits"]
    cost = network_cost(load_experiment("digits", plan.settings))
    flops = 3 * cost.forward_flops * 16
    assert speed["tflops"] * 1e12 == pytest.approx(flops / (speed["step_ms"] / 1e3))
    rate = record["matrix_rate"]["float32"]
    assert speed["share_of_floor"] == pytest.approx(speed["tflops"] / rate)
    assert set(speed["over"]) == {"bare", "diffusers_example"}
    assert record["left_out"] == ["cifar10-small"]
    assert "failed" in record["mnist"]
    assert any("failed" in line for line in lines)


@pytest.mark.slow
def test_a_gpu_day_trains_and_measures_mnist_and_cifar10(tmp_path: Path) -> None:
    """On noise, for a few steps: the settings of the command hold for both, and the record says
    what ran."""
    data = {}
    for name, shape in (("mnist", (60, 8, 8)), ("cifar10", (200, 8, 8, 3))):
        noise = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
        data[name] = tmp_path / name
        for index, pixels in enumerate(noise):
            folder = data[name] / f"{index % 10}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{index}.png")
    short = ["training.images=64", "training.sample_every_images=64", "training.batch_size=16"]
    wider = "model.block_out_channels=[32,64]"
    plan = Plan(
        out=tmp_path / "day",
        device="cpu",
        minutes=5,
        presets=(),
        settings=[*TINY, *short, wider, "training.precision=float32"],
        **data,
        classifier="untrained",
        count=20,
    )
    record = gpu_day(plan, lambda line: None)
    for name in ("mnist", "cifar10-small"):
        found = record[name]
        assert "failed" not in found, found
        assert (found["images_seen"], found["finished"], found["batch_size"]) == (64, True, 16)
    assert record["cifar10-small"]["lr"] == plan.lr
    assert [row["title"] for row in record["cifar10-small"]["rows"]] == [
        "w = 1",
        "w = 1.5",
        "w = 2",
    ]
    assert "class_accuracy" in record["cifar10-small"]["rows"][0]
    pictures = [path for path in (plan.out / "figures").iterdir() if path.suffix == ".png"]
    assert len(pictures) == 8
    print_day(record)


def test_a_gpu_day_with_a_failed_test_says_so_and_ends_with_1(
    tmp_path: Path, sfumato, monkeypatch
) -> None:
    failing = tmp_path / "test_one.py"
    failing.write_text("import pytest\n@pytest.mark.gpu\ndef test_it():\n    assert False\n")
    monkeypatch.setattr("sfumato.bench.gpu_day.step_speed", lambda day, preset: {})
    arguments = ("--minutes", "0.5", "--device", "cpu", "--tests", str(failing))
    result = sfumato("bench", "gpu-day", "--out", str(tmp_path / "day"), *arguments)
    assert result.code == 1
    assert "tests: FAILED" in result.out
    assert "tests: 1 failed" in result.out
