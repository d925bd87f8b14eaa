"""Quality over training: `sfumato curve`."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from sfumato.base.errors import InputError
from sfumato.config.sections import EvaluationConfig
from sfumato.evaluation.reference import Reference
from sfumato.generation.loading import load
from sfumato.generation.model import Model
from sfumato.studies.study import Study
from sfumato.studies.training_curve import CurveCard, CurveConfig, _losses
from sfumato.training.checkpoint import Checkpoints
from tests.conftest import CommandResult

Sfumato = Callable[..., CommandResult]


@pytest.mark.slow
def test_every_kept_checkpoint_is_measured_with_the_same_seeds(
    sfumato: Sfumato, small_run: Path, tmp_path: Path
) -> None:
    kept = [one.images_seen for one in Checkpoints(small_run / "checkpoints").all()]
    assert len(kept) > 1
    out = tmp_path / "curve"
    command = (
        *("curve", str(small_run), "--count", "30", "--steps", "2", "--guidance", "2"),
        *("--out", str(out)),
    )
    found = sfumato(*command)
    assert found.code == 0, found.err
    assert all(f"{images:,}" in found.out for images in kept)
    card = CurveCard.read(out)
    assert [point.images_seen for point in card.points] == kept
    assert len({point.weights_sha256 for point in card.points}) == len(kept)
    assert {point.nfe for point in card.points} == {4}
    assert [set(point.losses) for point in card.points] == [{"train", "test"}] * len(kept)
    for point in card.points:
        assert [len(found) for found in point.losses.values()] == [len(card.levels)] * 2
    for name in ("curve.png", "examples.png", "losses.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 100
    assert f"| {kept[0]:,} |" in (out / "curve.md").read_text()
    assert card.shown == [str(digit) for digit in range(10)]
    before = json.loads((out / "curve.json").read_text())
    assert "From the cache" in sfumato(*command).out
    assert json.loads((out / "curve.json").read_text()) == before


@pytest.mark.slow
def test_checkpoints_that_are_gone_damaged_or_too_early_are_left_out(
    sfumato: Sfumato, small_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    first, last = (one.images_seen for one in Checkpoints(run / "checkpoints").all())
    command = ("curve", str(run), "--count", "30", "--steps", "1", "--guidance", "1")
    away = sfumato(*command, "--guidance-form", "autoguidance", "--out", str(tmp_path / "away"))
    assert away.code == 0, away.err
    card = CurveCard.read(tmp_path / "away")
    assert [point.images_seen for point in card.points] == [last]
    assert card.guidance == f"autoguidance:images={first}"
    assert {point.nfe for point in card.points} == {1}

    damaged = Checkpoints(run / "checkpoints").path(first) / "average.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    found = sfumato(*command, "--out", str(tmp_path / "damaged"))
    assert found.code == 0, found.err
    assert "Left out: " in found.out
    assert [point.images_seen for point in CurveCard.read(tmp_path / "damaged").points] == [last]

    shutil.rmtree(damaged.parent)
    alone = sfumato(*command, "--guidance-form", "autoguidance", "--out", str(tmp_path / "alone"))
    assert alone.code == 2
    assert "needs an earlier checkpoint" in alone.err
    assert not (tmp_path / "alone").exists()


def test_a_real_class_of_one_image_is_left_out(small_model: Model) -> None:
    assert small_model.data is not None
    found = Reference.load(small_model.data, EvaluationConfig(extractors=("classifier",)))
    labels = found.images.first(20).labels.clone()
    labels[labels == labels[0]] = 1 + int(labels.max())
    labels[0] = 2 + int(labels.max())
    alone = replace(found, images=replace(found.images.first(20), labels=labels))
    counts = labels.bincount()
    real = alone.pairs_of_each_class(20)
    assert len(real.labels) == int(counts[counts > 1].sum()) < 20


def test_losses_on_training_images_are_those_of_the_model(small_model: Model) -> None:
    """With another split its training images would be among those it was tested on."""
    assert small_model.data is not None
    for seed, parts in ((0, {"train", "test"}), (1, {"test"})):
        data = small_model.data.model_copy(update={"split_seed": seed})
        config, lines = CurveConfig(count=30, classifier="untrained", loss_images=4), []
        study = Study.of(small_model, config, data=data)
        (found,) = _losses(study, [small_model], 4, lines.append)
        assert set(found) == parts
        assert any("trained on others" in line for line in lines) == (seed == 1)


def test_a_pipeline_has_no_checkpoints(refused) -> None:
    with refused(InputError):
        load("bundled:mnist", device="cpu", checkpoint=100_000)


def test_bad_input_is_answered(sfumato: Sfumato, small_run: Path, tmp_path: Path) -> None:
    few = sfumato("curve", str(small_run), "--count", "12", "--out", str(tmp_path / "out"))
    assert few.code == 2
    assert "Give --count 30 or more" in few.err
    bundled = sfumato("curve", "bundled:mnist")
    assert bundled.code == 2
    assert "a pipeline has one set of weights" in bundled.err
