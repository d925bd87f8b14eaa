"""Downloads from a stand-in for the Hub: whole, interrupted, altered, unreachable."""

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

from sfumato.base.errors import DamagedDataError, InputError
from sfumato.config.sections import DataConfig
from sfumato.data.records import load_records
from sfumato.data.sources.hub import MANIFEST, hub_folder, is_hub_name
from tests.messages import IN_BRACKETS
from tests.pictures import encoded, noise, write_parquet

REVISION = "0123456789abcdef0123456789abcdef01234567"


class StandIn:
    """Serves one data set, owner/birds. `cut_after`: bytes after which a connection breaks."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.stated = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        self.cut_after: int | None = None
        self.cuts_left = 0
        self.cut_file = ""
        self.in_lfs = True
        self.requests: list[tuple[str, str, str | None]] = []
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments: object) -> None: ...

            def do_HEAD(self) -> None:
                stand_in.answer(self, body=False)

            def do_GET(self) -> None:
                stand_in.answer(self, body=True)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, handler: BaseHTTPRequestHandler, *, body: bool) -> None:
        path = unquote(handler.path.split("?")[0])
        self.requests.append((handler.command, path, handler.headers.get("Range")))
        if path.startswith(f"/api/datasets/owner/birds/tree/{REVISION}"):
            tree = [self._entry(name, data) for name, data in self.files.items()]
            self._send(handler, 200, json.dumps(tree).encode(), {}, body)
            return
        if path.startswith("/api/datasets/owner/birds") and "convert" not in path:
            self._send(handler, 200, json.dumps(self._info()).encode(), {}, body)
            return
        prefix = f"/datasets/owner/birds/resolve/{REVISION}/"
        name = path.removeprefix(prefix)
        if not path.startswith(prefix) or name not in self.files:
            self._send(handler, 404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
            return
        data = self.files[name]
        headers = {"ETag": f'"{self.stated[name]}"', "X-Repo-Commit": REVISION}
        status, start = 200, 0
        if given := handler.headers.get("Range"):
            start = int(given.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            status = 206
        self._send(handler, status, data[start:], headers, body)

    def _send(
        self,
        handler: BaseHTTPRequestHandler,
        status: int,
        data: bytes,
        headers: dict[str, str],
        body: bool,
    ) -> None:
        handler.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            handler.send_header(key, value)
        handler.end_headers()
        if not body:
            return
        if (
            self.cuts_left
            and self.cut_after is not None
            and self.cut_file in handler.path
            and headers
        ):
            self.cuts_left -= 1
            handler.wfile.write(data[: self.cut_after])
            handler.close_connection = True
            return
        handler.wfile.write(data)

    def _info(self) -> dict[str, object]:
        return {
            "id": "owner/birds",
            "sha": REVISION,
            "siblings": [self._sibling(name, data) for name, data in self.files.items()],
        }

    def _sibling(self, name: str, data: bytes) -> dict[str, object]:
        lfs = {"size": len(data), "sha256": self.stated[name], "pointerSize": 130}
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        about = {"rfilename": name, "size": len(data), "blobId": blob}
        return {**about, "lfs": lfs} if self.in_lfs else about

    def _entry(self, name: str, data: bytes) -> dict[str, object]:
        about = self._sibling(name, data)
        lfs = {"lfs": {**about["lfs"], "oid": self.stated[name]}} if self.in_lfs else {}
        return {"type": "file", "path": name, "size": len(data), "oid": about["blobId"], **lfs}

    def fetched(self, name: str) -> list[str | None]:
        """The ranges that were asked for of a file."""
        return [r for method, path, r in self.requests if method == "GET" and path.endswith(name)]


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[StandIn, Path]]:
    images = [encoded(noise(index, (8, 8, 3))) for index in range(40)]
    files = {}
    for name, part in (("train-00000-of-00001", images[:30]), ("test-00000-of-00001", images[30:])):
        file = write_parquet(
            tmp_path / "made" / f"{name}.parquet", part, [0, 1] * (len(part) // 2), names=["a", "b"]
        )
        files[f"data/{name}.parquet"] = file.read_bytes()
    files["README.md"] = b"# Birds"
    files["../outside.parquet"] = files["/outside.parquet"] = b"an evil name"
    server = StandIn(files)
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "cache"))
    constants = "huggingface_hub.constants"  # what HF_ENDPOINT sets, were it there at the import
    template = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(f"{constants}.ENDPOINT", server.url)
    monkeypatch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", server.url + template)
    monkeypatch.setattr(f"{constants}.DOWNLOAD_CHUNK_SIZE", 500)  # what a broken connection loses
    yield server, tmp_path / "cache" / "hub" / "owner--birds"
    server.server.shutdown()
    server.server.server_close()


def config(source: str) -> DataConfig:
    return DataConfig(source=source, resolution=8, channels=3, caption="A {class_name}")


def test_a_repository_of_images_in_git_itself(stand_in, tmp_path: Path) -> None:
    """Without Parquet, and without a copy of it: its images; git's checksums where LFS has none."""
    server, _ = stand_in
    arrays = {f"{name}/{n}.png": noise(n, (8, 8, 3)) for name in ("cat", "dog") for n in range(3)}
    server.files = {name: encoded(array) for name, array in arrays.items()}
    server.stated = dict.fromkeys(server.files, "0" * 64)
    server.in_lfs = False
    settings = config("owner/birds").model_copy(update={"test_share": 0.0})
    records = load_records(settings, "train")
    assert (list(records.class_names), len(records)) == (["cat", "dog"], 6)
    assert any("convert" in path for _, path, _ in server.requests)


def test_names() -> None:
    assert all(map(is_hub_name, ("ylecun/mnist", "huggan/wikiart", "owner/name/folder")))
    assert not any(map(is_hub_name, ("mnist", "../data", "./a/b", "/a/b", "~/a", "a//b", "")))


def test_a_download_is_whole_and_the_next_use_asks_nobody(
    stand_in, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server, folder = stand_in
    records = load_records(config("owner/birds"), "train")
    local = load_records(config(str(tmp_path / "made")), "train")
    assert records.images.equal(local.images)
    assert records.description.startswith("owner/birds (Parquet), train split (30 of 40)")
    said = capsys.readouterr().err
    assert "Downloading owner/birds (0." in said
    assert "Downloaded and checked owner/birds" in said
    assert not (folder / "README.md").exists()
    assert not list(tmp_path.rglob("outside*"))
    asked = len(server.requests)
    assert load_records(config("owner/birds"), "test").labels.tolist() == [0, 1] * 5
    assert len(server.requests) == asked


@pytest.mark.slow
def test_a_broken_connection_goes_on_where_it_stopped(stand_in) -> None:
    server, _ = stand_in
    server.cut_after, server.cuts_left, server.cut_file = 1_000, 2, "train"
    assert len(load_records(config("owner/birds"), "train")) == 30
    assert server.fetched("train-00000-of-00001.parquet") == [
        None,
        "bytes=1000-",
        "bytes=2000-",
    ]


@pytest.mark.slow
def test_a_download_that_ended_is_not_taken_for_whole_and_goes_on(stand_in, refused) -> None:
    """The connection is lost for good in the second file; the first is not fetched again."""
    server, folder = stand_in
    first, second = (f"{name}-00000-of-00001.parquet" for name in ("train", "test"))
    server.cut_after, server.cuts_left, server.cut_file = 0, 100, second
    with refused(InputError, theirs=IN_BRACKETS):
        hub_folder("owner/birds")
    assert not (folder / MANIFEST).exists()
    assert not (folder / "data" / second).exists()
    (folder / "killed.incomplete").write_bytes(b"what kill -9 leaves")
    server.cuts_left = 0
    assert len(load_records(config("owner/birds"), "test")) == 10
    assert len(server.fetched(first)) == 1
    assert not list(folder.rglob("*.incomplete"))


def test_a_wrong_checksum_is_refused_and_the_file_removed(stand_in, refused) -> None:
    server, folder = stand_in
    name = "data/train-00000-of-00001.parquet"
    good = server.files[name]
    server.files[name] = good[:-5] + b"wrong"
    with refused(DamagedDataError) as caught:
        hub_folder("owner/birds")
    assert caught.value.exit_code == 3
    assert not (folder / name).exists()
    assert not (folder / MANIFEST).exists()
    server.files[name] = good
    assert len(load_records(config("owner/birds"), "train")) == 30


def test_a_file_altered_after_the_download_is_named(stand_in, refused) -> None:
    _, folder = stand_in
    hub_folder("owner/birds")
    file = folder / "data" / "train-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:-10])
    with refused(DamagedDataError):
        hub_folder("owner/birds")
    (folder / MANIFEST).unlink()
    assert len(load_records(config("owner/birds"), "train")) == 30


def test_without_a_network_the_answer_is_quick(
    stand_in, monkeypatch: pytest.MonkeyPatch, refused
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    with refused(InputError, theirs=IN_BRACKETS):
        hub_folder("owner/birds")
    assert time.monotonic() - started < 4


def test_a_name_that_is_not_there(stand_in, refused) -> None:
    with refused(InputError):
        hub_folder("owner/fish")
    with refused(InputError):
        hub_folder("owner/birds/nothing")
