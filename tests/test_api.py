"""The public API: train, load, sample, evaluate, compare, export; images from Python."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

import sfumato
from sfumato.base import environment
from sfumato.base.errors import ConfigError, InputError
from sfumato.data.arrays import write_images
from sfumato.data.records import load_records
from tests.conftest import SMALL

TINY: dict[str, Any] = {
    "model": {"block_out_channels": [32, 64], "levels": ["attention", "plain"]},
    "sampling": {"steps": 4},
    "device": "cpu",
    "progress": False,
}
DIGITS8 = {"source": "digits", "resolution": 8}
QUICK: dict[str, Any] = {"count": 12, "classifier": "untrained", "extractors": ["classifier"]}
COUNT = 40


def weights(folder: Path) -> list[bytes]:
    newest = max((folder / "checkpoints").iterdir())
    return [file.read_bytes() for file in sorted(newest.glob("*.safetensors"))]


def arrays() -> tuple[np.ndarray, list[str]]:
    """8x8 RGB images of two colours, with captions."""
    images = np.random.default_rng(0).integers(0, 60, (COUNT, 8, 8, 3), dtype=np.uint8)
    images[::2, :, :, 0] = 200
    return images, ["a red square" if i % 2 == 0 else "a dark square" for i in range(COUNT)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("api") / "a"
    return sfumato.train("digits", data=DIGITS8, out=folder, training={"images": 64}, **TINY)


def test_train_load_sample_export(run, tmp_path: Path, capsys) -> None:
    assert run.finished
    assert run.images_seen == 64
    model = sfumato.load(run.folder, device="cpu")
    images = model.sample(["a handwritten seven"], seeds=range(4), guidance=3)
    assert len(images) == 4
    assert isinstance(images[0], PIL.Image.Image)
    assert images.tensor.shape == (4, 1, 8, 8)
    assert [one["seed"] for one in images.settings] == [0, 1, 2, 3]
    same = run.model.sample(["a handwritten seven"], seeds=range(4), guidance=3)
    assert torch.equal(same.tensor, images.tensor)
    model.export(tmp_path / "exported")
    exported = sfumato.load(tmp_path / "exported", device="cpu")
    again = exported.sample(["a handwritten seven"], seeds=[2], guidance=3)
    assert torch.equal(again.tensor[0], images.tensor[2])


def test_settings_are_those_of_the_command_line(run) -> None:
    from sfumato.config.schema import load_experiment

    settings = [one for one in SMALL if "every" not in one and "steps" not in one]
    settings += ["training.images=64", "sampling.steps=4"]
    there = load_experiment(run.folder / "experiment.yaml").model_dump()
    there["data"]["loading"] = "auto"
    assert there == load_experiment("digits", settings).model_dump()


def test_a_run_is_resumed_bit_for_bit(run, tmp_path: Path, capsys) -> None:
    seen: list[tuple[int, float]] = []

    def stop(run: Any, metrics: Any) -> None:
        seen.append((run.images_seen, metrics["loss"]))
        run.stop_requested = run.images_seen == 32

    quiet = {**TINY, "training": {"images": 64}, "data": DIGITS8}
    stopped = sfumato.train("digits", out=tmp_path / "a", callback=stop, **quiet)
    assert not stopped.finished
    assert stopped.images_seen == 32
    capsys.readouterr()
    finished = sfumato.train("digits", out=tmp_path / "a", callback=stop, **quiet)
    assert finished.finished
    assert weights(tmp_path / "a") == weights(run.folder)
    assert [images for images, _ in seen] == [16, 32, 48, 64]
    assert all(isinstance(loss, float) for _, loss in seen)
    assert capsys.readouterr() == ("", "")
    metrics = (tmp_path / "a" / "metrics.jsonl").read_text()
    assert metrics == (run.folder / "metrics.jsonl").read_text()
    assert (tmp_path / "a" / "timing.jsonl").exists()


def test_progress_is_printed(run, capsys) -> None:
    settings = {**TINY, "progress": True, "training": {"images": 64}, "data": DIGITS8}
    assert sfumato.train("digits", out=run.folder, **settings).finished
    assert "Already trained: 64 images." in capsys.readouterr().out


def test_evaluate_and_compare(run) -> None:
    model = sfumato.load(run.folder, device="cpu")
    card = sfumato.evaluate(model, guidance_scales=[1, 3], **QUICK)
    accuracy = card.rows[1].class_accuracy
    assert 0 <= accuracy.low <= accuracy.value <= accuracy.high <= 1
    assert "%" in str(accuracy)
    found = sfumato.compare(model.with_(guidance=1), model.with_(guidance=3), **QUICK)
    assert "class" in str(found)


@pytest.mark.slow
def test_nothing_records_the_command_of_the_kernel(run, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
    monkeypatch.setattr(environment, "_command", "")  # of a command that was tested before
    again = sfumato.train("digits", out=tmp_path / "a", training={"images": 16}, **TINY)
    card = sfumato.evaluate(again.model, guidance_scales=[1], **QUICK)
    assert card.command == ""
    for file in again.folder.rglob("*.json"):
        assert "ipykernel" not in file.read_text("utf-8"), file


# Images from Python -------------------------------------------------------------------------------


def test_arrays_are_data(tmp_path: Path) -> None:
    images, captions = arrays()
    settings = {**TINY, "training": {"images": 48}, "sampling": {"steps": 2}}
    run = sfumato.train("digits", data=(images, captions), out=tmp_path / "a", **settings)
    assert run.finished
    data = run.model.data
    assert data is not None
    records = [load_records(data, split) for split in ("train", "test")]
    assert sum(len(one) for one in records) == COUNT
    assert set(records[0].captions) == set(captions)
    assert run.model.sample(captions[0], seeds=[1]).tensor.shape == (1, 1, 16, 16)

    unbroken = weights(run.folder)
    settings["training"] = {"images": 64}
    more = sfumato.train(
        "digits", data=(torch.from_numpy(images), captions), out=run.folder, **settings
    )
    assert more.images_seen == 64
    assert weights(run.folder) != unbroken
    assert sfumato.train("digits", out=run.folder, **settings).finished  # with its own images
    assert len(list((run.folder / "data").iterdir())) == 1


def test_other_arrays_are_another_run(tmp_path: Path, refused) -> None:
    images, captions = arrays()
    write_images((images, captions), tmp_path / "data")
    with refused(ConfigError):
        write_images((255 - images, captions), tmp_path / "data")
    with refused(ConfigError):
        write_images((images, captions[::-1]), tmp_path / "data")
    assert len(list((tmp_path / "data").iterdir())) == 1


class Squares(torch.utils.data.Dataset):
    """Indexable without an end, as a torch Dataset may be."""

    def __init__(self, form: str) -> None:
        self.form = form
        self.images, self.captions = arrays()

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> Any:
        image, caption = self.images[index % COUNT], self.captions[index % COUNT]
        return {
            "pairs": (PIL.Image.fromarray(image), caption),
            "mappings": {"image": image, "text": caption},
            "labels": {"img": torch.from_numpy(image), "label": caption.split()[1]},
            "numbers": (image, index % 2),
        }[self.form]


@pytest.mark.parametrize("form", ["pairs", "mappings"])
def test_every_form_of_captioned_images_is_the_same_file(tmp_path: Path, form: str) -> None:
    images, captions = arrays()
    write_images((images, captions), tmp_path / "data")
    for data in (
        Squares(form),
        (torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), captions),
        ([PIL.Image.fromarray(image) for image in images], captions),
        iter(list(zip(images, captions, strict=True))),
    ):
        write_images(data, tmp_path / "data")
    assert len(list((tmp_path / "data").iterdir())) == 1


def test_pillow_images_are_read_as_files_are(tmp_path: Path, refused) -> None:
    """Turned as EXIF says, and greyscale or RGB, whatever their mode."""
    pixels = arrays()[0][0]
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    turned = PIL.Image.open(tmp_path / "turned.png")
    write_images(([turned, turned], ["a", "b"]), tmp_path / "turned")
    wanted = np.ascontiguousarray(np.rot90(pixels, -1))
    write_images(([wanted, wanted], ["a", "b"]), tmp_path / "turned")  # the same file
    modes = ("CMYK", "YCbCr", "RGBA", "P", "I", "I;16", "LA", "1")
    wide = {mode: PIL.Image.new(mode, (8, 8)) for mode in ("I", "I;16")}
    some = [wide.get(mode) or PIL.Image.fromarray(pixels).convert(mode) for mode in modes]
    write_images((some, list(modes)), tmp_path / "modes")
    with refused(InputError):
        write_images(([PIL.Image.new("F", (8, 8))] * 2, ["a", "b"]), tmp_path / "float")
    with refused(InputError):
        write_images(([pixels, pixels], ["a", ["b", "c"]]), tmp_path / "mixed")


@pytest.mark.parametrize(("form", "names"), [("labels", ["dark", "red"]), ("numbers", ["0", "1"])])
def test_a_dataset_of_classes(tmp_path: Path, form: str, names: list[str]) -> None:
    section = {"source": Squares(form), "resolution": 8, "caption": "a {class_name} square"}
    run = sfumato.train("digits", data=section, out=tmp_path / "a", training={"images": 16}, **TINY)
    assert run.finished
    assert run.model.data is not None
    assert list(load_records(run.model.data, "train").class_names) == names


@pytest.mark.parametrize(
    "data",
    [
        (np.zeros((2, 8, 8), np.float32), ["a", "b"]),
        (np.zeros((2, 8, 8, 5), np.uint8), ["a", "b"]),
        (np.zeros((2, 8, 8), np.uint8), ["a"]),
        [np.zeros((8, 8), np.uint8)],
        [],
    ],
    ids=["float32", "5 channels", "2 images, 1 caption", "no captions", "no images"],
)
def test_images_that_cannot_be_used(tmp_path: Path, data: Any, refused) -> None:
    with refused(InputError):
        sfumato.train("digits", data=data, out=tmp_path / "a", **TINY)


def test_a_foreign_folder_is_left_alone(tmp_path: Path, refused) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with refused(ConfigError):
        sfumato.train("digits", data=arrays(), out=tmp_path, **TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_mistyped_setting_is_named(tmp_path: Path, refused) -> None:
    with refused(ConfigError):
        sfumato.train("digits", data=arrays(), out=tmp_path / "a", training={"imges": 64})
    assert not (tmp_path / "a").exists()


def test_the_weights_of_a_notebook_are_those_of_the_command_line(run, tmp_path, sfumato) -> None:
    settings = [
        word
        for one in SMALL
        if "every" not in one and "steps" not in one
        for word in ("--set", one)
    ]
    settings += ["--set", "training.images=64", "--set", "sampling.steps=4", "--device", "cpu"]
    done = sfumato("train", "digits", "--out", str(tmp_path / "cli"), *settings)
    assert done.code == 0, done.err
    assert weights(tmp_path / "cli") == weights(run.folder)
    state = max((tmp_path / "cli" / "checkpoints").iterdir()) / "state.json"
    assert json.loads(state.read_text())["images_seen"] == 64
