"""Quality over training: `sfumato curve`."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from sfumato.evaluation.curve import read_curve
from sfumato.generation import ImageGenerator
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


def test_bad_input_is_answered(sfumato: Sfumato, small_run: Path, tmp_path: Path) -> None:
    few = sfumato("curve", str(small_run), "--count", "12", "--out", str(tmp_path / "out"))
    assert few.code == 2
    assert "Give --count 30 or more" in few.err
    bundled = sfumato("curve", "bundled:mnist")
    assert bundled.code == 2
    assert "a pipeline has one set of weights" in bundled.err
