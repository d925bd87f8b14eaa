"""Trackers as people use them: an MLflow server on SQLite, TensorBoard's reader, wandb offline.

They run where these packages are installed: `make trackers`.
"""

import json
import os
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import pytest

from sfumato.config.schema import load_experiment
from sfumato.methods.registry import run_experiment
from sfumato.training.hooks import BaseHook
from sfumato.training.records import read_records
from sfumato.training.trackers import sending
from sfumato.training.trackers.sending import TrackerWarning
from tests.test_killed import SETTINGS

pytestmark = pytest.mark.trackers
PATIENCE_SECONDS = 600
OUTAGE_SECONDS = float(os.environ.get("SFUMATO_OUTAGE_SECONDS", "3"))
STEP_SECONDS = 0.3
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "DO_NOT_TRACK": "true",
    "WANDB_MODE": "offline",
}


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sending, "EVERY_SECONDS", 0.1)
    monkeypatch.setattr(sending, "LONGEST_WAIT_SECONDS", 1.0)


def trained(folder: Path, *settings: str, hooks=()) -> None:
    experiment = load_experiment("digits", [*SETTINGS, "training.log_every_images=16", *settings])
    run_experiment(experiment, folder, device="cpu", hooks=hooks)


class Slowly(BaseHook):
    """Waits at each step, so that what happens beside the training happens during it."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def after_step(self, run, metrics) -> None:
        time.sleep(self.seconds)


# MLflow -------------------------------------------------------------------------------------------


@dataclass
class Server:
    """`mlflow server` on SQLite, in a process group of its own."""

    folder: Path
    port: int
    process: subprocess.Popen | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "server.log").open("a") as output:
            self.process = subprocess.Popen(
                command, stdout=output, stderr=output, start_new_session=True
            )
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            with suppress(OSError), urlopen(f"http://127.0.0.1:{self.port}/health", timeout=20):
                return
            time.sleep(0.2)
        pytest.fail((self.folder / "server.log").read_text())

    def stop(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def points(self) -> dict[str, Counter]:
        """How often each step of each value was recorded."""
        with sqlite3.connect(self.folder / "mlflow.db") as data:
            found: dict[str, Counter] = {}
            for name, step in data.execute("select key, step from metrics"):
                found.setdefault(name, Counter())[step] += 1
        return found

    def runs(self) -> list[tuple[str, str]]:
        with sqlite3.connect(self.folder / "mlflow.db") as data:
            return data.execute("select name, status from runs").fetchall()


@pytest.fixture
def mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    pytest.importorskip("flask", reason="needs an MLflow server: make trackers")
    pytest.importorskip("mlflow", reason="needs MLflow: make trackers")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    (tmp_path / "server").mkdir()
    server = Server(tmp_path / "server", port)
    server.start()
    yield server
    server.stop()


def check_points(server: Server, run: Path) -> None:
    """One run, with each step of each record once."""
    once = Counter(record["images"] for record in read_records(run / "metrics.jsonl"))
    points = server.points()
    assert points["loss"] == points["lr"] == points["grad_norm"] == once
    assert server.runs() == [(run.name, "FINISHED")]


@pytest.mark.timeout(4 * PATIENCE_SECONDS)
def test_mlflow_has_one_run_after_kills_and_an_outage(
    mlflow: Server, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run = tmp_path / "run"
    images = 16 * (200 + round(OUTAGE_SECONDS / STEP_SECONDS))
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from pathlib import Path
from sfumato.training.trackers import sending
from tests.test_trackers_real import Slowly, trained
sending.EVERY_SECONDS, sending.LONGEST_WAIT_SECONDS = 0.1, 1.0
trained(Path({str(run)!r}), "training.trackers=mlflow", "training.images={images}",
        "training.checkpoint_every_images=480", hooks=[Slowly({STEP_SECONDS})])
"""

    def start() -> subprocess.Popen:
        process = subprocess.Popen([sys.executable, "-c", code], env=os.environ)
        request.addfinalizer(process.wait)
        request.addfinalizer(process.kill)
        return process

    def wait_for(count: int) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while sum(mlflow.points().get("loss", {}).values()) < count:
            assert time.monotonic() < deadline
            time.sleep(0.2)

    process = start()
    wait_for(20)
    process.kill()  # some steps after the checkpoint were sent, and are run again
    process.wait()
    process = start()
    wait_for(45)
    mlflow.stop()
    time.sleep(OUTAGE_SECONDS)
    mlflow.start()
    assert process.wait() == 0
    assert start().wait() == 0  # a server that came back too late gets the rest now
    check_points(mlflow, run)
    artifacts = {file.name for file in (tmp_path / "server" / "artifacts").rglob("*.*")}
    assert {
        "experiment.yaml",
        "state.json",
        "images-000000064.png",
        "average.safetensors",
    } <= artifacts
    with sqlite3.connect(tmp_path / "server" / "mlflow.db") as data:
        parameters = dict(data.execute("select key, value from params"))
    assert parameters["training.batch_size"] == "16"


def test_mlflow_that_is_not_there_is_caught_up_with(mlflow: Server, tmp_path: Path) -> None:
    mlflow.stop()
    run = tmp_path / "run"
    with pytest.warns(TrackerWarning) as caught:
        trained(run, "training.trackers=mlflow")
    said = [str(one.message) for one in caught if one.category is TrackerWarning]
    assert len(said) == 2
    assert all("'mlflow'" in text for text in said)
    mlflow.start()
    trained(run, "training.trackers=mlflow")
    check_points(mlflow, run)


def test_a_server_that_accepts_and_never_answers(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("mlflow", reason="needs MLflow: make trackers")
    monkeypatch.setattr(sending, "LAST_SECONDS", {"finished": 1.0})
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        with pytest.warns(TrackerWarning):
            trained(tmp_path / "run", "training.trackers=mlflow")
    assert (tmp_path / "run" / "model" / "model_index.json").exists()


# TensorBoard --------------------------------------------------------------------------------------


def test_tensorboard_reads_the_event_file(tmp_path: Path) -> None:
    needs = {"reason": "needs TensorBoard: make trackers"}
    pytest.importorskip("tensorboard.backend", **needs)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    trained(run, "training.trackers=tensorboard", "training.images=64")
    trained(run, "training.trackers=tensorboard")
    found = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    found.Reload()
    records = read_records(run / "metrics.jsonl")
    for name in ("loss", "lr", "grad_norm"):
        points = [(one.step, one.value) for one in found.Scalars(name)]
        expected = [(one["images"], pytest.approx(one[name], rel=1e-6)) for one in records]
        assert points == expected
    pictures = found.Images("samples")
    files = sorted((run / "samples").glob("*.png"))
    assert [one.encoded_image_string for one in pictures] == [file.read_bytes() for file in files]
    assert pictures[0].width > pictures[0].height > 0
    (text,) = found.Tensors("parameters")
    assert b"| training.batch_size | 16 |" in text.tensor_proto.string_val[0]


# wandb --------------------------------------------------------------------------------------------


def offline_records(run: Path) -> Iterator[bytes]:
    """Records of the offline files of a run, oldest first: LevelDB's log format."""
    for file in sorted((run / "wandb").glob("offline-run-*/*.wandb")):
        content, place, parts = file.read_bytes(), 7, b""
        while place + 7 <= len(content):
            if 2**15 - place % 2**15 < 7:
                place += 2**15 - place % 2**15
                continue
            _, length, kind = struct.unpack("<IHB", content[place : place + 7])
            parts += content[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in (1, 4):  # whole, or the last part
                yield parts
                parts = b""


def test_wandb_offline_has_each_step_once(tmp_path: Path) -> None:
    pytest.importorskip("wandb.proto", reason="needs wandb: make trackers")
    from wandb.proto import wandb_internal_pb2 as messages

    run = tmp_path / "run"
    trained(run, "training.trackers=wandb", "training.images=64")
    trained(run, "training.trackers=wandb")
    losses, ids, config, files = [], set(), {}, set()
    for content in offline_records(run):
        record = messages.Record()
        record.ParseFromString(content)
        ids.add(record.run.run_id)
        files |= {file.path for file in record.files.files}
        config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        row = {
            ".".join(item.nested_key) or item.key: json.loads(item.value_json)
            for item in record.history.item
        }
        if "loss" in row:
            losses.append((row["_step"], row["loss"]))
    records = read_records(run / "metrics.jsonl")
    assert losses == [(one["images"], one["loss"]) for one in records]
    assert len(ids - {""}) == 1
    assert config["training.batch_size"] == 16
    assert "checkpoints/images-000000160/state.json" in files
