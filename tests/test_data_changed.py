"""Data that change between two commands: the split follows the images, a run says what is new."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sfumato.base.errors import ConfigError, DamagedDataError, DataWarning, InputError
from sfumato.config.schema import load_experiment
from sfumato.config.sections import DataConfig
from sfumato.data.files import visible_files
from sfumato.data.identity import held_out, identities
from sfumato.data.opening import open_images
from sfumato.data.prepare import prepare
from sfumato.data.records import load_records, trained_on
from sfumato.data.streaming.stream import open_stream
from sfumato.methods.registry import run_experiment
from sfumato.training.images import Changes, compare_images
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


# A run that goes on -------------------------------------------------------------------------------


SETTINGS = {
    "data.resolution": 8,
    "model.block_out_channels": [8, 16],
    "model.levels": ["plain", "attention"],
    "training.batch_size": 8,
    "training.sample_every_images": 1000,
    "sampling.steps": 2,
}


def write_captioned(root: Path, seeds: range | list[int], words: str = "the thing") -> None:
    for seed in seeds:
        write_image(root / f"{seed}.png", noise(seed, (8, 8, 3)), f"{words} of {seed}")


def train(source: Path, out: Path, images: int, **settings) -> None:
    data = {"source": str(source), "resolution": 8, **settings}
    changes = {f"data.{name}": value for name, value in data.items()}
    values = {**SETTINGS, **changes, "training.images": images}
    overrides = [f"{name}={json.dumps(value)}" for name, value in values.items()]
    run_experiment(load_experiment("small", overrides), out, device="cpu")


def changes_in(out: Path) -> list[dict]:
    return json.loads((out / "images.json").read_text())["changes"]


@pytest.fixture
def grown(tmp_path: Path) -> tuple[Path, Path, int]:
    """A folder of 12 images, a run of them, and 28 more images since; how many of these are in the
    training part."""
    source, out = tmp_path / "photos", tmp_path / "run"
    write_captioned(source, range(12))
    train(source, out, 16)
    first = images_of(config(source, caption="{caption}", test_share=0.1), "train")
    assert json.loads((out / "images.json").read_text())["count"] == len(first)
    write_captioned(source, range(12, 40))
    second = images_of(config(source, caption="{caption}", test_share=0.1), "train")
    assert set(first) <= set(second)
    return source, out, len(second) - len(first)


@pytest.mark.slow
def test_a_run_does_not_go_on_with_other_images(grown, tmp_path: Path) -> None:
    """The case `data-changed-between-runs`."""
    source, out, new = grown
    (source / "0.txt").write_text("something else")
    (source / "1.txt").write_text("something else")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    trained = {0, 1} - {seed for seed in (0, 1) if seed in held_out_seeds(source)}
    with pytest.raises(ConfigError) as caught:
        train(source, out, 32)
    expected = f"{new} new, 0 gone, {len(trained)} with another caption or class"
    assert expected in caught.value.what
    assert "data.accept_changes=true" in caught.value.hint
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    with pytest.warns(DataWarning, match="have changed"):
        train(source, out, 32, accept_changes=True)
    (change,) = changes_in(out)
    counts = {name: change[name] for name in ("images_seen", "new", "gone", "changed")}
    assert counts == {"images_seen": 16, "new": new, "gone": 0, "changed": len(trained)}
    train(source, out, 48)  # nothing has changed since
    assert len(changes_in(out)) == 1
    assert len(list(out.glob("images-*.npy"))) == 1


def held_out_seeds(source: Path) -> set[int]:
    test = set(images_of(config(source, caption="{caption}", test_share=0.1), "test"))
    arrays = {seed: noise(seed, (8, 8, 3)).transpose(2, 0, 1).tobytes() for seed in range(40)}
    return {seed for seed, content in arrays.items() if content in test}


def test_renamed_and_moved_images_are_the_same(tmp_path: Path) -> None:
    source, out = tmp_path / "photos", tmp_path / "run"
    write_captioned(source, range(12))
    train(source, out, 8)
    for path in list(source.iterdir()):
        path.rename(path.with_name(f"z{path.name}"))
    train(source, out, 16)
    assert changes_in(out) == []


def test_a_run_without_a_checkpoint_or_a_record_begins_anew(tmp_path: Path) -> None:
    source, out = tmp_path / "photos", tmp_path / "run"
    write_captioned(source, range(12))
    train(source, out, 8)
    (out / "images.json").unlink()
    write_captioned(source, range(12, 16))
    train(source, out, 16)
    about = json.loads((out / "images.json").read_text())
    assert about["changes"] == []
    assert about["count"] == len(load_records(config(source, test_share=0.1), "train"))
    (array,) = out.glob("images-*.npy")
    array.write_bytes(array.read_bytes()[:-8])
    with pytest.raises(DamagedDataError):
        train(source, out, 24)


def test_changes_are_counted_with_copies() -> None:
    """Against sets, where nothing is there twice; and by hand, where something is."""
    draw = np.random.default_rng(0)
    before, now = (draw.permutation(200)[:120].astype(np.uint64) for _ in range(2))
    odd = np.isin(now, before) & (now % 3 == 0)
    first, second = np.stack([before, before * 0], 1), np.stack([now, odd.astype(np.uint64)], 1)
    a, b = set(before.tolist()), set(now.tolist())
    found = compare_images(first, second)
    assert found == Changes(new=len(b - a), gone=len(a - b), changed=int(odd.sum()))
    twice = np.array([[1, 0], [1, 0], [2, 0]], np.uint64)
    assert not compare_images(twice, twice)
    assert compare_images(twice, twice[1:]) == Changes(new=0, gone=1, changed=0)
    other = np.array([[1, 0], [1, 5], [3, 0]], np.uint64)
    assert compare_images(twice, other) == Changes(new=1, gone=1, changed=1)


def test_what_is_trained_on_is_known_in_every_layout(tmp_path: Path) -> None:
    """A stream of an official part goes by the places of its rows; else the content decides."""
    images = [encoded(noise(seed, (8, 8, 3))) for seed in range(30)]
    write_parquet(tmp_path / "a" / "train.parquet", images[:20], [0, 1] * 10, row_group_size=6)
    write_parquet(tmp_path / "a" / "test.parquet", images[20:], [0, 1] * 5)
    prepare(config(tmp_path / "a"), tmp_path / "prepared")
    held, again = (trained_on(config(tmp_path / place)) for place in ("a", "prepared"))
    assert np.array_equal(held, again)
    streamed = trained_on(config(tmp_path / "a", loading="stream"))
    assert len(streamed) == len(held) == 20
    assert not np.isin(streamed[:, 0], held[:, 0]).any()
    assert sorted(streamed[:, 1].tolist()) == sorted(held[:, 1].tolist())
