"""FID's Inception: against torch-fidelity's on the same weights, its files, its download."""

import hashlib
import importlib
import sys
import threading
import types
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sfumato.base.errors import DamagedDataError, InputError
from sfumato.evaluation.extractors import download as downloads
from sfumato.evaluation.extractors import inception_weights
from sfumato.evaluation.extractors.extractor import WeightsNotAtHandError
from sfumato.evaluation.extractors.inception import Inception, resize_like_tensorflow1
from sfumato.evaluation.extractors.inception_weights import find_weights, load_inception
from tests.messages import IN_BRACKETS

REFERENCES = Path(sys.prefix) / "references"
"""Packages that tests compare with and that cannot be installed beside ours (see Makefile)."""


@pytest.fixture(scope="module")
def fidelity() -> Iterator[types.SimpleNamespace]:
    """torch-fidelity's network and resize, past its `__init__`, which imports torchvision."""
    folder = REFERENCES / "torch_fidelity"
    if not folder.is_dir():
        pytest.skip(f"needs torch-fidelity in {REFERENCES}: `make environment` puts it there")
    package = types.ModuleType("torch_fidelity")
    package.__path__ = [str(folder)]
    sys.modules["torch_fidelity"] = package
    try:
        network = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
        resize = importlib.import_module("torch_fidelity.interpolate_compat_tensorflow")
        yield types.SimpleNamespace(
            network=network.FeatureExtractorInceptionV3,
            resize=resize.interpolate_bilinear_2d_like_tensorflow1x,
        )
    finally:  # torchmetrics would take it for the whole package
        for name in [name for name in sys.modules if name.split(".")[0] == "torch_fidelity"]:
            del sys.modules[name]


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """Random weights under which activations neither die out nor explode over 94 layers."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        network = Inception()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 1.1, 1.7)
                nn.init.normal_(module.bias, std=0.1)
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
    return network.state_dict()


@pytest.fixture(scope="module")
def weights(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save(state, path)
    return path


def pictures(count: int, height: int, width: int, *, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(height * width)
    shape = (count, channels, height, width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    "size", [(32, 32), (28, 28), (299, 299), (64, 48), (512, 300), (1, 1), (5, 7)]
)
def test_the_resize_is_bit_for_bit_that_of_torch_fidelity(
    fidelity: types.SimpleNamespace, size: tuple[int, int]
) -> None:
    images = pictures(2, *size).float()
    expected = fidelity.resize(images, size=(299, 299), align_corners=False)
    assert torch.equal(resize_like_tensorflow1(images, 299), expected)


def test_the_resize_reads_at_i_times_h_over_299() -> None:
    """On a ramp, linear interpolation gives the place that it read at."""
    ramp = torch.arange(64.0).expand(1, 1, 64, 64)
    row = resize_like_tensorflow1(ramp, 299)[0, 0, 0]
    expected = (torch.arange(299) * 64 / 299).clamp(max=63)
    torch.testing.assert_close(row, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [(32, 32), pytest.param((300, 320), marks=pytest.mark.slow)])
def test_features_and_logits_equal_those_of_torch_fidelity(
    fidelity: types.SimpleNamespace, weights: Path, size: tuple[int, int]
) -> None:
    ours = load_inception(weights)
    theirs = fidelity.network(
        "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights)
    )
    images = pictures(3, *size)
    expected, expected_logits = theirs(images)
    assert float(expected.std()) > 0.01  # the random network does tell images apart
    features = ours(images)
    assert features.shape == (3, 2048)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=0)
    logits = ours.logits(features)
    torch.testing.assert_close(logits, expected_logits, rtol=1e-4, atol=1e-7)


def test_the_name_says_the_hash_and_the_resize_rule(weights: Path) -> None:
    name = load_inception(weights).name
    assert hashlib.sha256(weights.read_bytes()).hexdigest()[:16] in name
    assert "bilinear to 299 px as TensorFlow 1" in name
    assert "not the published file" in name


def test_pytorch_fids_resize_is_another_metric(weights: Path) -> None:
    """Its preparation, pixel by pixel in numpy: output i reads at (i + 0.5) H / 299 - 0.5."""
    extractor = load_inception(weights, resize="pytorch-fid")
    assert extractor.name != load_inception(weights).name
    assert "as pytorch-fid" in extractor.name
    images = pictures(2, 32, 40)
    prepared = extractor.network.prepare(images.float()).numpy()

    def taken(values: np.ndarray, axis: int) -> np.ndarray:
        length = values.shape[axis]
        at = ((np.arange(299) + 0.5) * length / 299 - 0.5).clip(0)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, length - 1)
        share = (at - low).reshape([-1 if a == axis else 1 for a in range(4)])
        return values.take(low, axis) * (1 - share) + values.take(high, axis) * share

    expected = 2 * taken(taken(images.numpy() / 255, 2), 3) - 1
    np.testing.assert_allclose(prepared, expected, atol=1e-5)


def test_safetensors_hold_the_same_network(
    weights: Path, state: dict[str, Tensor], tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    save_file(state, tmp_path / "converted.safetensors")
    images = pictures(1, 32, 32)
    converted = load_inception(tmp_path / "converted.safetensors")
    assert torch.equal(converted(images), load_inception(weights)(images))


def test_files_that_are_not_its_weights(
    weights: Path, state: dict[str, Tensor], tmp_path: Path, refused
) -> None:
    with refused(DamagedDataError):
        load_inception(weights, sha256=inception_weights.SHA256)
    with refused(InputError):
        load_inception(tmp_path / "none.pth")

    broken = tmp_path / "broken.pth"
    whole = weights.read_bytes()
    for content in (b"", b"not weights", whole[: len(whole) // 2], b"\x80\x02pickle"):
        broken.write_bytes(content)
        with refused(DamagedDataError, theirs=IN_BRACKETS):
            load_inception(broken)
    (tmp_path / "broken.safetensors").write_bytes(b"not weights")
    with refused(DamagedDataError, theirs=IN_BRACKETS):
        load_inception(tmp_path / "broken.safetensors")

    other = tmp_path / "other.pth"
    torch.save([1, 2], other)
    with refused(DamagedDataError):
        load_inception(other)
    torch.save({**state, "fc.weight": torch.zeros(1000, 2048)}, other)
    with refused(DamagedDataError):
        load_inception(other)
    torch.save({name: value for name, value in state.items() if "7c" not in name}, other)
    with refused(DamagedDataError):
        load_inception(other)
    torch.save({**state, "AuxLogits.fc.bias": torch.zeros(1)}, other)
    with refused(DamagedDataError):
        load_inception(other)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path, refused) -> None:
    import pickle

    class Malicious:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"fc.weight": Malicious()}, tmp_path / "bad.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Malicious(), protocol=2))
    for name in ("bad.pth", "plain.pth"):
        with refused(DamagedDataError, theirs=IN_BRACKETS):
            load_inception(tmp_path / name)
    assert not (tmp_path / "ran").exists()


class StandIn:
    """Serves `content` at /weights, and breaks the first `cuts` answers off halfway."""

    def __init__(self, content: bytes, *, cuts: int = 0, status: int = 200) -> None:
        self.ranges: list[str | None] = []
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *arguments: object) -> None: ...

            def do_GET(self) -> None:
                wanted = self.headers.get("Range")
                stand_in.ranges.append(wanted)
                start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
                if status != 200:
                    self.send_error(status)
                    return
                if start >= len(content):
                    self.send_error(416)
                    return
                rest = content[start:]
                self.send_response(206 if wanted else 200)
                self.send_header("Content-Length", str(len(rest)))
                self.end_headers()
                broken = len(stand_in.ranges) <= cuts
                self.wfile.write(rest[: len(rest) // 2] if broken else rest)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/weights"


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator:
    """Make the published file one of `content`, served by a `StandIn`, on a machine without it."""
    servers: list[StandIn] = []
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv(inception_weights.VARIABLE, raising=False)
    monkeypatch.setattr(downloads, "_PAUSE_SECONDS", 0.01)

    def start(content: bytes, **how: int) -> StandIn:
        servers.append(StandIn(content, **how))
        monkeypatch.setattr(inception_weights, "URL", servers[-1].url)
        monkeypatch.setattr(inception_weights, "SHA256", hashlib.sha256(content).hexdigest())
        monkeypatch.setattr(inception_weights, "SIZE_BYTES", len(content))
        return servers[-1]

    yield start
    for stand_in in servers:
        stand_in.server.shutdown()
        stand_in.server.server_close()


@pytest.mark.slow
def test_a_download_goes_on_where_it_broke_and_is_fetched_once(serve, weights: Path) -> None:
    content = weights.read_bytes()
    stand_in = serve(content, cuts=2)
    extractor = load_inception(may_download=True)
    assert stand_in.ranges == [
        None,
        f"bytes={len(content) // 2}-",
        f"bytes={len(content) // 2 + (len(content) - len(content) // 2) // 2}-",
    ]
    assert extractor.name.startswith("inception-2015-12-05 pool3, sha256:")
    load_inception(may_download=True)
    assert len(stand_in.ranges) == 3
    assert find_weights().read_bytes() == content


def test_weights_that_are_not_at_hand(serve, monkeypatch: pytest.MonkeyPatch, refused) -> None:
    stand_in = serve(b"weights")
    with refused(WeightsNotAtHandError):
        load_inception()
    assert stand_in.ranges == []  # nothing is fetched unasked
    serve(b"weights", status=404)
    with refused(WeightsNotAtHandError):
        load_inception(may_download=True)
    monkeypatch.setattr(inception_weights, "URL", "http://127.0.0.1:9/none")
    with refused(WeightsNotAtHandError, theirs=IN_BRACKETS):
        load_inception(may_download=True)


def test_a_download_with_a_wrong_checksum_leaves_nothing(
    serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, refused
) -> None:
    serve(b"what a proxy says")
    monkeypatch.setattr(inception_weights, "SHA256", hashlib.sha256(b"weights").hexdigest())
    with refused(DamagedDataError):
        load_inception(may_download=True)
    left = [path.name for path in (tmp_path / "cache" / "weights").iterdir()]
    assert [name for name in left if not name.endswith(".lock")] == []


def test_a_partial_file_that_is_whole_is_taken(serve, tmp_path: Path) -> None:
    content = b"weights"
    stand_in = serve(content)
    sha256 = hashlib.sha256(content).hexdigest()
    path = tmp_path / "file"
    (tmp_path / f"{downloads.TEMPORARY_PREFIX}{sha256[:8]}-file").write_bytes(content)
    downloads.download(stand_in.url, path, sha256=sha256, hint="")
    assert path.read_bytes() == content
    assert stand_in.ranges == ["bytes=7-"]


def test_what_other_tools_left_is_found_and_checked(
    serve, weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, refused
) -> None:
    content = weights.read_bytes()
    serve(content)
    theirs = tmp_path / "torch" / "hub" / "checkpoints" / inception_weights.NAMES[1]
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(content[:1000])
    with refused(WeightsNotAtHandError):  # another tool was killed while it fetched
        find_weights()
    theirs.write_bytes(content)
    assert load_inception().name.startswith("inception-2015-12-05 ")
    theirs.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with refused(DamagedDataError):
        load_inception()
    monkeypatch.setenv(inception_weights.VARIABLE, str(weights))  # what is named goes first
    assert load_inception().dim == 2048
