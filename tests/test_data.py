from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from sfumato.base.errors import ConfigError
from sfumato.base.images import grid, resize, to_float, to_uint8
from sfumato.config.sections import DataConfig
from sfumato.data.captions import captions_from_templates
from sfumato.data.loading import DeviceBatches, SampleOrder
from sfumato.data.opening import same_source
from sfumato.data.records import load_records
from sfumato.evaluation.prompt_set import class_prompts


def config(**changes) -> DataConfig:
    values = {"source": "digits", "resolution": 16, "channels": 1, "caption": "digit {label}"}
    return DataConfig(**{**values, **changes})


def test_digits_are_split_without_overlap() -> None:
    splits = {name: load_records(config(), name) for name in ("train", "classifier", "test")}
    assert {name: len(records) for name, records in splits.items()} == {
        "train": 897,
        "classifier": 600,
        "test": 300,
    }
    # Together they are the whole data set, each image as often as there.
    ours = np.concatenate([records.images.flatten(1).numpy() for records in splits.values()])
    grey = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)
    theirs = np.stack([resize(image, 16).ravel() for image in grey])
    assert sorted(map(bytes, ours)) == sorted(map(bytes, theirs))
    assert all(len(records.labels.unique()) == 10 for records in splits.values())


def test_digits_are_the_same_for_the_same_seed_only() -> None:
    first = load_records(config(), "train")
    assert torch.equal(first.images, load_records(config(), "train").images)
    assert not torch.equal(first.images, load_records(config(split_seed=1), "train").images)
    assert first.images.shape == (897, 1, 16, 16)
    assert load_records(config(channels=3), "test").images.shape == (300, 3, 16, 16)


def test_captions_from_templates(refused) -> None:
    templates = ["A photo of a {class_name}", "{label}: {word}"]
    assert captions_from_templates(templates, ["cat", "ice_cream"]) == [
        "A photo of a cat",
        "A photo of a ice_cream",
        "0: cat",
        "1: ice cream",
    ]
    assert captions_from_templates(["the number {word}"], ["0", "7"])[1] == "the number seven"
    with refused(ConfigError):
        captions_from_templates(["A {colour} digit"], ["0"])


def test_prompts_of_an_evaluation_take_templates_in_turn() -> None:
    test = load_records(config(caption=["A {label}", "B {label}"]), "test")
    labels = torch.arange(25) % 10
    assert class_prompts(test, labels, ())[:2] == ["A 0", "A 1"]
    found = class_prompts(test, labels, ["x {word}", "y {label}"])
    assert [found[0], found[9], found[10], found[24]] == ["x zero", "x nine", "y 0", "x four"]


def test_a_step_draws_one_of_an_images_captions() -> None:
    """Each of three captions about as often as the others, and always of the image's own class."""
    records = load_records(config(caption=["A {label}", "B {label}", "C {label}"]), "train")
    batches = DeviceBatches(records, seed=0, batch_size=64, device=torch.device("cpu"))
    drawn = [batches.at(64 * step) for step in range(30)]
    prompts = torch.cat([batch.prompts for batch in drawn])
    assert torch.equal(prompts % 10, torch.cat([batch.labels for batch in drawn]))
    counts = (prompts // 10).bincount(minlength=3)
    assert (counts - 640).abs().max() < 4 * (1920 * (1 / 3) * (2 / 3)) ** 0.5
    assert records.class_captions == [f"A {label}" for label in range(10)]


def test_unknown_source_names_the_nearest(refused) -> None:
    with refused(ConfigError):
        load_records(config(source="digit"), "train")


@pytest.mark.parametrize("value_range", [(-1.0, 1.0), (0.0, 1.0)])
def test_pixels_survive_the_round_trip(value_range: tuple[float, float]) -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    values = to_float(pixels, value_range)
    assert (float(values.min()), float(values.max())) == pytest.approx(value_range)
    assert torch.equal(to_uint8(values, value_range), pixels)


def test_grid_places_images_row_by_row() -> None:
    images = torch.stack([torch.full((1, 2, 2), value, dtype=torch.uint8) for value in (1, 2, 3)])
    picture = grid(images, columns=2, gap_px=1)
    assert picture.shape == (1, 7, 7)
    assert [int(picture[0, y, x]) for y, x in ((1, 1), (1, 4), (4, 1), (4, 4))] == [1, 2, 3, 255]


def test_order_visits_every_sample_once_an_epoch_and_batches_straddle() -> None:
    order = SampleOrder(10, seed=3)
    whole = order.indices(0, 30)
    for epoch in whole.split(10):
        assert sorted(epoch.tolist()) == list(range(10))
    assert not torch.equal(whole[:10], whole[10:20])
    # Any cutting into batches gives the same order, from any starting point.
    pieces = torch.cat([SampleOrder(10, seed=3).indices(k, 7) for k in range(0, 28, 7)])
    assert torch.equal(pieces, whole[:28])


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_share_the_global_batch(world_size: int) -> None:
    records = load_records(config(resolution=8), "test")
    cpu = torch.device("cpu")
    whole = DeviceBatches(records, seed=0, batch_size=8, device=cpu).at(296)
    parts = [
        DeviceBatches(
            records, seed=0, batch_size=8, device=cpu, rank=rank, world_size=world_size
        ).at(296)
        for rank in range(world_size)
    ]
    for rank, part in enumerate(parts):
        assert torch.equal(part.images, whole.images[rank::world_size])
        assert torch.equal(part.labels, whole.labels[rank::world_size])


def test_the_same_folder_by_another_path_is_the_same_source(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "images")
    one = str(tmp_path / "images")
    assert same_source(one, f"{one}/../images/")
    assert same_source(one, str(tmp_path / "link"))
    assert same_source("ylecun/mnist", "ylecun/mnist")
    assert not same_source(one, str(tmp_path))
    assert not same_source(one, "ylecun/mnist")
