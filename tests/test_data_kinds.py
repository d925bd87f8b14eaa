"""Parts, labels, links, formats and captions as data sets on people's disks have them: nothing is
misread or left out without a line."""

import io
import json
import os
import struct
import unicodedata
import zlib
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, PngImagePlugin

from sfumato.base.errors import ConfigError, DataWarning, InputError
from sfumato.config.sections import DataConfig
from sfumato.data.decode import Target, decode
from sfumato.data.files import find_images, walk
from sfumato.data.identifiers import kind_of_identifiers
from sfumato.data.loading import DeviceBatches
from sfumato.data.opening import open_images
from sfumato.data.prepare import prepare
from sfumato.data.records import Records, load_records
from sfumato.data.streaming.stream import StreamBatches, open_stream
from sfumato.data.survey import resolve
from sfumato.evaluation.image_files import read_folder
from tests.pictures import encoded, noise, write_idx, write_image, write_parquet

CPU = torch.device("cpu")


def config(source: Path, **changes) -> DataConfig:
    values = {"resolution": 8, "channels": 3, "caption": "A {class_name}"}
    return DataConfig(**{"source": str(source), **values, **changes})


def picture(seed: int) -> bytes:
    return encoded(noise(seed, (8, 8, 3)))


def pictures(count: int, start: int = 0) -> list[bytes]:
    return [picture(start + index) for index in range(count)]


def shown_pixels(records: Records) -> set[bytes]:
    return {bytes(image.numpy()) for image in records.images}


def pixels(seeds: Sequence[int]) -> set[bytes]:
    return {noise(seed, (8, 8, 3)).transpose(2, 0, 1).tobytes() for seed in seeds}


def notes(settings: DataConfig) -> list[str]:
    """The lines on what of a source is not used."""
    return list(open_images(settings).notes)


def counts(settings: DataConfig) -> dict[str, int]:
    return {name: part.count for name, part in open_images(settings).parts.items()}


# Parts --------------------------------------------------------------------------------------------


def write_folders(
    root: Path, parts: dict[str, Sequence[int]], place: str = "{part}/{name}"
) -> None:
    """Images with these seeds, in turn of the classes cat and dog, in each part."""
    for part, seeds in parts.items():
        for seed in seeds:
            folder = root / place.format(part=part, name=("cat", "dog")[seed % 2])
            write_image(folder / f"{seed}.png", noise(seed, (8, 8, 3)))


@pytest.mark.parametrize(
    ("place", "stray"),
    [
        ("{part}/{name}", "stray.png"),
        ("{name}/{part}", "cat/stray.png"),
        ("data/{part}/{name}", "data/stray.png"),
        ("{part}2017/{name}", "other/more/stray.png"),
        ("set_{part}/{name}/deeper", "README/stray.png"),
    ],
)
def test_a_stray_image_makes_no_class_of_a_split(tmp_path: Path, place: str, stray: str) -> None:
    write_folders(tmp_path, {"train": range(12), "test": range(12, 18)}, place)
    write_image(tmp_path / stray, noise(99, (8, 8, 3)))
    settings = config(tmp_path)
    (line,) = notes(settings)
    assert "train 12, test 6" in line
    assert " 1" in line.split("left out")[1]
    assert list(open_images(settings).class_names) == ["cat", "dog"]
    train, test = (load_records(settings, split) for split in ("train", "test"))
    assert shown_pixels(train) == pixels(range(12))
    assert shown_pixels(test) == pixels(range(12, 18))
    assert sorted(train.labels.tolist()) == [0] * 6 + [1] * 6


def test_what_is_left_out_is_a_warning(tmp_path: Path) -> None:
    write_folders(tmp_path, {"train": range(12), "test": range(12, 18)})
    write_image(tmp_path / "stray.png", noise(99, (8, 8, 3)))
    with pytest.warns(DataWarning) as caught:
        load_records(resolve(config(tmp_path, resolution="auto")), "train")
    assert [str(one.message) for one in caught] == notes(config(tmp_path))


def test_a_class_called_train_is_a_class(tmp_path: Path) -> None:
    for seed, name in enumerate(["train", "bicycle", "bullet_train", "test tube"] * 3):
        write_image(tmp_path / name / f"{seed}.png", noise(seed, (8, 8, 3)))
    raw = open_images(config(tmp_path))
    assert list(raw.class_names) == ["bicycle", "bullet_train", "test tube", "train"]
    assert list(raw.parts) == ["all"]


def test_a_test_folder_beside_class_folders_is_held_out(tmp_path: Path) -> None:
    write_folders(tmp_path, {"": range(8)}, "{name}")
    write_folders(tmp_path, {"test": range(8, 12)})
    settings = config(tmp_path)
    assert counts(settings) == {"train": 8, "test": 4}
    assert shown_pixels(load_records(settings, "test")) == pixels(range(8, 12))


Writer = Callable[[Path, dict[str, Sequence[int]]], None]


def write_shards(root: Path, parts: dict[str, Sequence[int]]) -> None:
    for part, seeds in parts.items():
        file = root / f"{part}-00000-of-00001.parquet"
        write_parquet(file, [picture(seed) for seed in seeds], [seed % 2 for seed in seeds])


def write_idx_pairs(root: Path, parts: dict[str, Sequence[int]]) -> None:
    for part, seeds in parts.items():
        images = np.stack([noise(seed, (8, 8, 3))[..., 0] for seed in seeds])
        write_idx(root / f"{part}-images-idx3-ubyte", images)
        write_idx(root / f"{part}-labels-idx1-ubyte", np.array(seeds, np.uint8) % 2)


WRITERS = pytest.mark.parametrize("write", [write_folders, write_shards, write_idx_pairs])


@WRITERS
def test_a_third_part_is_left_out_of_train_and_test(tmp_path: Path, write: Writer) -> None:
    """As in SVHN: train, test and extra."""
    write(tmp_path, {"train": range(20), "test": range(20, 30), "extra": range(30, 60)})
    settings = config(tmp_path)
    (line,) = notes(settings)
    assert "train 20, test 10; left out: extra 30" in line
    assert "data.also_train=extra" in line
    assert counts(settings) == {"train": 20, "test": 10}
    assert counts(config(tmp_path, also_train="extra")) == {"train": 50, "test": 10}
    with pytest.raises(ConfigError):
        open_images(config(tmp_path, also_train="more"))
    with pytest.raises(ConfigError):
        open_images(config(tmp_path, also_train="test"))


@WRITERS
def test_validation_is_a_part_of_its_own(tmp_path: Path, write: Writer) -> None:
    write(tmp_path, {"train": range(8), "val": range(8, 14), "test": range(14, 18)})
    settings = config(tmp_path)
    assert counts(settings) == {"train": 8, "test": 4, "validation": 6}
    (line,) = notes(settings)
    assert "train 8, test 4; validation 6, neither trained on nor tested on" in line
    assert counts(config(tmp_path, also_train="validation")) == {"train": 14, "test": 4}


@WRITERS
def test_validation_is_held_out_without_a_test_part(tmp_path: Path, write: Writer) -> None:
    write(tmp_path, {"train": range(8), "dev": range(8, 14)})
    assert counts(config(tmp_path)) == {"train": 8, "test": 6}
    assert notes(config(tmp_path)) == []


@WRITERS
def test_without_a_part_to_train_on(tmp_path: Path, write: Writer) -> None:
    write(tmp_path / "a", {"test": range(4), "valid": range(4, 8)})
    with pytest.raises(InputError):
        open_images(config(tmp_path / "a"))
    write(tmp_path / "b", {"test": range(4)})
    (line,) = notes(config(tmp_path / "b"))
    assert "only part is test" in line


def test_prepared_data_keep_their_parts(tmp_path: Path) -> None:
    write_shards(
        tmp_path / "source",
        {
            "train": range(8),
            "test": range(8, 12),
            "validation": range(12, 15),
            "extra": range(20, 25),
        },
    )
    prepare(config(tmp_path / "source"), tmp_path / "plain")
    assert counts(config(tmp_path / "plain")) == {"train": 8, "test": 4, "validation": 3}
    prepare(config(tmp_path / "source", also_train="extra"), tmp_path / "more")
    train = load_records(config(tmp_path / "more"), "train")
    assert shown_pixels(train) == pixels([*range(8), *range(20, 25)])
    with pytest.raises(ConfigError):
        open_images(config(tmp_path / "plain", also_train="extra"))
    with pytest.raises(InputError):  # begun with other parts
        prepare(config(tmp_path / "source", also_train="extra"), tmp_path / "plain")


# Labels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([1, 2, 3], ["1", "2", "3"]),
        ([2, 3], ["2", "3"]),
        ([0, 5, 10, 700], ["0", "5", "10", "700"]),
        ([-1, 1], ["-1", "1"]),
        ([1.0, 2.0], ["1", "2"]),
        ([0.5, 1.0, 10.0], ["0.5", "1", "10"]),
        ([False, True], ["False", "True"]),
        ([Decimal("1.00"), Decimal("2.50")], ["1", "2.50"]),
        (["pear", "apple"], ["apple", "pear"]),
    ],
    ids=str,
)
def test_the_values_that_occur_are_the_classes(tmp_path: Path, values: list, names: list) -> None:
    labels = [values[index % len(values)] for index in range(24)]
    write_parquet(tmp_path / "a.parquet", pictures(24), labels)
    records = load_records(config(tmp_path), "train")
    assert list(records.class_names) == names
    everything = [*records.labels, *load_records(config(tmp_path), "test").labels]
    assert sorted({int(label) for label in everything}) == list(range(len(names)))
    assert list(records.captions) == [f"A {name}" for name in names]


def test_whole_numbers_are_their_own_label_in_captions(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", pictures(12), [1, 2, 3] * 4)
    assert list(load_records(config(tmp_path, caption="no. {label}"), "train").captions) == [
        "no. 1",
        "no. 2",
        "no. 3",
    ]


def test_idx_labels_from_1(tmp_path: Path) -> None:
    """As in EMNIST's letters."""
    write_idx(tmp_path / "letters-images-idx3-ubyte", noise(0, (26, 8, 8)))
    write_idx(tmp_path / "letters-labels-idx1-ubyte", np.arange(1, 27, dtype=np.uint8))
    records = load_records(config(tmp_path, channels=1), "train")
    assert list(records.class_names) == [str(number) for number in range(1, 27)]


@pytest.mark.parametrize("kind", [pa.dictionary(pa.int8(), pa.string()), pa.string_view()])
def test_labels_of_other_types(tmp_path: Path, kind: pa.DataType) -> None:
    labels = pa.array(["dog", "cat"] * 5, pa.string()).cast(kind)
    pq.write_table(pa.table({"image": pictures(10), "label": labels}), tmp_path / "a.parquet")
    settings = config(tmp_path)
    assert list(open_images(settings).class_names) == ["cat", "dog"]
    assert len(load_records(settings, "train")) + len(load_records(settings, "test")) == 10


def test_a_column_of_measurements_makes_no_classes(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", pictures(30), [index / 7 for index in range(30)])
    assert open_images(config(tmp_path)).class_names == []
    (line,) = notes(config(tmp_path))
    assert "'label' has 30 values in 30 rows" in line
    assert len(open_images(config(tmp_path, label_column="label")).class_names) == 30


# Links and names ----------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [False, True])
def test_linked_class_folders_are_entered_once(tmp_path: Path, more: bool) -> None:
    photos, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    for seed in range(6):
        write_image(photos / "cat" / f"{seed}.png", noise(seed, (8, 8, 3)))
        write_image(elsewhere / "dog" / f"{seed}.png", noise(seed + 10, (8, 8, 3)))
    (photos / "dog").symlink_to(elsewhere / "dog", target_is_directory=True)
    if more:
        (photos / "a-cycle").symlink_to(photos, target_is_directory=True)
        (photos / "cat" / "up").symlink_to(tmp_path, target_is_directory=True)
        (photos / "again").symlink_to(photos / "cat", target_is_directory=True)
        (photos / "dog2").symlink_to(elsewhere / "dog", target_is_directory=True)
        (photos / "gone.png").symlink_to(tmp_path / "nowhere.png")
    raw = open_images(config(photos))
    assert list(raw.class_names) == ["cat", "dog"]
    assert raw.count == 12
    if more:
        assert raw.notes[0].startswith("4 links, the first is ")
        assert "gone.png leads nowhere" in raw.notes[1]
    assert len(raw.notes) == 2 * more


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    for seed in range(6):
        folder = os.fsencode(tmp_path) + (b"/caf\xe9" if seed % 2 else b"/cat")
        os.makedirs(folder, exist_ok=True)
        with open(folder + b"/%d\xff.png" % seed, "wb") as file:
            file.write(picture(seed))
    settings = config(tmp_path)
    assert list(open_images(settings).class_names) == ["caf\\xe9", "cat"]
    assert load_records(settings, "train").captions == ["A caf\\xe9", "A cat"]
    prepare(settings, tmp_path.with_name("prepared"))
    assert counts(config(tmp_path.with_name("prepared"))) == {"all": 6}


def test_class_folders_in_two_normal_forms_are_one_class(tmp_path: Path) -> None:
    for seed in range(8):
        form, part = ("NFC", "train") if seed < 4 else ("NFD", "test")
        name = unicodedata.normalize(form, "café")
        write_image(tmp_path / part / name / f"{seed}.png", noise(seed, (8, 8, 3)))
        write_image(tmp_path / part / "tea" / f"{seed}.png", noise(seed + 10, (8, 8, 3)))
    assert list(open_images(config(tmp_path)).class_names) == ["café", "tea"]


@pytest.mark.parametrize("table", ["metadata.jsonl", "metadata.parquet"])
def test_names_in_metadata_find_their_files(tmp_path: Path, table: str) -> None:
    names = [unicodedata.normalize("NFD", f"Á{index}.png") for index in range(6)]
    for index, name in enumerate(names):
        write_image(tmp_path / "img" / name, noise(index, (8, 8, 3)))
    rows = [
        {"file_name": f"img\\Á{index}.png", "text": f"no. {index}" + " thing" * index}
        for index in range(6)
    ]
    if table.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / table)
    else:
        (tmp_path / table).write_text("\n".join(map(json.dumps, rows)), "utf-8")
    settings = config(tmp_path, caption="{caption}")
    assert counts(settings) == {"all": 6}
    found = [load_records(settings, split) for split in ("train", "test")]
    captions = {
        bytes(image.numpy()): records.captions[int(row[0])]
        for records in found
        for image, row in zip(records.images, records.prompts, strict=True)
    }
    assert captions == {
        noise(index, (8, 8, 3)).transpose(2, 0, 1).tobytes(): row["text"]
        for index, row in enumerate(rows)
    }


# Formats ------------------------------------------------------------------------------------------


def test_every_suffix_and_none(tmp_path: Path) -> None:
    array = noise(0, (8, 8, 3))
    kinds = {
        "a.jfif": "JPEG",
        "b.jpe": "JPEG",
        "c.JPEG": "JPEG",
        "d": "PNG",
        "e.jpg_large": "JPEG",
        "f": "WEBP",
        "g.avif": "AVIF",
        "h": "AVIF",
        "i.dib": "BMP",
        "j": "TIFF",
        "k": "GIF",
        "l.pnm": "PPM",
        "m": "BMP",
        "n.apng": "PNG",
        "o": "PPM",
        "p.tiff": "TIFF",
    }
    for name, kind in kinds.items():
        (tmp_path / "cat").mkdir(exist_ok=True)
        (tmp_path / "cat" / name).write_bytes(encoded(array, kind))
    (tmp_path / "cat" / "notes").write_text("BMW and other cars; Photos of them")
    (tmp_path / "cat" / "Makefile").write_text("P: all")
    settings = config(tmp_path, max_damaged=0)
    assert counts(settings) == {"all": len(kinds)}
    assert notes(config(tmp_path)) == []
    found = [load_records(settings, split) for split in ("train", "test")]
    assert sum(map(len, found)) == len(kinds)


def heic() -> bytes:
    return struct.pack(">I", 24) + b"ftypheic" + bytes(4) + b"mif1heic" + bytes(100)


def test_formats_that_are_not_read_are_counted(tmp_path: Path) -> None:
    for index in range(4):
        write_image(tmp_path / "cat" / f"{index}.png", noise(index, (8, 8, 3)))
    for name in ("a.heic", "b.HEIF", "c"):
        (tmp_path / "cat" / name).write_bytes(heic())
    (tmp_path / "cat" / "d.jxl").write_bytes(b"\xff\x0a")
    (line,) = notes(config(tmp_path))
    assert "4 images are left out (3 HEIC, 1 JPEG XL)" in line
    assert counts(config(tmp_path)) == {"all": 4}
    for file in (tmp_path / "cat").glob("*.png"):
        file.unlink()
    with pytest.raises(InputError) as caught:
        open_images(config(tmp_path))
    assert "4 images are left out (3 HEIC, 1 JPEG XL)" in caught.value.hint


def test_a_format_behind_another_suffix_is_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [*pictures(9), heic()], [0, 1] * 5)
    found = [load_records(config(tmp_path, max_damaged=0.9), s) for s in ("train", "test")]
    reasons = [item.reason for records in found for item in records.damage]
    assert reasons == ["HEIC, which is not read here"]


def text_chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("in_file", [True, False])
def test_a_png_with_much_text_is_an_image(tmp_path: Path, place: str, in_file: bool) -> None:
    """Pillow refuses more than 1 MB in one compressed chunk."""
    array = noise(1, (8, 8, 3))
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 2_000_000, zip=True)
    content = encoded(array, pnginfo=info)
    if place == "after":
        chunk = text_chunk(b"zTXt", b"comment\0\0" + zlib.compress(b"x" * 2_000_000))
        content = encoded(array)[:-12] + chunk + encoded(array)[-12:]
    with pytest.raises(ValueError), Image.open(io.BytesIO(content)) as opened:  # noqa: PT011 (of Pillow)
        opened.load()
    if in_file:
        for index in range(2):
            file = tmp_path / "cat" / f"{index}.png"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(content)
    else:
        write_parquet(tmp_path / "a.parquet", [content] * 2, [0, 0])
    settings = resolve(config(tmp_path, resolution="auto", max_damaged=0, test_share=0))
    train = load_records(settings, "train")
    assert len(train) == 2
    assert np.array_equal(train.images[0].numpy(), array.transpose(2, 0, 1))


def test_walk_is_sorted_and_leaves_out_what_is_hidden(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/1.png", "a.png", ".hidden/3.png", "b/.4.png", "b-c/5.png"):
        write_image(tmp_path / name, noise(0, (8, 8)))
    files = walk(tmp_path).files
    names = [file.relative_to(tmp_path).as_posix() for file in files]
    assert sorted(names) == ["a.png", "b-c/5.png", "b/1.png", "b/2.png"]
    assert list(files) == sorted(files)
    assert len(find_images(files).images) == 4


# Captions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["/home/a/b c.jpg", "x/y.png"], "paths"),
        (["C:\\data\\1.png"], "paths"),
        (["https://example.org/1", "http://example.org/2?x=a b"[:-2]], "URLs"),
        (["a.png", "b c.JPG"], "file names"),
        (["0cc175b9c0f1b6a831c399e269772661"], "hashes"),
        (["550e8400-e29b-41d4-a716-446655440000"], "ids"),
        (["1", "2", "3"], "ids"),
        (["img_001", "img_002"], "ids"),
        (["0 0.5 0.5 0.1 0.2\n1 0.1 0.2 0.3 0.4"], "numbers"),
        (["a cat", "a dog on/off switch"], ""),
        (["7", "7", "2"], ""),
        (["Mr. Smith", "red/blue", "1girl, solo"], ""),
        (["a photo of a cat/dog hybrid."], ""),
        ([None, ""], ""),
    ],
    ids=str,
)
def test_text_that_names_a_row_is_recognised(values: list, kind: str) -> None:
    assert kind_of_identifiers(values) == kind


@pytest.mark.parametrize("name", ["image_file_path", "text"])
def test_a_column_of_paths_is_no_caption(tmp_path: Path, name: str) -> None:
    columns = {name: [f"/data/train/{index}.jpg" for index in range(12)]}
    write_parquet(tmp_path / "a.parquet", pictures(12), [0, 1] * 6, names=["cat", "dog"], **columns)
    settings = resolve(DataConfig(source=str(tmp_path)))
    assert settings.caption == ("A photo of a {class_name}",)
    (line,) = notes(config(tmp_path))
    assert f"Column '{name}' holds paths" in line
    chosen = open_images(config(tmp_path, caption_column=name))
    assert chosen.captions == f"column '{name}'"


def test_text_files_of_boxes_are_no_captions(tmp_path: Path) -> None:
    for index in range(8):
        folder = tmp_path / ("cat", "dog")[index % 2]
        write_image(folder / f"{index}.png", noise(index, (8, 8, 3)), "0 0.5 0.5 0.25 0.25\n")
    raw = open_images(config(tmp_path))
    assert (list(raw.class_names), raw.captions) == (["cat", "dog"], "")
    (line,) = notes(config(tmp_path))
    assert "hold numbers" in line


def write_several(root: Path, kind: str) -> dict[bytes, list[str]]:
    """Six images with one, two or three captions; the captions by the pixels."""
    captions = [[f"image {i}, caption {k}" for k in range(1 + i % 3)] for i in range(6)]
    arrays = [noise(index, (8, 8, 3)) for index in range(6)]
    if kind == "parquet":
        images = [encoded(array) for array in arrays]
        write_parquet(root / "a.parquet", images, captions=captions)
    for index, (array, mine) in enumerate(zip(arrays, captions, strict=True)):
        if kind in (".txt", ".caption"):
            file = write_image(root / f"{index}.png", array)
            file.with_suffix(kind).write_text("\n".join([*mine, ""]), "utf-8")
        elif kind == "jsonl":
            write_image(root / f"{index}.png", array)
            with (root / "metadata.jsonl").open("a") as table:
                table.write(json.dumps({"file_name": f"{index}.png", "text": mine}) + "\n")
    return {a.transpose(2, 0, 1).tobytes(): mine for a, mine in zip(arrays, captions, strict=True)}


@pytest.mark.parametrize("kind", ["parquet", ".txt", ".caption", "jsonl"])
def test_several_captions_of_an_image(tmp_path: Path, kind: str) -> None:
    expected = write_several(tmp_path / "source", kind)
    settings = resolve(config(tmp_path / "source", caption="auto"))
    assert settings.caption == ("{caption}",)
    prepare(settings, tmp_path / "prepared")
    for source in (tmp_path / "source", tmp_path / "prepared"):
        found = {}
        for split in ("train", "test"):
            records = load_records(settings.model_copy(update={"source": str(source)}), split)
            for index, (image, rows) in enumerate(
                zip(records.images[:], records.prompts.tolist(), strict=True)
            ):
                every = [records.captions[row] for row in rows]
                counts = records.caption_counts
                own = every[: int(counts[index])] if counts is not None else every
                assert set(every) == set(own)
                found[bytes(image.numpy())] = own
        assert found == expected


def test_each_of_an_images_captions_is_drawn_as_often(tmp_path: Path) -> None:
    """A function of the images seen, for any number of ranks; from memory as from a stream."""
    write_several(tmp_path, "parquet")
    settings = config(tmp_path, caption="{caption}", test_share=0.2)
    records = load_records(settings, "train")
    size, count = 60, len(records)
    batches = DeviceBatches(records, seed=3, batch_size=size, device=CPU)
    drawn = torch.cat([batches.at(size * step).prompts for step in range(100)])
    often = drawn.bincount(minlength=len(records.captions)).double()
    for image in range(count):
        mine = records.prompts[image].unique()
        expected = size * 100 / count / len(mine)
        assert ((often[mine] - expected).abs() < 5 * expected**0.5).all()
    ranks = [
        DeviceBatches(records, seed=3, batch_size=size, device=CPU, rank=rank, world_size=2)
        for rank in (0, 1)
    ]
    whole = batches.at(7 * size).prompts
    assert torch.equal(torch.stack([one.at(7 * size).prompts for one in ranks], 1).flatten(), whole)
    streamed = open_stream(settings, "train")
    assert torch.equal(streamed.prompts, records.prompts)
    stream = StreamBatches(streamed, seed=3, batch_size=size, device=CPU, workers=0)
    first = stream.at(0)
    of = {
        bytes(image.numpy()): set(r.tolist())
        for image, r in zip(records.images, records.prompts, strict=True)
    }
    for image, prompt in zip(first.images, first.prompts.tolist(), strict=True):
        assert prompt in of[bytes(image.numpy())]


@pytest.mark.parametrize(
    "kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_captions_of_other_types(tmp_path: Path, kind: pa.DataType) -> None:
    texts = pa.array([f"the thing no. {index}" for index in range(10)]).cast(kind)
    pq.write_table(pa.table({"image": pictures(10), "caption": texts}), tmp_path / "a.parquet")
    settings = config(tmp_path, caption="{caption}")
    found = [load_records(settings, split) for split in ("train", "test")]
    assert sorted(c for r in found for c in r.captions) == sorted(map(str, texts.to_pylist()))


@pytest.mark.parametrize(
    "kind",
    [pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int32(), pa.binary())],
)
def test_images_of_other_types(tmp_path: Path, kind: pa.DataType) -> None:
    images = pa.array(pictures(10), pa.binary()).cast(kind)
    table = pa.table({"image": images, "label": [0, 1] * 5})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=4)
    settings = config(tmp_path)
    found = [load_records(settings, split) for split in ("train", "test")]
    assert set.union(*map(shown_pixels, found)) == pixels(range(10))
    batch = StreamBatches(
        open_stream(settings, "train"), seed=0, batch_size=9, device=CPU, workers=0
    ).at(0)
    assert {bytes(image.numpy()) for image in batch.images} == shown_pixels(found[0])


@pytest.mark.parametrize(
    "columns",
    [
        {"image": [[b"x"]] * 4},
        {"image": [{"path": "a.png"}] * 4},
        {"image": ["a.png"] * 4},
        {"pixels": [[[0, 1], [2, 3]]] * 4},
        {"image": [1, 2, 3, 4]},
    ],
    ids=["list", "path only", "text", "nested", "numbers"],
)
def test_columns_that_hold_no_images_are_said(tmp_path: Path, columns: dict) -> None:
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(InputError):
        open_images(config(tmp_path))
    with pytest.raises(InputError):
        open_images(config(tmp_path, image_column=next(iter(columns))))


@pytest.mark.parametrize("role", ["label", "caption"])
def test_a_chosen_column_of_no_use_is_said(tmp_path: Path, role: str) -> None:
    odd = [{"a": [1]}] * 4
    write_parquet(tmp_path / "a.parquet", pictures(4), odd=odd)
    with pytest.raises(InputError):
        open_images(config(tmp_path, **{f"{role}_column": "odd"}))


# Folders to evaluate ------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", ["crop", "squash"])
def test_mixed_sizes_are_evaluated_by_the_rule_of_training(tmp_path: Path, fit: str) -> None:
    write_folders(tmp_path / "real", {"train": range(8), "test": range(8, 20)})
    shapes = [(8, 8, 3), (20, 13, 3), (9, 31), (8, 8, 4), (8, 8, 3)] * 4
    for index, shape in enumerate(shapes):
        write_image(tmp_path / "made" / "cat" / f"{index:02}.png", noise(index, shape))
    (tmp_path / "made" / "cat" / "04.png").rename(tmp_path / "made" / "cat" / "04.jfif")
    (tmp_path / "made" / "cat" / "x.heic").write_bytes(heic())
    settings = config(tmp_path / "real", fit=fit)
    found = read_folder(tmp_path / "made", settings)
    target = Target(resolution=8, channels=3, fit=fit)
    expected = [
        decode(path, target)[0] for path in sorted((tmp_path / "made" / "cat").glob("*.[pj]*"))
    ]
    assert np.array_equal(found.images().numpy(), np.stack(expected))
    how = {"crop": "centre-cropped and brought", "squash": "squashed"}[fit]
    left_out, resized = found.notes
    assert "1 HEIC" in left_out
    assert resized.startswith(f"12 of 20 images had another size or mode: {how} to 8x8")
    assert found.labels is not None
    other = read_folder(tmp_path / "made", config(tmp_path / "real", fit=fit, resolution=16))
    assert other.images([0]).shape == (1, 3, 16, 16)
    assert other.folder != found.folder  # features of other pixels are kept apart


def test_images_of_one_size_are_evaluated_as_they_are(tmp_path: Path) -> None:
    write_folders(tmp_path / "real", {"train": range(8), "test": range(8, 20)})
    for index in range(10):
        write_image(tmp_path / "made" / f"{index}.png", noise(index, (12, 12, 3)))
    found = read_folder(tmp_path / "made", config(tmp_path / "real"))
    assert np.array_equal(found.images([3])[0], noise(3, (12, 12, 3)).transpose(2, 0, 1))
    assert all("size" not in note for note in found.notes)


def test_a_png_with_much_text_is_evaluated(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 2_000_000, zip=True)
    for index in range(10):
        (tmp_path / f"{index}.png").write_bytes(encoded(noise(index, (8, 8, 3)), pnginfo=info))
    found = read_folder(tmp_path, None)
    assert np.array_equal(found.images([3])[0], noise(3, (8, 8, 3)).transpose(2, 0, 1))


@pytest.mark.parametrize(
    "source", ["my-photos", "photos/2024/summer", "./photos", "/nowhere/photos"]
)
def test_a_missing_folder_is_called_one(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises((InputError, ConfigError)) as caught:
        open_images(config(Path("x")).model_copy(update={"source": source}))
    assert "folder" in f"{caught.value.what} {caught.value.hint}"
    assert "Traceback" not in caught.value.what


def test_a_column_of_several_labels_an_image_is_said(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", pictures(4), [[0, 1], [1], [], [0]])
    assert open_images(config(tmp_path)).class_names == []
    assert notes(config(tmp_path)) == [
        "Column 'label' holds lists of whole numbers: it is not used for classes."
    ]
