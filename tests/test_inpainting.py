"""`sfumato bench inpainting`."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.base.errors import InputError
from sfumato.bench.inpainting import BAR, lower_half, measure_inpainting, save_inpainting
from sfumato.data.records import load_records
from sfumato.evaluation.classifier import load_classifier
from sfumato.evaluation.metrics.intervals import wilson
from sfumato.evaluation.prompt_set import class_prompts
from sfumato.generation.model import Model

COUNT = 20


@pytest.fixture(scope="module")
def quick(small_model: Model) -> Model:
    return small_model.with_(steps=4)


def test_the_lower_half() -> None:
    for side in (8, 7):
        mask = lower_half(side)
        assert mask.shape == (1, side, side)
        assert mask[0].all(dim=1).tolist() == [row >= side // 2 for row in range(side)]
        assert int(mask.sum()) == side * (side - side // 2)


def test_what_is_measured(quick: Model, tmp_path: Path) -> None:
    """The accuracies by a second way, from the images of `Model.sample`."""
    found, picture = measure_inpainting(quick, quick.data, count=COUNT, classifier="untrained:0")
    records = load_records(quick.data, "reference")
    judge = load_classifier(quick.data, "untrained:0")
    images, labels = records.images[:COUNT], records.labels[:COUNT]
    prompts = class_prompts(records, labels, ())
    completed = quick.sample(prompts, range(COUNT), init_image=list(images), mask=lower_half(8))
    whole = quick.sample(prompts, range(COUNT))
    for estimate, measured in (
        (found.accuracy, completed.tensor),
        (found.unmasked, whole.tensor),
        (found.real, images),
    ):
        right = int((judge.predict(measured) == labels).sum())
        assert estimate == wilson(right, COUNT)
    assert torch.equal(completed.tensor[:, :, :4], images[:, :, :4])
    assert found.changed == 0
    save_inpainting(found, picture, tmp_path / "record.json")
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["settings"]["seeds"] == [0, COUNT - 1]
    assert record["accuracy"]["count"] == COUNT
    with Image.open(tmp_path / "record.png") as shown:
        assert np.asarray(shown).std() > 10


def test_the_bar_is_accuracy_and_every_known_value(quick: Model) -> None:
    found, _ = measure_inpainting(quick, quick.data, count=COUNT, classifier="untrained:0")
    good = replace(found, accuracy=replace(found.accuracy, value=BAR))
    assert good.reached
    assert not replace(good, changed=1).reached
    assert not replace(good, accuracy=replace(found.accuracy, value=BAR - 0.001)).reached


def test_more_images_than_there_are(quick: Model, refused) -> None:
    with refused(InputError):
        measure_inpainting(quick, quick.data, count=10_000, classifier="untrained:0")


def test_the_command_prints_the_row(sfumato, small_run: Path, tmp_path: Path) -> None:
    command = ["bench", "inpainting", str(small_run), "--count", "12", "--steps", "2"]
    done = sfumato(*command, "--classifier", "untrained:0", "--out", "x.json", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "lower half painted" in done.out
    assert "known values that changed: 0" in " ".join(done.out.split())
    assert {file.name for file in tmp_path.iterdir()} == {"x.json", "x.png"}
