"""kill -9 of a streamed training: the run that goes on is the unbroken one, byte for byte."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch

from sfumato.bench.loaders import Setup
from sfumato.bench.timing import family_bytes, time_once
from sfumato.config.schema import DiffusionExperiment, load_experiment
from sfumato.config.sections import DataConfig
from sfumato.data.streaming.stream import StreamBatches, open_stream
from sfumato.data.survey import resolve
from sfumato.methods.registry import run_experiment
from tests.pictures import encoded, noise, write_parquet
from tests.ranks import written

SETTINGS = [
    "data.loading=stream",
    "data.resolution=8",
    "data.workers=2",
    "model.block_out_channels=[8,16]",
    "model.levels=[plain,attention]",
    "training.batch_size=16",
    "training.images=480",
    "training.log_every_images=48",
    "training.sample_every_images=240",
    "training.checkpoint_every_images=32",
    "sampling.steps=2",
]
"""Three epochs of 162 images."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parquet")
    for file in range(2):
        write_parquet(
            folder / f"train-{file:05d}-of-00002.parquet",
            [encoded(noise(1000 * file + row)) for row in range(90)],
            [row // 30 for row in range(90)],
            names=["oak", "elm", "ash"],
            row_group_size=20,
        )
    return folder


def command(folder: Path, out: Path) -> list[str]:
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    return [sys.executable, "-m", "sfumato", "train", "small", "--data", str(folder),
            "--out", str(out), "--device", "cpu", *settings]  # fmt: skip


def workers_of(process: int) -> list[int]:
    found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(child) for child in found]


def ended(process: int, *, within_seconds: float) -> bool:
    limit = time.monotonic() + within_seconds
    while time.monotonic() < limit:
        stat = Path(f"/proc/{process}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_killed_streamed_training_goes_on_exactly_and_leaves_no_worker(folder, tmp_path) -> None:
    started = time.monotonic()
    subprocess.run(command(folder, tmp_path / "unbroken"), check=True, capture_output=True)
    seconds = time.monotonic() - started
    expected = written(tmp_path / "unbroken")
    draw, out, kills = random.Random(3), tmp_path / "killed", 0
    while True:
        process = subprocess.Popen(command(folder, out), stdout=subprocess.DEVNULL)
        limit = time.monotonic() + draw.uniform(0.3, 1.0) * seconds
        workers: list[int] = []
        while process.poll() is None and (kills >= 5 or time.monotonic() < limit):
            workers = workers_of(process.pid) or workers
            time.sleep(0.02)
        if process.poll() is not None:
            assert process.returncode == 0
            if kills >= 2:
                break
            shutil.rmtree(out)  # the machine is faster than when it was timed
            seconds, kills = 0.6 * seconds, 0
            continue
        process.kill()
        process.wait()
        kills += 1
        assert all(ended(worker, within_seconds=5) for worker in workers)
    assert process.returncode == 0
    assert kills >= 2
    assert written(out) == expected


@pytest.mark.slow
def test_a_streamed_run_trains_and_its_folder_says_so(folder: Path, tmp_path: Path) -> None:
    settings = [f"data.source={json.dumps(str(folder))}", *SETTINGS]
    run = run_experiment(load_experiment("small", settings), tmp_path / "run", device="cpu")
    assert run.finished
    assert "loading: stream" in (tmp_path / "run" / "experiment.yaml").read_text()
    state = json.loads(next((tmp_path / "run").rglob("images-000000480/state.json")).read_text())
    data = resolve(load_experiment("small", settings, schema=DiffusionExperiment).data)
    count = len(open_stream(data, "train"))
    assert state["position"] == {"epoch": 480 // count, "seed": 0, "samples": 480 % count}


@pytest.fixture(scope="module", params=[100, 1100])
def paintings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,100 photograph-sized images, of which no two are the same, in row groups of both sizes."""
    folder = tmp_path_factory.mktemp(f"paintings-{request.param}")
    images = [encoded(noise(row, (1200, 1500, 3)), "JPEG", quality=20) for row in range(20)]
    write_parquet(
        folder / "train.parquet",
        [images[row % 20] + row.to_bytes(4) for row in range(1100)],
        [row % 5 for row in range(1100)],
        row_group_size=request.param,
    )
    return folder


def data_of(folder: Path) -> DataConfig:
    return DataConfig(source=str(folder), resolution=128, channels=3, caption=("{label}",))


def streamed(folder: Path, *, workers: int) -> StreamBatches:
    records, device = open_stream(data_of(folder), "train"), torch.device("cpu")
    return StreamBatches(records, seed=0, batch_size=64, device=device, workers=workers)


@pytest.mark.slow
def test_after_a_kill_the_first_batch_comes_at_once(paintings: Path) -> None:
    """Batches go on in the middle of an epoch of photograph-sized images, not after a window."""
    started = time.monotonic()
    first = streamed(paintings, workers=2).at(512)
    seconds = time.monotonic() - started
    assert torch.equal(first.images, streamed(paintings, workers=0).at(512).images)
    print(f"{seconds:.1f} s to the first batch, {paintings.name}")
    assert seconds < 15


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_that_of_the_window_however_large_the_row_groups_are(paintings: Path) -> None:
    """In a process of its own, above what imported torch: as `sfumato bench data` measures."""
    setup = Setup(
        config=resolve(data_of(paintings)),
        batch_size=64,
        workers=2,
        label_column="label",
        prepared="",
    )
    peak_bytes = time_once("stream", setup, batches=16).peak_bytes
    print(f"{peak_bytes / 1e6:.0f} MB in row groups of {paintings.name}")
    assert 50e6 < peak_bytes < 600e6


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_over_three_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for threshold in ("MMAP", "TRIM"):  # fixed, so that glibc returns what is freed at once
        monkeypatch.setenv(f"MALLOC_{threshold}_THRESHOLD_", "131072")
    images = [encoded(noise(row, (300, 300, 3)), "JPEG") for row in range(50)]
    write_parquet(
        tmp_path / "train.parquet",
        [images[row % 50] for row in range(6000)],
        [row % 5 for row in range(6000)],
        row_group_size=100,
    )
    # Of a process of its own: workers forked from a process that ran other tests also grow by what
    # these left free in its memory.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        at_end = pool.submit(memory_of_epochs, tmp_path, epochs=4).result()
    print(" ".join(f"{size / 1e6:.0f}" for size in at_end), "MB")
    assert at_end[3] < 1.02 * at_end[1]  # the first epoch fills the window


def memory_of_epochs(folder: Path, *, epochs: int) -> list[float]:
    """Median bytes, in each epoch, of this process and of the workers that read `folder`."""
    config = DataConfig(source=str(folder), resolution=64, channels=3, caption=("{label}",))
    records = open_stream(config, "train")
    stream = StreamBatches(records, seed=0, batch_size=64, device=torch.device("cpu"), workers=2)
    medians: list[float] = []
    for epoch in range(epochs):
        sizes = []
        for seen in range(epoch * 5376, (epoch + 1) * 5376, 64):
            stream.at(seen)
            sizes.append(family_bytes(os.getpid()))
        medians.append(float(np.median(sizes)))
    return medians
