"""What the order of the images does to training."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sfumato.bench.order import ORDERS, RANDOM, compare_orders, file_by_file, ordered
from sfumato.config.schema import load_experiment
from sfumato.config.sections import DataConfig
from sfumato.data.streaming.stream import open_stream
from sfumato.data.survey import resolve
from tests.pictures import encoded, noise, write_parquet


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three files of 40 images, sorted by class."""
    folder = tmp_path_factory.mktemp("order") / "data"
    for file in range(3):
        write_parquet(
            folder / f"train-{file:05d}-of-00003.parquet",
            [encoded(noise(100 * file + row, (8, 8, 3))) for row in range(40)],
            [file] * 40,
            names=["oak", "elm", "ash"],
            row_group_size=20,
        )
    return str(folder)


def test_every_order_is_a_permutation_in_each_epoch(source: str) -> None:
    config = DataConfig(source=source, resolution=8, channels=3, caption=("A {word}",))
    records = open_stream(config, "train")
    count = len(records)
    for name, order in ORDERS.items():
        two = order(records, 0).indices(0, 2 * count)
        for epoch in two.split(count):
            assert epoch.sort().values.tolist() == list(range(count)), name
        assert torch.equal(order(records, 0).indices(count - 3, 9), two[count - 3 : count + 6])
    by_file = file_by_file(records, 0).indices(0, count).numpy()
    of_sample = records.labels.numpy()[by_file]
    assert (np.diff(of_sample) != 0).sum() == 2
    assert not np.array_equal(by_file, file_by_file(records, 0).indices(count, count).numpy())
    assert ORDERS["as stored"](records, 5).indices(0, count).tolist() == list(range(count))


def test_differences_are_of_pairs_of_images() -> None:
    image = torch.rand(200, generator=torch.Generator().manual_seed(0)).double()
    found = {
        one.name: one
        for one in ordered(
            {RANDOM: {0: image, 1: image + 0.1}, "other": {0: image + 0.02, 1: image + 0.12}}
        )
    }
    assert found[RANDOM].apart is None
    apart = found["other"].apart
    assert apart is not None
    assert apart.value == pytest.approx(0.02)
    assert apart.high - apart.low < 1e-9  # far below the spread of the images
    assert found["other"].spread == pytest.approx(0.1 / 2**0.5)


@pytest.mark.slow
def test_runs_differ_in_the_order_alone_and_go_on(source: str, tmp_path: Path) -> None:
    settings = [
        f"data.source={source}", "data.resolution=8", "data.loading=memory",
        "model.block_out_channels=[8,16]", "model.levels=[plain,attention]",
        "training.images=64", "training.batch_size=16",
    ]  # fmt: skip
    experiment = load_experiment("small", settings)
    experiment = experiment.model_copy(update={"data": resolve(experiment.data)})
    found = compare_orders(experiment, tmp_path, seeds=[0], device="cpu")
    assert found is not None
    assert [one.name for one in found] == list(ORDERS)
    assert len({one.mean for one in found}) == len(ORDERS)
    record = json.loads((tmp_path / "order.json").read_text())
    assert record["orders"][RANDOM]["more_than_random"] is None
    again = compare_orders(experiment, tmp_path, seeds=[0], device="cpu")
    assert again is not None
    assert [one.mean for one in again] == [one.mean for one in found]
