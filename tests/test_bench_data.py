"""Table 2's loaders: each gives the images it says, and the figures are what they are called."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sfumato.base.errors import InputError, SfumatoError
from sfumato.bench.loaders import WAYS, Setup
from sfumato.bench.loading import Loading, Row, batch_entropy, compare_loading
from sfumato.bench.loading_page import file_orders
from sfumato.bench.timing import Timing, time_once
from sfumato.config.sections import DataConfig
from sfumato.data.prepare import prepare
from sfumato.data.records import load_records
from tests.pictures import encoded, noise, write_parquet


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    """Square PNGs, on which every decoder agrees to the bit."""
    folder = tmp_path_factory.mktemp("table2")
    for file in range(2):
        write_parquet(
            folder / "data" / f"train-{file:05d}-of-00002.parquet",
            [encoded(noise(100 * file + row, (12, 12, 3))) for row in range(60)],
            [row // 20 for row in range(60)],
            names=["oak", "elm", "ash"],
            row_group_size=20,
        )
    source = str(folder / "data")
    config = DataConfig(source=source, resolution=8, channels=3, caption=("A {word}",))
    prepare(config, folder / "prepared")
    return Setup(
        config=config,
        batch_size=16,
        workers=0,
        label_column="label",
        prepared=str(folder / "prepared"),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in WAYS if name not in ("bare", "bare-full")])
def test_every_way_gives_whole_images_with_their_labels(setup: Setup, name: str) -> None:
    pytest.importorskip("datasets")
    records = load_records(setup.config, "train")
    everything = both_splits(setup.config)
    known = {image.numpy().tobytes(): label for image, label in everything}
    count = 0
    for batch, _ in zip(WAYS[name].start(setup), range(6), strict=False):
        assert batch.images.shape[1:] == (3, 8, 8)
        assert batch.images.dtype == torch.uint8
        for image, label, sample in zip(*batch, strict=True):
            assert known[image.numpy().tobytes()] == int(label)
            if int(sample) >= 0:
                assert torch.equal(image, records.images[sample])
        count += len(batch.images)
    assert count == 96


def both_splits(config: DataConfig) -> list[tuple[torch.Tensor, int]]:
    """Images and labels of both splits: `datasets` knows nothing of ours."""
    pairs = []
    for split in ("train", "test"):
        records = load_records(config, split)
        pairs += list(zip(records.images, records.labels.tolist(), strict=True))
    return pairs


@pytest.mark.slow
def test_a_timing_comes_from_a_process_of_its_own(setup: Setup, refused) -> None:
    timing = time_once("stream", replace(setup, workers=1), batches=5)
    assert len(timing.batch_seconds) == 5
    assert len(timing.labels) == len(timing.samples) == 80
    assert timing.seconds_a_batch == pytest.approx(sum(timing.batch_seconds) / 5)
    assert timing.peak_bytes > 2**20
    digits = setup.config.model_copy(update={"source": "digits", "channels": 1})
    with refused(SfumatoError):
        time_once("stream", replace(setup, config=digits), batches=1)


@pytest.mark.slow
def test_the_command_writes_table_record_and_chart(sfumato, setup: Setup, tmp_path: Path) -> None:
    ran = sfumato(
        "bench", "data", setup.config.source, "--resolution", "8", "--batches", "4",
        "--only", "files,files-reduced,stream,prepared", "--out", str(tmp_path / "bench.json"),
    )  # fmt: skip
    assert ran.code == 0, ran.err
    record = json.loads((tmp_path / "bench.json").read_text())
    assert [len(row["timings"]) for row in record["rows"]] == [3, 3, 3, 3]
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "bench.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "0.1-0.5 s" in page
    for text in ("file by file (the paper)", "sfumato, stream", "Gain by decoding"):
        assert text in ran.out


def test_figure_14_shows_the_orders_as_they_are(setup: Setup) -> None:
    """The paper's loader ends a file before the next one; random order and stream mix them."""
    orders, files = file_orders(setup.config)
    changes = {name: int((np.diff(order) != 0).sum()) for name, order in orders.items()}
    rows = [np.bincount(order, minlength=files).tolist() for order in orders.values()]
    assert rows[0] == rows[1] == rows[2]
    assert changes["file by file (the paper, Figure 14)"] == files - 1
    others = [count for name, count in changes.items() if not name.startswith("file by file")]
    assert min(others) > files


def test_ratios_are_of_medians_and_gains_multiply_to_the_whole() -> None:
    def row(name: str, *seconds: float) -> Row:
        timings = [
            Timing(batch_seconds=[s, s], labels=[], samples=[], peak_bytes=int(1e6 * s))
            for s in seconds
        ]
        return Row(name=name, label=name, timings=timings, entropy=None, displacement=None)

    rows = [row("files", 8, 9, 70), row("files-reduced", 2, 3, 4), row("stream", 0.5, 1, 1.5)]
    loading = Loading(rows=rows, images=10, batch_size=2, workers=2)
    assert loading.ratio("files") == 9
    assert list(loading.gains().values()) == [3, 3]
    assert loading.ratio("datasets") is None
    assert rows[0].peak_bytes == 70e6


def test_entropy_of_batches() -> None:
    assert batch_entropy(np.arange(64), 16) == pytest.approx(np.log(16))
    assert batch_entropy(np.zeros(64, dtype=int), 16) == 0
    assert batch_entropy(np.repeat([0, 1], 8), 16) == pytest.approx(np.log(2))


def test_what_cannot_be_compared_says_so(setup: Setup, refused) -> None:
    def run(**changes) -> None:
        given = {"pairs": 3, "ways": ["stream"], **changes}
        compare_loading(
            setup.config, batch_size=16, workers=0, most_batches=1, log=lambda text: None, **given
        )

    with refused(InputError):
        run(pairs=2)
    with refused(InputError):
        run(ways=["strem"])
