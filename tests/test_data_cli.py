"""A folder of pictures in, a trained model out, by the command line; and the messages."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from sfumato.cli.data import resolve_data
from sfumato.config.schema import load_experiment
from tests.pictures import encoded, noise, write_image, write_parquet

QUICK = [
    "data.resolution=8",
    "model.block_out_channels=[8,16]",
    "model.levels=[plain,attention]",
    "training.images=32",
    "training.sample_every_images=32",
    "sampling.steps=2",
]


def quick(*more: str) -> list[str]:
    return [part for setting in (*QUICK, *more) for part in ("--set", setting)]


def one_message(result, code: int, *parts: str) -> None:
    assert result.code == code, result.err + result.out
    assert "Traceback" not in result.err
    assert result.err.startswith("error: ")
    for part in parts:
        assert part in result.err, result.err


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve pictures of odd sizes with captions in .txt files."""
    folder = tmp_path / "my photos"
    words = ("a red bird on a branch", "two boats, far away", "an old door")
    for index in range(12):
        array = noise(index, (20 + index, 34 - index, 3))
        write_image(folder / f"{index:02}.jpg", array, f"{words[index % 3]}, no. {index}")
    return folder


@pytest.mark.slow
def test_your_own_images_train_without_code(sfumato, photos: Path, tmp_path: Path) -> None:
    """Found, stated, trained, sampled; the run goes on from another working folder."""
    out = tmp_path / "run"
    result = sfumato(
        "train", "small", "--data", photos.name, "--out", str(out), *quick(), cwd=photos.parent
    )
    assert result.code == 0, result.err
    found, training, *_ = result.out.splitlines()
    assert found == (
        "Found 12 images (image folder), 34x20 to 27x27, RGB; captions from .txt files."
    )
    assert training.startswith("Training on 11 of them at 8x8, RGB; 11 captions, such as '")
    written = yaml.safe_load((out / "experiment.yaml").read_text())["data"]
    assert written["source"] == str(photos.resolve())
    assert (written["resolution"], written["channels"]) == (8, 3)
    assert written["caption"] == ["{caption}"]
    assert list((out / "samples").glob("*.png"))
    again = sfumato(
        "train", "small", "--data", str(photos), "--out", str(out), *quick("training.images=48")
    )
    assert again.code == 0, again.err
    assert "Resuming from the checkpoint at 32 images" in again.out
    one_message(
        sfumato("evaluate", str(out), "--count", "10"),
        2,
        "1 real test image is too few",
        "data.test_share",
    )
    grid = sfumato("grid", str(out), "--scales", "1", "--out", str(tmp_path / "grid.png"))
    assert grid.code == 0, grid.err


def test_a_parquet_folder_trains_with_its_class_names(sfumato, tmp_path: Path) -> None:
    images = [encoded(noise(index, (8, 8, 3))) for index in range(40)]
    for split in ("train", "test"):
        file = tmp_path / "pets" / "data" / f"{split}-00000-of-00001.parquet"
        write_parquet(file, images, [0, 1] * 20, image="img", names=["cat", "dog"])
    out = tmp_path / "run"
    result = sfumato(
        "train", "small", "--data", str(tmp_path / "pets"), "--out", str(out), *quick()
    )
    assert result.code == 0, result.err
    assert "Found 80 images (Parquet), 8x8, RGB; 2 classes." in result.out
    assert (
        "Training on 40 of them at 8x8, RGB; 2 captions, such as 'A photo of a dog'" in result.out
    )


@pytest.mark.parametrize(("caption", "told"), [("A photo", True), ("{caption}", False)])
def test_one_caption_for_all_images_is_told(photos: Path, capsys, caption: str, told: bool) -> None:
    settings = [f"data.source={photos}", f"data.caption={caption!r}"]
    resolve_data(load_experiment("small", settings))
    assert ("All have the same caption" in capsys.readouterr().out) == told


def test_data_show_says_what_is_there(sfumato, photos: Path, tmp_path: Path) -> None:
    (photos / "05.jpg").write_bytes(b"no image")
    out = tmp_path / "data.png"
    result = sfumato("data", "show", str(photos), "--out", str(out))
    assert result.code == 0, result.err
    for part in (
        "Found 12 images (image folder)",
        "Source     my photos (image folder)",
        "held out by data.split_seed",
        "Files      JPEG 100 %",
        "Captions   {caption}, such as '",
        "Training   16x16, RGB, fit: crop",
        "05.jpg: not an image",
        str(out),
    ):
        assert part in result.out
    with Image.open(out) as picture:
        assert picture.mode == "RGB"
        assert np.asarray(picture).std() > 20
    assert sfumato("data", "show", str(photos), "--out", str(out)).code == 0  # beside the first
    assert (tmp_path / "data-2.png").exists()


def test_data_show_of_the_digits(sfumato, tmp_path: Path) -> None:
    result = sfumato("data", "show", "digits", "--out", str(tmp_path / "digits.png"))
    assert result.code == 0, result.err
    assert "train 897, classifier 600, test 300" in result.out
    assert "Training   8x8, greyscale" in result.out


@pytest.mark.slow
def test_mnist_from_parquet(sfumato, shared_data: Path, tmp_path: Path) -> None:
    result = sfumato(
        "data", "show", str(shared_data / "mnist"), "--out", str(tmp_path / "mnist.png")
    )
    assert result.code == 0, result.err
    assert "train 60,000, test 10,000" in result.out
    assert "Files      PNG 100 %" in result.out
    assert "Training   28x28, greyscale" in result.out


def test_messages_for_sources(sfumato, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.md").write_text("x")
    for data, parts in (
        ("digit", ("no source named 'digit'", "Did you mean 'digits'")),
        (str(tmp_path / "empty"), ("is empty", "*.parquet")),
        (str(tmp_path / "notes"), ("holds no images",)),
        (str(tmp_path / "nowhere"), ("does not exist",)),
    ):
        one_message(sfumato("train", "small", "--data", data), 2, *parts)
    one_message(sfumato("train", "small"), 2, "No images are named", "--data FOLDER")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    one_message(sfumato("train", "small", "--data", "ylecun/mnist"), 2, "Three ways out")
    one_message(sfumato("data", "show", "digits", "--out", "a.jpg"), 2, "PNG")


def test_an_encoder_that_is_not_there_is_told_before_anything_else(
    sfumato, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No image is read, nobody is asked, no folder is made."""
    monkeypatch.setattr(
        "sfumato.cli.data.resolve_data", lambda experiment: pytest.fail("was looked")
    )
    arguments = ["train", "mnist", "--out", str(tmp_path / "run"), "--set"]
    missing = sfumato(*arguments, "text.encoder=./nowhere", cwd=tmp_path)
    ways = ("download once", "text.encoder=FOLDER", "text.encoder=bundled")
    one_message(missing, 2, "the folder ./nowhere does not exist", *ways)
    assert not any(tmp_path.iterdir())


def test_images_of_another_size_are_said(sfumato, tmp_path: Path) -> None:
    images = [encoded(noise(index, (8, 8, 3))) for index in range(9)]
    images.append(encoded(noise(9, (6, 9, 3))))
    write_parquet(tmp_path / "a" / "train.parquet", images, [0, 1] * 5)
    write_parquet(tmp_path / "a" / "test.parquet", images[:2], [0, 1])
    result = sfumato(
        "train", "small", "--data", str(tmp_path / "a"), "--out", str(tmp_path / "run"), *quick()
    )
    assert result.code == 0, result.err
    assert "1 of 10 are not 8x8: resized (data.fit=crop)." in result.out


def test_damaged_data_end_with_3(sfumato, tmp_path: Path) -> None:
    images = [encoded(noise(index, (8, 8, 3))) for index in range(10)]
    file = write_parquet(tmp_path / "a" / "train.parquet", [*images, None, b"x"], [0] * 12)
    write_parquet(tmp_path / "a" / "test.parquet", images, [0] * 10)
    result = sfumato("train", "small", "--data", str(file.parent), *quick())
    one_message(
        result,
        3,
        "2 of 12 rows cannot be used (16.7 %; up to 1 % are skipped)",
        "train.parquet, row 10: no image",
        "train.parquet, row 11: not an image",
        "data.max_damaged",
    )
    allowed = sfumato(
        *("train", "small", "--data", str(file.parent), "--out", str(tmp_path / "run")),
        *quick("data.max_damaged=0.2"),
    )
    assert allowed.code == 0, allowed.err
    assert (
        "Skipped 2 damaged rows, counted from 0:\n  train.parquet, row 10: no image" in allowed.out
    )
    file.write_bytes(file.read_bytes()[:-50])
    result = sfumato("train", "small", "--data", str(file.parent), *quick())
    one_message(result, 3, "train.parquet is not a whole Parquet file")


def test_messages_for_captions(sfumato, photos: Path) -> None:
    (photos / "03.txt").unlink()
    (photos / "04.txt").unlink()
    result = sfumato("train", "small", "--data", str(photos), *quick())
    one_message(result, 2, "have no caption", "03.jpg: no caption", "data.caption=A photo")
    (photos / "metadata.jsonl").write_text(
        json.dumps({"file_name": "00.jpg", "text": "x"}) + "\n{broken\n"
    )
    result = sfumato("train", "small", "--data", str(photos), *quick())
    one_message(result, 3, "metadata.jsonl, row 1: not JSON", "01.jpg: no caption")
