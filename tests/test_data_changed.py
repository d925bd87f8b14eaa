"""Data that change between two commands: the split follows the images, a run says what is new."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sfumato.base.errors import InputError
from sfumato.config.sections import DataConfig
from sfumato.data.files import visible_files
from sfumato.data.identity import held_out, identities
from sfumato.data.opening import open_images
from sfumato.data.prepare import prepare
from sfumato.data.records import load_records
from sfumato.data.streaming.stream import open_stream
from tests.pictures import encoded, noise, write_idx, write_image, write_parquet


def config(source: Path, **changes) -> DataConfig:
    values = {"resolution": 8, "channels": 3, "caption": "A photo", "test_share": 0.3}
    return DataConfig(**{"source": str(source), **values, **changes})


def images_of(settings: DataConfig, split: str) -> list[bytes]:
    return [bytes(image.numpy()) for image in load_records(settings, split).images[:]]


def write_folder(root: Path, seeds: list[int]) -> None:
    for number, seed in enumerate(seeds):  # by names that say nothing of the image
        write_image(root / f"{number}.png", noise(seed, (8, 8, 3)))


def write_one_file(root: Path, seeds: list[int]) -> None:
    images = [encoded(noise(seed, (8, 8, 3))) for seed in seeds]
    write_parquet(root / "images.parquet", images, row_group_size=7)


def write_pairs(root: Path, seeds: list[int]) -> None:
    write_idx(root / "images-idx3-ubyte", np.stack([noise(seed, (8, 8)) for seed in seeds]))
    write_idx(root / "labels-idx1-ubyte", np.zeros(len(seeds), np.uint8))


@pytest.mark.parametrize("write", [write_folder, write_one_file, write_pairs])
@pytest.mark.parametrize("prepared", [False, True])
def test_images_stay_on_their_side_when_others_come_and_go(
    tmp_path: Path, write, prepared: bool
) -> None:
    first, second = list(range(40)), [*range(100, 140), *range(39, 9, -1)]
    sides = []
    for name, seeds in (("first", first), ("second", second)):
        write(tmp_path / name, seeds)
        settings = config(tmp_path / name)
        if prepared:
            prepare(settings, tmp_path / f"{name}-prepared")
            settings = config(tmp_path / f"{name}-prepared")
        train, test = (images_of(settings, split) for split in ("train", "test"))
        assert len({*train, *test}) == len(seeds) == len(train) + len(test)
        sides.append((set(train), set(test)))
    (train, test), (later_train, later_test) = sides
    assert not train & later_test
    assert not test & later_train
    assert len(train & later_train) + len(test & later_test) == 30
    assert 4 <= len(test) <= 20  # 12 of 40 are expected; 4 deviations


def test_copies_of_an_image_are_on_one_side(tmp_path: Path) -> None:
    write_folder(tmp_path, [*range(30)] * 3)
    train, test = (images_of(config(tmp_path), split) for split in ("train", "test"))
    assert not set(train) & set(test)
    assert len(train) + len(test) == 90


def test_the_share_is_that_asked_for() -> None:
    """Against the binomial distribution, for any seed; two seeds are independent of each other."""
    ids = np.random.default_rng(0).integers(0, 2**64, 100_000, dtype=np.uint64)
    first, second = (held_out(ids, 0.1, [seed]) for seed in (0, 1))
    for chosen in (first, second):
        assert abs(int(chosen.sum()) - 10_000) < 4 * (100_000 * 0.09) ** 0.5
    assert abs(int((first & second).sum()) - 1_000) < 4 * (100_000 * 0.0099) ** 0.5
    rising = np.arange(100_000, dtype=np.uint64)  # bad hashes do as well
    assert abs(int(held_out(rising, 0.1, [0]).sum()) - 10_000) < 4 * (100_000 * 0.09) ** 0.5


@pytest.mark.parametrize(
    ("ids", "share", "expected"),
    [([1, 2, 3], 1e-9, 1), ([1, 2, 3], 1 - 1e-9, 2), ([1, 2], 0.5, 1), ([5, 5], 0.5, 0)],
)
def test_neither_side_is_empty(ids: list[int], share: float, expected: int) -> None:
    assert held_out(np.array(ids, np.uint64), share, [0]).sum() == expected
    assert held_out(np.array(ids, np.uint64), 0.0, [0]).sum() == 0


def test_no_share_holds_out_nothing(tmp_path: Path) -> None:
    write_folder(tmp_path, [*range(5)])
    settings = config(tmp_path, test_share=0)
    assert len(load_records(settings, "train")) == 5
    with pytest.raises(InputError) as caught:
        load_records(settings, "test")
    assert "data.test_share is 0" in caught.value.what


def test_tuning_images_stay_tuning_images(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", [*range(60)])
    write_folder(tmp_path / "b", [*range(100, 130), *range(60)])
    tuning, reference = (
        [
            set(images_of(config(tmp_path / place, test_share=0.5, tuning_share=0.4), split))
            for place in ("a", "b")
        ]
        for split in ("tuning", "reference")
    )
    assert tuning[0] <= tuning[1]
    assert reference[0] <= reference[1]
    assert not tuning[1] & reference[1]


def test_a_stream_has_the_same_split(tmp_path: Path) -> None:
    write_one_file(tmp_path, [*range(50)])
    streamed = open_stream(config(tmp_path), "train")
    assert len(streamed) == len(load_records(config(tmp_path), "train"))
    ids = identities(open_images(config(tmp_path)), "all")[:, 0]
    kept = np.concatenate(
        [g.start + rows for g, rows in zip(streamed.groups, streamed.rows, strict=True)]
    )
    assert np.array_equal(np.flatnonzero(~held_out(ids, 0.3, [0])), kept)


def test_identities_are_read_once_and_again_when_a_file_changes(
    tmp_path: Path, cache: Path
) -> None:
    write_folder(tmp_path, [*range(9)])
    found = identities(open_images(config(tmp_path)), "all")
    assert len(np.unique(found[:, 0])) == 9
    assert len(np.unique(found[:, 1])) == 1  # no captions, no classes
    before = len(visible_files(cache / "identities"))
    write_image(tmp_path / "3.png", noise(33, (8, 8, 3)))
    again = identities(open_images(config(tmp_path)), "all")
    assert len(visible_files(cache / "identities")) == before + 1
    assert (again != found).any(1).tolist() == [index == 3 for index in range(9)]


def test_a_caption_is_no_part_of_an_images_identity(tmp_path: Path) -> None:
    for index in range(9):
        write_image(tmp_path / f"{index}.png", noise(index, (8, 8, 3)), f"the thing {index % 4}")
    found = identities(open_images(config(tmp_path)), "all")
    (tmp_path / "5.txt").write_text("another thing")
    again = identities(open_images(config(tmp_path)), "all")
    assert np.array_equal(found[:, 0], again[:, 0])
    assert (again[:, 1] != found[:, 1]).tolist() == [index == 5 for index in range(9)]
    assert torch.equal(
        load_records(config(tmp_path, split_seed=0), "test").images,
        load_records(config(tmp_path, split_seed=0, max_damaged=0.5), "test").images,
    )
