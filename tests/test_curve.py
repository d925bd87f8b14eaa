"""Quality over training: `sfumato curve`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from sfumato.base.errors import InputError
from sfumato.evaluation.reference import Ground, real_measured
from sfumato.generation.model import ImageGenerator
from sfumato.studies.training_curve import read_curve
from sfumato.training.checkpoint import Checkpoints
from tests.conftest import CommandResult

Sfumato = Callable[..., CommandResult]


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
    card = read_curve(out)
    assert [point.images_seen for point in card.points] == kept
    assert len({point.weights_sha256 for point in card.points}) == len(kept)
    assert {point.calls for point in card.points} == {4}
    for name in ("curve.png", "examples.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 100
    assert f"| {kept[0]:,} |" in (out / "curve.md").read_text()
    assert card.shown == [str(digit) for digit in range(10)]
    before = json.loads((out / "curve.json").read_text())
    assert "Found before" in sfumato(*command).out
    assert json.loads((out / "curve.json").read_text()) == before


def test_a_checkpoint_that_is_chosen_later_draws_as_one_that_was_opened(small_run: Path) -> None:
    first = Checkpoints(small_run / "checkpoints").all()[0].images_seen
    opened = ImageGenerator.open(small_run, device="cpu", checkpoint=first)
    chosen = ImageGenerator.open(small_run, device="cpu")
    chosen.use_checkpoint(first)
    assert chosen.provenance == opened.provenance
    caption = opened.examples()[0][:1]
    for one in (opened, chosen):
        one.use(steps=2)
    pictures = [next(iter(one.draw(caption, range(1)))).image for one in (opened, chosen)]
    assert torch.equal(*pictures)


def test_checkpoints_that_are_gone_damaged_or_too_early_are_left_out(
    sfumato: Sfumato, small_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    first, last = (one.images_seen for one in Checkpoints(run / "checkpoints").all())
    command = ("curve", str(run), "--count", "30", "--steps", "1", "--guidance", "1")
    away = sfumato(*command, "--guidance-form", "autoguidance", "--out", str(tmp_path / "away"))
    assert away.code == 0, away.err
    card = read_curve(tmp_path / "away")
    assert [point.images_seen for point in card.points] == [last]
    assert card.guidance == f"autoguidance:images={first}"
    assert {point.calls for point in card.points} == {1}

    damaged = Checkpoints(run / "checkpoints").path(first) / "average.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    found = sfumato(*command, "--out", str(tmp_path / "damaged"))
    assert found.code == 0, found.err
    assert "Left out: " in found.out
    assert [point.images_seen for point in read_curve(tmp_path / "damaged").points] == [last]

    shutil.rmtree(damaged.parent)
    alone = sfumato(*command, "--guidance-form", "autoguidance", "--out", str(tmp_path / "alone"))
    assert alone.code == 2
    assert "needs an earlier checkpoint" in alone.err
    assert not (tmp_path / "alone").exists()


def test_a_real_class_of_one_image_is_left_out(small_generator: ImageGenerator) -> None:
    ground = Ground.of(small_generator, count=30, first_seed=0, judge="auto", say=print)
    labels = ground.real.reference.labels(20)
    labels[labels == labels[0]] = 1 + int(labels.max())
    labels[0] = 2 + int(labels.max())

    class OneAlone:
        def __len__(self) -> int:
            return 20

        def labels(self, count: int) -> torch.Tensor:
            return labels[:count]

        def at(self, rows: torch.Tensor) -> torch.Tensor:
            return ground.real.reference.at(rows)

    counts = labels.bincount()
    found = real_measured(OneAlone(), 20, ground.judge)
    assert len(found.labels) == int(counts[counts > 1].sum()) < 20


def test_a_pipeline_has_no_checkpoints() -> None:
    bundled = ImageGenerator.open("bundled:mnist", device="cpu")
    with pytest.raises(InputError, match="one set of weights"):
        bundled.use_checkpoint(100_000)


def test_bad_input_is_answered(sfumato: Sfumato, small_run: Path, tmp_path: Path) -> None:
    few = sfumato("curve", str(small_run), "--count", "12", "--out", str(tmp_path / "out"))
    assert few.code == 2
    assert "Give --count 30 or more" in few.err
    bundled = sfumato("curve", "bundled:mnist")
    assert bundled.code == 2
    assert "a pipeline has one set of weights" in bundled.err
