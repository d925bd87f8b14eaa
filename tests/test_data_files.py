"""Parquet in the Hub's layout and IDX: against Pillow, against `datasets`, and what is refused."""

import io
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.base.errors import DamagedDataError, InputError
from sfumato.config.sections import DataConfig
from sfumato.data.identity import identities
from sfumato.data.opening import open_images, source_identity
from sfumato.data.records import load_records
from sfumato.data.survey import resolve, survey
from sfumato.data.table import Damage, list_damage
from tests.messages import IN_BRACKETS
from tests.pictures import bomb, encoded, noise, write_idx, write_parquet

NAMES = ["cat", "dog", "ice_cream"]


def config(source: object, **changes) -> DataConfig:
    values = {"resolution": 8, "channels": 3, "caption": "A {class_name}"}
    return DataConfig(**{"source": str(source), **values, **changes})


def eights(count: int, start: int = 0) -> list[np.ndarray]:
    return [noise(start + index, (8, 8, 3)) for index in range(count)]


@pytest.fixture
def hub_layout(tmp_path: Path) -> tuple[Path, list[np.ndarray]]:
    """Train in two shards, test in one; `img` and `label` with class names."""
    pixels = eights(30)
    images = [encoded(array) for array in pixels]
    labels = [index % 3 for index in range(30)]
    for start, stop, name in (
        (0, 12, "train-00000-of-00002"),
        (12, 24, "train-00001-of-00002"),
        (24, 30, "test-00000-of-00001"),
    ):
        file = tmp_path / "plain_text" / f"{name}.parquet"
        write_parquet(file, images[start:stop], labels[start:stop], image="img", names=NAMES)
    return tmp_path, pixels


# What is read -------------------------------------------------------------------------------------


def test_parquet_gives_each_split_its_images_labels_and_captions(hub_layout) -> None:
    folder, pixels = hub_layout
    train, test = (load_records(config(folder), split) for split in ("train", "test"))
    assert (len(train), len(test)) == (24, 6)
    expected = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    assert torch.equal(torch.cat([train.images, test.images]), expected)
    assert train.labels.tolist() == [index % 3 for index in range(24)]
    assert list(train.class_names) == NAMES
    assert list(train.captions) == ["A cat", "A dog", "A ice_cream"]
    # The classifier learns from the training images; nothing of the test part is in them.
    assert torch.equal(load_records(config(folder), "classifier").images, train.images)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_datasets_reads_the_same(shared_data: Path, name: str) -> None:
    """`datasets.load_dataset` of the same folder: the same images, labels and names, in order."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    (folder,) = (path for path in (shared_data / name).iterdir() if path.is_dir())
    files = {"test": str(folder / "test-*.parquet")}
    theirs = datasets.load_dataset("parquet", data_files=files, split="test", streaming=True)
    ours = load_records(resolve(DataConfig(source=str(folder))), "test")
    column = "image" if "image" in theirs.features else "img"
    assert list(ours.class_names) == theirs.features["label"].names
    count = 0
    for row, image, label in zip(theirs, ours.images, ours.labels.tolist(), strict=True):
        pixels = np.asarray(row[column])
        assert np.array_equal(
            pixels if pixels.ndim == 2 else pixels.transpose(2, 0, 1),
            image[0] if pixels.ndim == 2 else image,
        )
        assert row["label"] == label
        count += 1
    assert count == len(ours)


@pytest.mark.slow
def test_mnist_is_read_fast(shared_data: Path) -> None:
    """60,000 PNGs from Parquet to pixels, labels and captions: the bar is 15,000 images/s on two
    cores; here a third of it, for the machine may be busy. `sfumato data show` prints it too."""
    settings = DataConfig(
        source=str(shared_data / "mnist"), resolution=28, channels=1, caption="{label}"
    )
    seconds = []
    for attempt in range(2):
        started = time.perf_counter()
        records = load_records(settings.model_copy(update={"split_seed": attempt}), "train")
        seconds.append(time.perf_counter() - started)
        assert records.images.shape == (60_000, 1, 28, 28)
    print(f"{60_000 / min(seconds):,.0f} images/s")
    assert 60_000 / min(seconds) >= 5_000


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_gives_what_was_written(tmp_path: Path, suffix: str) -> None:
    pixels, labels = noise(0, (50, 8, 8)), np.arange(50, dtype=np.uint8) % 10
    for name, part in (("train", slice(0, 40)), ("t10k", slice(40, 50))):
        write_idx(tmp_path / f"{name}-images-idx3-ubyte{suffix}", pixels[part])
        write_idx(tmp_path / f"{name}-labels-idx1-ubyte{suffix}", labels[part])
    train, test = (load_records(config(tmp_path, channels=1), s) for s in ("train", "test"))
    assert np.array_equal(torch.cat([train.images, test.images])[:, 0], pixels)
    assert torch.cat([train.labels, test.labels]).tolist() == labels.tolist()
    assert list(train.class_names) == [str(digit) for digit in range(10)]


def test_without_a_test_part_a_share_is_held_out(tmp_path: Path) -> None:
    pixels = eights(50)
    write_parquet(tmp_path / "images.parquet", [encoded(a) for a in pixels], [0, 1] * 25)
    train, test = (load_records(config(tmp_path), split) for split in ("train", "test"))
    assert (len(train), len(test)) == (45, 5)
    together = [bytes(image.numpy()) for image in torch.cat([train.images, test.images])]
    assert sorted(together) == sorted(bytes(a.transpose(2, 0, 1).copy()) for a in pixels)
    other = load_records(config(tmp_path, split_seed=1), "test")
    assert not torch.equal(other.images, test.images)
    assert "split seed 0" in test.description


def test_own_captions_and_templates_mix(tmp_path: Path) -> None:
    write_parquet(
        tmp_path / "a.parquet",
        [encoded(a) for a in eights(4)],
        [0, 1, 0, 1],
        names=["cat", "dog"],
        text=["first", "second  one", "first", "{third}"],
    )
    found = survey(DataConfig(source=str(tmp_path)))
    assert found.captions == "column 'text'"
    assert resolve(DataConfig(source=str(tmp_path)), found).caption == ("{caption}",)
    settings = config(tmp_path, caption=["{caption}", "a {class_name}: {caption}"], test_share=0.3)
    records = load_records(settings, "train")
    shown = {tuple(records.captions[int(row)] for row in rows) for rows in records.prompts}
    everything = {
        ("first", "a cat: first"),
        ("second one", "a dog: second one"),
        ("{third}", "a dog: {third}"),
    }
    assert shown <= everything
    assert len(shown) >= 2


def test_several_label_columns_are_a_question(tmp_path: Path, refused) -> None:
    """As in huggan/wikiart: artist, genre and style are all class labels."""
    images = [encoded(a) for a in eights(4)]
    classes = {"artist": ["a", "b", "c"], "style": ["rococo", "pop"]}
    write_parquet(
        tmp_path / "a.parquet", images, classes=classes, artist=[0, 1, 2, 0], style=[1, 0, 1, 0]
    )
    with refused(InputError):
        open_images(config(tmp_path))
    chosen = open_images(config(tmp_path, label_column="style"))
    assert list(chosen.class_names) == ["rococo", "pop"]
    assert open_images(config(tmp_path, label_column="none")).class_names == []
    with refused(InputError):
        open_images(config(tmp_path, label_column="stile"))


def test_other_columns_are_neither_labels_nor_captions(tmp_path: Path, refused) -> None:
    images = [encoded(a) for a in eights(4)]
    size = {"width": [8] * 4, "id": [0, 1, 2, 3]}
    write_parquet(tmp_path / "a.parquet", images, **size, url=["x"] * 4, licence=["y"] * 4)
    raw = open_images(config(tmp_path))
    assert (raw.class_names, raw.captions) == ([], "")
    with refused(InputError):
        resolve(DataConfig(source=str(tmp_path)))


def test_labels_may_be_text(tmp_path: Path) -> None:
    images = [encoded(a) for a in eights(4)]
    write_parquet(tmp_path / "a.parquet", images, ["dog", "cat", "dog", "cat"])
    records = load_records(config(tmp_path), "train")
    assert list(records.class_names) == ["cat", "dog"]


def test_identity_changes_with_the_data_and_not_with_the_path(tmp_path: Path) -> None:
    images = [encoded(a) for a in eights(4)]
    for place in ("one", "two"):
        write_parquet(tmp_path / place / "birds" / "a.parquet", images, [0, 1, 0, 1])
    first, second = (config(tmp_path / place / "birds") for place in ("one", "two"))
    assert source_identity(first) == source_identity(second)
    assert source_identity(first).startswith("birds-")
    write_parquet(tmp_path / "two" / "birds" / "a.parquet", images[:3], [0, 1, 0])
    assert source_identity(first) != source_identity(second)


# What is damaged ----------------------------------------------------------------------------------


def test_damaged_rows_are_listed_and_skipped_up_to_a_share(tmp_path: Path, refused) -> None:
    good = [encoded(a) for a in eights(8)]
    images = [*good, None, b"no image", bomb(), good[0][:60], good[1], good[2]]
    labels = [0, 1, 2, 0, 1, 2, 0, 1, 0, 0, 0, 0, 7, None]
    write_parquet(tmp_path / "train-0.parquet", images, labels, names=NAMES)
    write_parquet(tmp_path / "test-0.parquet", good, [0] * 8, names=NAMES)
    with refused(DamagedDataError, theirs=r"(?<=decoded \().*(?=\))") as caught:
        load_records(config(tmp_path), "train")
    assert caught.value.exit_code == 3
    records = load_records(config(tmp_path, max_damaged=0.5), "train")
    assert records.labels.tolist() == labels[:8]
    assert [item.number for item in records.damage] == [8, 9, 10, 11, 12, 13]
    assert "6 damaged rows skipped" in records.description


def test_a_damaged_page_loses_its_rows_only(tmp_path: Path) -> None:
    """A flipped byte inside a row group: the rows of the other groups are there."""
    images = [encoded(noise(index, (32, 32, 3))) for index in range(40)]
    file = write_parquet(tmp_path / "train.parquet", images, [0, 1] * 20, row_group_size=10)
    write_parquet(tmp_path / "test.parquet", images[:2], [0, 1])
    import pyarrow.parquet as pq

    column = pq.ParquetFile(file).metadata.row_group(2).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    content = bytearray(file.read_bytes())
    content[start : start + 16] = b"\xff" * 16
    file.write_bytes(content)
    records = load_records(config(tmp_path, max_damaged=0.3, resolution=32), "train")
    assert len(records) == 30
    expected = np.stack(
        [np.asarray(Image.open(io.BytesIO(images[i]))) for i in (*range(20), *range(30, 40))]
    )
    assert np.array_equal(records.images.permute(0, 2, 3, 1), expected)
    (line,) = list_damage(records.damage)
    assert line.startswith("train.parquet, rows 20-29: the file cannot be read here (")


def test_a_truncated_parquet_file_ends_with_its_name(hub_layout, refused) -> None:
    folder, _ = hub_layout
    file = folder / "plain_text" / "train-00001-of-00002.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    with refused(DamagedDataError, theirs=IN_BRACKETS):
        load_records(config(folder), "train")


def test_a_missing_shard_is_not_taken_for_whole(hub_layout, refused) -> None:
    folder, _ = hub_layout
    (folder / "plain_text" / "train-00000-of-00002.parquet").unlink()
    with refused(DamagedDataError):
        load_records(config(folder), "train")


def test_a_git_lfs_pointer_is_named(tmp_path: Path, refused) -> None:
    (tmp_path / "a.parquet").write_text("version https://git-lfs.github.com/spec/v1\nsize 5\n")
    with refused(DamagedDataError):
        open_images(config(tmp_path))


def test_two_data_sets_in_a_folder_are_a_question(hub_layout, refused) -> None:
    folder, _ = hub_layout
    write_parquet(folder / "other" / "train.parquet", [encoded(eights(1)[0])], [0])
    with refused(InputError):
        open_images(config(folder))


def test_other_images_under_the_same_names_and_sizes(tmp_path: Path) -> None:
    """As of MNIST and Fashion-MNIST: what is kept for the one is not used for the other."""
    found = []
    for number, folder in enumerate((tmp_path / "a" / "raw", tmp_path / "b" / "raw")):
        for part in ("train", "t10k"):
            write_idx(folder / f"{part}-images-idx3-ubyte", noise(number, (6, 8, 8)))
            write_idx(folder / f"{part}-labels-idx1-ubyte", np.arange(6, dtype=np.uint8) % 2)
        found.append(source_identity(DataConfig(source=str(folder))))
    assert found[0] != found[1]
    labels = tmp_path / "a" / "raw" / "t10k-labels-idx1-ubyte"
    write_idx(labels, 1 - np.arange(6, dtype=np.uint8) % 2)
    assert source_identity(DataConfig(source=str(tmp_path / "a" / "raw"))) not in found


def test_identities_are_those_of_the_column(tmp_path: Path) -> None:
    before, after = ([encoded(noise(seed + add, (8, 8, 3))) for seed in range(4)] for add in (0, 9))
    edited = [{"bytes": data, "path": None} for data in after]
    write_parquet(tmp_path / "a.parquet", before, image="before", after=edited)
    known = [
        identities(open_images(DataConfig(source=str(tmp_path), image_column=name)), "all")[:, 0]
        for name in ("before", "after")
    ]
    assert not set(known[0].tolist()) & set(known[1].tolist())


def test_idx_counts_that_disagree(tmp_path: Path, refused) -> None:
    write_idx(tmp_path / "train-images-idx3-ubyte", noise(0, (5, 8, 8)))
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(4, np.uint8))
    with refused(DamagedDataError):
        open_images(config(tmp_path))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_cut_short(tmp_path: Path, suffix: str, refused) -> None:
    images = write_idx(tmp_path / f"train-images-idx3-ubyte{suffix}", noise(0, (20, 8, 8)))
    write_idx(tmp_path / f"train-labels-idx1-ubyte{suffix}", np.zeros(20, np.uint8))
    images.write_bytes(images.read_bytes()[:-40])
    with refused(DamagedDataError, theirs=IN_BRACKETS):
        load_records(config(tmp_path), "train")


def test_an_idx_label_just_above_the_classes_makes_no_class(tmp_path: Path) -> None:
    """10 in the training labels of MNIST: the test labels end at 9."""
    labels = {"train": np.arange(200, dtype=np.uint8) % 10, "t10k": np.arange(20) % 10}
    labels["train"][7] = 10
    for name, values in labels.items():
        write_idx(tmp_path / f"{name}-images-idx3-ubyte", noise(0, (len(values), 8, 8)))
        write_idx(tmp_path / f"{name}-labels-idx1-ubyte", values.astype(np.uint8))
    config = DataConfig(source=str(tmp_path), resolution=8, channels=1, caption="digit {label}")
    records = load_records(config, "train")
    assert len(records.class_names) == 10
    (damaged,) = records.damage
    assert (damaged.number, damaged.reason) == (7, "label 10 is outside the 10 classes")


def test_idx_without_its_labels_or_of_another_kind(tmp_path: Path, refused) -> None:
    write_idx(tmp_path / "train-images-idx3-ubyte", noise(0, (5, 8, 8)))
    with refused(InputError):
        open_images(config(tmp_path))
    write_idx(tmp_path / "train-labels-idx1-ubyte", noise(0, (5, 8)))
    with refused(DamagedDataError):
        open_images(config(tmp_path))


def test_a_label_far_outside_is_damage_not_a_class(tmp_path: Path, refused) -> None:
    labels = np.array([0, 1, 2, 200] + [0, 1, 2] * 40, np.uint8)
    for name, values in (("train", labels[:20]), ("t10k", labels[4:])):
        write_idx(tmp_path / f"{name}-images-idx3-ubyte", noise(0, (len(values), 8, 8)))
        write_idx(tmp_path / f"{name}-labels-idx1-ubyte", values)
    with refused(DamagedDataError):
        load_records(config(tmp_path), "train")


@pytest.mark.parametrize("names", [NAMES])
@pytest.mark.parametrize("label", [-1, 7])
def test_a_label_outside_the_classes_is_named(tmp_path: Path, names, label: int, refused) -> None:
    labels = [0, 1, 2, 0, label, 1]
    write_parquet(tmp_path / "train.parquet", [encoded(a) for a in eights(6)], labels, names=names)
    write_parquet(tmp_path / "test.parquet", [encoded(eights(1)[0])], [0], names=names)
    with refused(DamagedDataError):
        load_records(config(tmp_path), "train")
    records = load_records(config(tmp_path, max_damaged=0.5), "train")
    assert records.labels.tolist() == [0, 1, 2, 0, 1]


def test_images_of_another_size_are_resized_and_counted(tmp_path: Path) -> None:
    """As one of 20x20 among MNIST's: it is used, and the description says so."""
    pixels = [noise(index, (28, 28)) for index in range(10)]
    images = [encoded(array) for array in (*pixels[:4], noise(20, (20, 20)), *pixels[5:])]
    write_parquet(tmp_path / "odd" / "train.parquet", images, [0, 1] * 5)
    write_parquet(tmp_path / "odd" / "test.parquet", images[:4], [0, 1] * 2)
    settings = config(tmp_path / "odd", resolution=28, channels=1)
    train, test = (load_records(settings, split) for split in ("train", "test"))
    assert (len(train), train.resized, test.resized) == (10, 1, 0)
    assert "PNG 20x20 to 28x28, 1 of them centre-cropped and brought to 28x28" in train.description
    assert test.description.endswith("PNG 28x28")
    assert np.array_equal(train.images[5, 0], pixels[5])  # those of the right size stay
    for name, side in (("train", 28), ("t10k", 20)):
        write_idx(tmp_path / "idx" / f"{name}-images-idx3-ubyte", noise(0, (4, side, side)))
        write_idx(tmp_path / "idx" / f"{name}-labels-idx1-ubyte", np.arange(4, dtype=np.uint8) % 2)
    test = load_records(config(tmp_path / "idx", resolution=28, channels=1), "test")
    assert "20x20 brought to 28x28" in test.description


def test_an_empty_folder_and_one_without_images(tmp_path: Path, refused) -> None:
    with refused(InputError):
        open_images(config(tmp_path))
    (tmp_path / "notes.md").write_text("no images")
    with refused(InputError):
        open_images(config(tmp_path))
    with refused(InputError):
        open_images(config(tmp_path / "nowhere"))
    with refused(InputError):
        open_images(config(tmp_path / "notes.md"))


def test_damage_is_listed_in_stretches() -> None:
    damage = [Damage("a", number, "x") for number in (1, 2, 3, 7)] + [Damage("b.png", None, "y")]
    assert list_damage(damage) == ["a, rows 1-3: x", "a, row 7: x", "b.png: y"]
    assert list_damage(damage, most=1) == ["a, rows 1-3: x", "and 2 more"]
