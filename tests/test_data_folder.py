"""Folders of images: where captions and classes are found, and what is asked about."""

import json
from pathlib import Path

import pytest
import torch

from sfumato.base.errors import ConfigError, DamagedDataError, InputError
from sfumato.config.sections import DataConfig
from sfumato.data.opening import open_images
from sfumato.data.records import load_records
from sfumato.data.survey import resolve, survey
from tests.pictures import noise, write_image


def config(source: Path, **changes) -> DataConfig:
    return DataConfig(**{"source": str(source), "resolution": 8, "channels": 3, **changes})


def captions_of(records) -> list[str]:
    return [records.captions[int(row)] for row in records.prompts[:, 0]]


def both(settings: DataConfig) -> dict[bytes, str]:
    """Caption by image, of train and test together."""
    found = {}
    for split in ("train", "test"):
        records = load_records(settings, split)
        images = [bytes(image.numpy()) for image in records.images]
        found.update(zip(images, captions_of(records), strict=True))
    return found


def chw(array) -> bytes:
    return array.transpose(2, 0, 1).tobytes()


def test_captions_in_text_files(tmp_path: Path) -> None:
    arrays = [noise(index, (8, 8, 3)) for index in range(6)]
    for index, array in enumerate(arrays):
        write_image(tmp_path / f"{index}.png", array, f"picture\tno. {index} – «ёж»\n")
    assert both(config(tmp_path)) == {
        chw(array): f"picture no. {index} – «ёж»" for index, array in enumerate(arrays)
    }
    found = survey(config(tmp_path))
    assert (found.captions, list(found.class_names)) == (".txt files", [])
    records = load_records(config(tmp_path), "train")
    assert records.labels.tolist() == [0] * len(records)
    assert records.examples()[0] == list(records.captions)


def test_captions_in_metadata(tmp_path: Path) -> None:
    arrays = [noise(index, (8, 8, 3)) for index in range(5)]
    lines = []
    for index, array in enumerate(arrays):
        write_image(tmp_path / "images" / f"{index}.png", array)
        key = "text" if index % 2 else "caption"
        lines.append(json.dumps({"file_name": f"images/{index}.png", key: f"no. {index}"}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines) + "\n\n", "utf-8")
    assert both(config(tmp_path)) == {chw(a): f"no. {i}" for i, a in enumerate(arrays)}
    assert open_images(config(tmp_path)).class_names == []  # one folder is no class


def test_classes_by_folder_and_splits_above_them(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("test", 2)):
        for label, name in enumerate(("cat", "dog")):
            for index in range(count):
                seed = hash((split, label, index)) % 1000
                write_image(tmp_path / split / name / f"{index}.jpg", noise(seed, (9, 13, 3)))
    settings = resolve(config(tmp_path))
    assert settings.caption == ("A photo of a {class_name}",)
    train, test = (load_records(settings, split) for split in ("train", "test"))
    assert (len(train), len(test)) == (8, 4)
    assert train.labels.tolist() == [0] * 4 + [1] * 4
    assert captions_of(test) == ["A photo of a cat"] * 2 + ["A photo of a dog"] * 2
    assert "JPEG 13x9 centre-cropped and brought to 8x8" in train.description


def test_what_is_auto_is_found(tmp_path: Path) -> None:
    """The largest of 8, 16, 28, 32 and 64 px that the median short side reaches."""
    for index, (height, width) in enumerate([(20, 30), (40, 33), (90, 70), (35, 200), (8, 8)]):
        write_image(tmp_path / "a" / f"{index}.png", noise(index, (height, width)))
    found = survey(DataConfig(source=str(tmp_path)))
    assert (found.median_short_px, found.smallest, found.largest) == (33, (8, 8), (200, 35))
    settings = resolve(DataConfig(source=str(tmp_path)), found)
    assert (settings.resolution, settings.channels) == (32, 1)
    assert found.sentence() == ("Found 5 images (image folder), 8x8 to 200x35, greyscale; 1 class.")
    write_image(tmp_path / "a" / "colour.png", noise(9, (64, 64, 3)))
    assert resolve(DataConfig(source=str(tmp_path))).channels == 3
    # What is given stays.
    given = DataConfig(source=str(tmp_path), resolution=16, channels=1, caption="A thing")
    assert resolve(given) == given


def test_images_without_captions_are_a_question(tmp_path: Path, refused) -> None:
    for index in range(4):
        write_image(tmp_path / f"{index}.png", noise(index, (8, 8, 3)))
    with refused(InputError):
        load_records(config(tmp_path), "train")
    assert (
        captions_of(load_records(config(tmp_path, caption="A photo"), "train")) == ["A photo"] * 3
    )
    with refused(ConfigError):
        load_records(config(tmp_path, caption="A {class_name}"), "train")


def test_a_few_missing_captions_are_named(tmp_path: Path, refused) -> None:
    for index in range(10):
        caption = None if index == 3 else "" if index == 5 else "a caption"
        write_image(tmp_path / f"{index}.png", noise(index, (8, 8, 3)), caption)
    with refused(InputError) as caught:
        load_records(config(tmp_path, split_seed=1), "train")
    assert caught.value.exit_code == 2
    assert len(both(config(tmp_path, split_seed=1, max_damaged=0.9))) == 8


def test_metadata_that_names_a_missing_file(tmp_path: Path, refused) -> None:
    lines = [json.dumps({"file_name": f"{index}.png", "text": "x"}) for index in range(4)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines), "utf-8")
    for index in range(3):
        write_image(tmp_path / f"{index}.png", noise(index, (8, 8, 3)))
    settings = config(tmp_path, split_seed=0)
    with refused(DamagedDataError):
        load_records(settings, "train")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"file_name": "a.png"', "not JSON"),
        ('["a.png"]', "not a line such as"),
        ('{"text": "x"}', "no file_name"),
        ('{"file_name": "../a.png"}', "'../a.png' leads out of the folder"),
        ('{"file_name": "1.png", "text": 7}', "its caption is not text"),
    ],
)
def test_a_broken_line_of_metadata_is_a_damaged_row(
    tmp_path: Path, line: str, problem: str
) -> None:
    lines = [json.dumps({"file_name": f"{index}.png", "text": "x"}) for index in range(40)]
    lines[1] = line
    for index in range(40):
        write_image(tmp_path / f"{index}.png", noise(index, (8, 8, 3)))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines), "utf-8")
    everything = [load_records(config(tmp_path, max_damaged=0.9), s) for s in ("train", "test")]
    assert sum(len(records) for records in everything) == 39
    assert any(problem in item.reason for records in everything for item in records.damage)


def test_several_rows_of_an_image_are_several_captions(tmp_path: Path) -> None:
    """As in the tables of Flickr30k: a CSV file cannot hold a list."""
    lines = ["file_name,text"]
    for index in range(4):
        write_image(tmp_path / f"{index}.png", noise(index, (8, 8, 3)))
        lines += [f"{index}.png,no. {index}", f'{index}.png,"{index}, again"']
    (tmp_path / "metadata.csv").write_text("\n".join(lines), "utf-8")
    for split in ("train", "test"):
        records = load_records(config(tmp_path), split)
        for rows in records.prompts.tolist():
            first, second = (records.captions[row] for row in rows)
            assert second == f"{first.removeprefix('no. ')}, again"


def test_captions_in_a_csv_table(tmp_path: Path) -> None:
    arrays = [noise(index, (8, 8, 3)) for index in range(4)]
    for index, array in enumerate(arrays):
        write_image(tmp_path / f"{index}.png", array)
    rows = "".join(f'{index}.png,"no.\u2028{index}, a ""thing"""\r\n' for index in range(4))
    (tmp_path / "metadata.csv").write_text("\ufefffile_name,text\r\n" + rows, "utf-8")
    assert both(config(tmp_path)) == {chw(a): f'no. {i}, a "thing"' for i, a in enumerate(arrays)}
    assert survey(config(tmp_path)).captions == "metadata.csv"


@pytest.mark.parametrize(
    "files",
    [
        {"metadata.csv": "name,text\na.png,x\n"},
        {"metadata.csv": ""},
        {"metadata.csv": 'file_name,text\na.png,"x'},
        {"metadata.csv": "file_name", "metadata.jsonl": ""},
    ],
    ids=["no file names", "empty", "an open quote", "two tables"],
)
def test_a_table_that_cannot_be_read(tmp_path: Path, files: dict[str, str], refused) -> None:
    write_image(tmp_path / "a.png", noise(0, (8, 8, 3)))
    for name, text in files.items():
        (tmp_path / name).write_text(text, "utf-8")
    with refused(InputError):
        open_images(config(tmp_path))


def test_damaged_files_are_listed_by_name(tmp_path: Path) -> None:
    for index in range(30):
        write_image(tmp_path / "cat" / f"{index:02}.png", noise(index, (8, 8, 3)))
    (tmp_path / "cat" / "05.png").write_bytes(b"no image")
    everything = [load_records(config(tmp_path, max_damaged=0.5), s) for s in ("train", "test")]
    damage = [item for records in everything for item in records.damage]
    assert damage == [("cat/05.png", None, "not an image")]
    for index in range(30):
        (tmp_path / "cat" / f"{index:02}.txt").write_text("a cat")
    (tmp_path / "cat" / "07.txt").write_bytes(b"\xff\xfe\xff")
    everything = [load_records(config(tmp_path, max_damaged=0.5), s) for s in ("train", "test")]
    damage = [item for records in everything for item in records.damage]
    assert ("cat/07.png", None, "its caption 07.txt is not text in UTF-8") in damage
    assert len(damage) == 2


def test_hidden_files_are_no_images(tmp_path: Path) -> None:
    for index in range(3):
        write_image(tmp_path / f"{index}.png", noise(index, (8, 8, 3)), "x")
    (tmp_path / "._0.png").write_bytes(b"of another system")
    write_image(tmp_path / ".thumbnails" / "0.png", noise(0, (8, 8, 3)))
    assert open_images(config(tmp_path)).count == 3


def test_a_second_load_is_the_same_object_until_a_file_changes(tmp_path: Path) -> None:
    for index in range(3):
        write_image(tmp_path / f"{index}.png", noise(index, (8, 8, 3)), "x")
    first = load_records(config(tmp_path), "train")
    assert load_records(config(tmp_path), "train") is first
    write_image(tmp_path / "3.png", noise(3, (8, 8, 3)), "y")
    assert not torch.equal(load_records(config(tmp_path), "train").labels, first.labels)


def test_a_stray_image_beside_class_folders_is_named(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for index in range(5):
            write_image(tmp_path / "pets" / name / f"{index}.png", noise(index))
    write_image(tmp_path / "pets" / "stray.png", noise(9))
    settings = config(tmp_path / "pets", caption="A {class_name}", max_damaged=0.2)
    assert open_images(settings).class_names == ["cat", "dog"]
    damage = [item for split in ("train", "test") for item in load_records(settings, split).damage]
    assert [(item.file, item.reason) for item in damage] == [("stray.png", "no label")]


def test_a_mistyped_folder_is_not_looked_for_on_the_hub(
    tmp_path: Path, monkeypatch, refused
) -> None:
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    with refused(InputError):
        open_images(config(Path("photos/hoildays")))
