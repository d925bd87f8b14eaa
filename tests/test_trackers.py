"""Trackers get every point of a run once, after outages and kills; training never waits."""

import json
import shutil
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfumato.base.errors import ConfigError
from sfumato.config.schema import load_experiment
from sfumato.methods.registry import prepare_run, run_experiment
from sfumato.training.records import Tail, append_record, cut_back, read_records
from sfumato.training.trackers import registry, sending
from sfumato.training.trackers.points import SOURCES, numbers
from sfumato.training.trackers.protocol import End, Point, Sent, TrackedRun, without_secrets
from sfumato.training.trackers.registry import TRACKERS, check_trackers
from sfumato.training.trackers.sending import Sender, TrackerWarning
from sfumato.training.trackers.tensorboard import TensorBoard, masked_crc
from tests.ranks import contents
from tests.test_killed import SETTINGS

SMALL_RUN = Path(__file__).parent / "data" / "small-run"


@dataclass
class Server:
    """What a tracker keeps in memory; `away`: it raises; `stuck`: it waits for this."""

    metrics: dict[str, list[int]] = field(default_factory=dict)
    """Images seen of each point, by the name of the value."""
    pictures: list[int] = field(default_factory=list)
    artifacts: list[str] = field(default_factory=list)
    ends: list[End] = field(default_factory=list)
    parameters: dict = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)
    sent: Sent | None = None
    away: bool = False
    refused: int = 0
    stuck: threading.Event | None = None

    def asked(self) -> None:
        if self.stuck is not None:
            self.stuck.wait()
        if self.away:
            self.refused += 1
            raise ConnectionError("refused")


class InMemory:
    """A tracker; it knows what it has."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def open(self, run: TrackedRun, sent: Sent) -> Sent:
        self.server.asked()
        self.server.keys.add(run.key)
        self.server.parameters.update(run.parameters)
        has = self.server.sent
        return replace(sent, records=has.records, pictures=has.pictures) if has else sent

    def metrics(self, points: list[Point], sent: Sent) -> None:
        self.server.asked()
        for point in points:
            for name in point.values:
                self.server.metrics.setdefault(name, []).append(point.images_seen)
        self.server.sent = sent

    def picture(self, images_seen: int, file: Path, sent: Sent) -> None:
        self.server.asked()
        assert file.read_bytes().startswith(b"\x89PNG")
        self.server.pictures.append(images_seen)
        self.server.sent = sent

    def artifact(self, name: str, file: Path) -> None:
        self.server.asked()
        self.server.artifacts.append(name)

    def close(self, end: End) -> None:
        self.server.ends.append(end)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    """What `training.trackers=[tensorboard]` sends to in this test."""
    server = Server()
    monkeypatch.setattr(sending, "tracker_of", lambda name: InMemory(server))
    monkeypatch.setattr(sending, "address_of", lambda name: "http://127.0.0.1:5000")
    monkeypatch.setattr(sending, "EVERY_SECONDS", 0.01)
    monkeypatch.setattr(sending, "LONGEST_WAIT_SECONDS", 0.01)
    return server


def sender(folder: Path) -> Sender:
    return Sender("tensorboard", TrackedRun(key="k", name="r", folder=folder, parameters={"a": 1}))


def send_all(folder: Path) -> None:
    """What a process that starts and ends does."""
    one = sender(folder)
    one.start()
    one.finish("finished")
    one.join(time.monotonic() + 30)


def log(folder: Path, images: range) -> None:
    for seen in images:
        append_record(folder / "metrics.jsonl", {"images": seen, "step": seen, "loss": 1 / seen})


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# Reading ------------------------------------------------------------------------------------------


@given(
    steps=st.lists(st.integers(1, 10**6), max_size=30),
    after=st.integers(-1, 10**7),
    most_bytes=st.integers(80, 500),
    cut=st.integers(0, 10**6),
)
def test_a_tail_has_the_records_after_a_count_once_each(
    tmp_path_factory, steps, after, most_bytes, cut
) -> None:
    file = tmp_path_factory.mktemp("tail") / "metrics.jsonl"
    tail, seen, found = Tail(file, after=after), 0, []
    lines = []
    for step in steps:
        seen += step
        lines.append(json.dumps({"images": seen, "loss": 1.5 / seen}) + "\n")
    text = "".join(lines)
    cut = cut % (len(text) + 1)
    file.write_text(text[:cut])  # the first read meets a line that is being written
    if text[:cut]:
        while more := tail.read(most_bytes=most_bytes):
            found += more
    with file.open("a") as opened:
        opened.write(text[cut:])
    while more := tail.read(most_bytes=most_bytes):
        found += more
    assert found == [one for one in read_records(file) if one["images"] > after]


def test_a_tail_of_no_file_is_empty(tmp_path: Path) -> None:
    assert Tail(tmp_path / "metrics.jsonl").read() == []


def test_numbers_of_records() -> None:
    accuracy = {"images": 5, "count": 8, "correct": {"1": 4, "2.5": 8}}
    assert SOURCES["accuracy.jsonl"](accuracy) == {"accuracy/w1": 0.5, "accuracy/w2.5": 1.0}
    assert SOURCES["held_out.jsonl"]({"images": 5, "loss": 2}) == {"held_out/loss": 2.0}
    record = {"images": 5, "step": 1, "loss": 2, "a": {"b": 3}, "bad": float("nan"), "text": "x"}
    assert numbers(record) == {"loss": 2.0, "a/b": 3.0}


# Sending ------------------------------------------------------------------------------------------


def test_a_whole_run_is_sent_once(server: Server, tmp_path: Path) -> None:
    shutil.copytree(SMALL_RUN, tmp_path, dirs_exist_ok=True)
    send_all(tmp_path)
    send_all(tmp_path)
    records = read_records(tmp_path / "metrics.jsonl")
    assert server.metrics["loss"] == [record["images"] for record in records]
    assert server.pictures == [
        int(file.stem[-9:]) for file in sorted((tmp_path / "samples").glob("*.png"))
    ]
    assert "experiment.yaml" in server.artifacts
    assert len(set(server.artifacts)) == len(server.artifacts)
    assert server.ends == ["finished", "finished"]


def test_an_outage_is_said_once_and_caught_up(server: Server, tmp_path: Path, warned) -> None:
    log(tmp_path, range(1, 300))
    server.away = True
    one = sender(tmp_path)
    with warned(TrackerWarning):
        one.start()
        wait_until(lambda: server.refused > 3)
        log(tmp_path, range(300, 900))
        server.away = False
        wait_until(lambda: len(server.metrics.get("loss", ())) >= 800)
        server.away = True
        refused = server.refused
        log(tmp_path, range(900, 1000))
        wait_until(lambda: server.refused > refused + 3)
        server.away = False
        one.finish("finished")
        one.join(time.monotonic() + 30)
    assert server.metrics["loss"] == list(range(1, 1000))


def test_what_an_absent_server_misses_is_sent_by_the_next_process(
    server: Server, tmp_path: Path, warned
) -> None:
    log(tmp_path, range(1, 50))
    server.away = True
    with warned(TrackerWarning):  # that it is away, and that the end came
        send_all(tmp_path)
    server.away = False
    send_all(tmp_path)
    assert server.metrics["loss"] == list(range(1, 50))


def test_steps_that_are_run_again_are_not_sent_again(server: Server, tmp_path: Path) -> None:
    log(tmp_path, range(1, 100))
    send_all(tmp_path)
    cut_back(tmp_path / "metrics.jsonl", images_seen=60)  # a kill -9 at 99; the checkpoint is of 60
    log(tmp_path, range(61, 80))
    send_all(tmp_path)
    log(tmp_path, range(80, 150))
    send_all(tmp_path)
    assert server.metrics["loss"] == list(range(1, 150))


def test_a_kill_between_sending_and_noting_it(server: Server, tmp_path: Path) -> None:
    log(tmp_path, range(1, 100))
    send_all(tmp_path)
    file = tmp_path / "trackers" / "tensorboard.json"
    known = json.loads(file.read_text())
    known["records"]["metrics.jsonl"] = 40
    file.write_text(json.dumps(known))
    send_all(tmp_path)
    assert server.metrics["loss"] == list(range(1, 100))


# Training -----------------------------------------------------------------------------------------


def trained(folder: Path, *settings: str) -> None:
    run_experiment(load_experiment("digits", [*SETTINGS, *settings]), folder, device="cpu")


@pytest.fixture(scope="module")
def untracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("untracked") / "run"
    trained(folder)
    return folder


def same_but_for_trackers(folder: Path, other: Path) -> bool:
    def of(run: Path) -> dict[str, str]:
        left = ("trackers/", "tensorboard/", "experiment.yaml", "timing.jsonl")
        return {name: sha for name, sha in contents(run).items() if not name.startswith(left)}

    return of(folder) == of(other)


def test_training_with_a_tracker_has_the_same_bits(
    server: Server, untracked: Path, tmp_path: Path
) -> None:
    trained(tmp_path / "run", "training.trackers=tensorboard")
    assert same_but_for_trackers(tmp_path / "run", untracked)
    records = read_records(untracked / "metrics.jsonl")
    assert server.metrics["loss"] == [record["images"] for record in records]
    assert server.metrics["lr"] == server.metrics["loss"]
    assert server.pictures == [64, 128, 160]
    assert server.parameters["training.optimizer.lr"] > 0
    assert "checkpoints/images-000000160/state.json" in server.artifacts
    weights = [name for name in server.artifacts if name.endswith(".safetensors")]
    assert weights == ["checkpoints/images-000000160/average.safetensors"]
    assert server.ends == ["finished"]


def test_a_server_that_never_answers_costs_no_step(
    server: Server, untracked: Path, tmp_path: Path, monkeypatch, warned
) -> None:
    server.stuck = threading.Event()
    monkeypatch.setattr(sending, "LAST_SECONDS", {"finished": 0.1})
    with warned(TrackerWarning):
        trained(tmp_path / "run", "training.trackers=tensorboard")
    assert same_but_for_trackers(tmp_path / "run", untracked)
    server.stuck.set()


def test_a_run_goes_on_with_other_trackers_and_as_the_same_tracked_run(
    server: Server, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    trained(folder, "training.trackers=tensorboard", "training.images=64")
    trained(folder, "training.images=128")
    trained(folder, "training.trackers=tensorboard")
    records = read_records(folder / "metrics.jsonl")
    assert server.metrics["loss"] == [record["images"] for record in records]
    assert len(server.keys) == 1


def test_a_run_that_fails_is_sent_as_failed(server: Server, tmp_path: Path, monkeypatch) -> None:
    run = prepare_run(load_experiment("digits", SETTINGS), tmp_path / "run", device="cpu")
    experiment = load_experiment("digits", [*SETTINGS, "training.trackers=tensorboard"])
    with pytest.raises(ZeroDivisionError), sending.tracked(run, experiment):
        raise ZeroDivisionError
    with sending.tracked(run, experiment):
        pass
    assert server.ends == ["failed", "stopped"]


# TensorBoard --------------------------------------------------------------------------------------


def unmasked(crc: bytes) -> int:
    (value,) = struct.unpack("<I", crc)
    value = (value - 0xA282EAD8) & 0xFFFFFFFF
    return (value >> 17 | value << 15) & 0xFFFFFFFF


@pytest.mark.parametrize(
    ("content", "crc"),
    [  # RFC 3720, B.4
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (b"123456789", 0xE3069283),
    ],
)
def test_checksums_of_event_files(content: bytes, crc: int) -> None:
    assert unmasked(masked_crc(content)) == crc


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protobuf message."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            value |= (byte & 0x7F) << shift
            place, shift = place + 1, shift + 7
            if byte < 0x80:
                return value

    while place < len(message):
        tag = varint()
        if tag & 7 == 0:
            yield tag >> 3, varint()
            continue
        length = {1: 8, 5: 4}.get(tag & 7) or varint()
        yield tag >> 3, message[place : place + length]
        place += length


def steps_of(folder: Path) -> dict[str, list[int]]:
    """Steps of each value of the one event file, whose records are whole."""
    (file,) = (folder / "tensorboard").iterdir()
    content, found = file.read_bytes(), {}
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        record, content = content[12 : 12 + length], content[16 + length :]
        message = dict(fields(record))
        for number, value in fields(message.get(5, b"")):
            assert number == 1
            found.setdefault(dict(fields(value))[1].decode(), []).append(message[2])
    return found


def test_an_event_file_has_each_point_once_whatever_a_kill_left(tmp_path: Path) -> None:
    shutil.copytree(SMALL_RUN, tmp_path, dirs_exist_ok=True)
    send_all(tmp_path)
    (file,) = (tmp_path / "tensorboard").iterdir()
    whole = file.read_bytes()
    expected = [one["images"] for one in read_records(tmp_path / "metrics.jsonl")]
    found = steps_of(tmp_path)
    assert found["loss"] == found["lr"] == expected
    assert found["parameters"] == [0]
    assert found["samples"]
    file.write_bytes(whole + whole[100:333])  # half a record, and points that were not noted
    log(tmp_path, range(64_001, 64_010))
    send_all(tmp_path)
    assert steps_of(tmp_path)["loss"] == [*expected, *range(64_001, 64_010)]
    file.unlink()
    send_all(tmp_path)
    assert steps_of(tmp_path)["loss"] == [*expected, *range(64_001, 64_010)]


def test_a_full_disk_of_the_event_file_leaves_no_half_record(tmp_path: Path, monkeypatch) -> None:
    log(tmp_path, range(1, 9))
    tracker, sent = TensorBoard(), Sent()
    run = TrackedRun(key="k", name="r", folder=tmp_path, parameters={})
    tracker.open(run, sent)
    tracker.metrics([Point(1, {"loss": 1.0}, 0.0)], sent)
    tracker._file.write(b"half")
    tracker.close("failed")
    again = replace(sent)
    assert TensorBoard().open(run, sent) == again
    assert steps_of(tmp_path) == {"parameters": [0], "loss": [1]}


# What is refused ----------------------------------------------------------------------------------


def test_a_tracker_that_is_not_installed(monkeypatch, refused) -> None:
    monkeypatch.setattr(registry, "find_spec", lambda package: None)
    for name in ("mlflow", "wandb"):
        with refused(ConfigError):
            check_trackers([name])
    check_trackers(["tensorboard"])


@pytest.mark.parametrize(
    ("name", "variable", "address"),
    [
        ("mlflow", "MLFLOW_TRACKING_URI", ""),
        ("mlflow", "MLFLOW_TRACKING_URI", "localhost"),
        ("mlflow", "MLFLOW_TRACKING_URI", "http://"),
        ("wandb", "WANDB_BASE_URL", "wandb.example.org"),
    ],
)
def test_an_address_that_cannot_be_right(name, variable, address, monkeypatch, refused) -> None:
    monkeypatch.setattr(registry, "find_spec", lambda package: True)
    monkeypatch.setenv(variable, address)
    with refused(ConfigError):
        check_trackers([name])


def test_unknown_trackers_are_refused_and_several_are_read(refused) -> None:
    with refused(ConfigError):
        load_experiment("digits", ["training.trackers=tensorbord"])
    found = load_experiment("digits", ["training.trackers=mlflow,tensorboard,mlflow"])
    assert found.training.trackers == ("mlflow", "tensorboard")
    assert load_experiment("digits", [f"training.trackers={json.dumps(list(TRACKERS))}"])


def test_passwords_of_addresses_stay_out_of_the_log(
    server: Server, tmp_path: Path, monkeypatch
) -> None:
    text = "at http://ann:s3cret@127.0.0.1:9 (request to https://b:c@d.example/api?x=1 failed)"
    clean = "at http://127.0.0.1:9 (request to https://d.example/api?x=1 failed)"
    assert without_secrets(text) == clean
    assert without_secrets("mail ann@example.org") == "mail ann@example.org"
    monkeypatch.setattr(sending, "address_of", lambda name: "http://ann:s3cret@example.org")
    server.away = True
    with pytest.warns(TrackerWarning) as caught:
        send_all(tmp_path)
    texts = [str(one.message) for one in caught]
    assert any("example.org" in one for one in texts)
    assert not any("s3cret" in one for one in texts)
