"""Metrics that say nothing are found on real images alone, and not shown as numbers."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sfumato.bench.paintings.styles import STYLES
from sfumato.bench.synthetic import paint
from sfumato.config.sections import DataConfig
from sfumato.evaluation.card import Baseline, PerturbationBaseline, Spread, read_card
from sfumato.evaluation.compare import compare
from sfumato.evaluation.evaluate import evaluate
from sfumato.evaluation.sight import captions_blind, distances_blind
from sfumato.evaluation.tables import card_tables

SIZE = (32, 32)


def paintings(folder: Path, count: int) -> DataConfig:
    """Synthetic paintings of ten styles in turn, with captions that the bundled CLIP never saw."""
    folder.mkdir()
    for number in range(count):
        name = list(STYLES)[number % 10]
        style = STYLES[name]
        image = paint(style, style.genres[0], (256, 256), np.random.default_rng(number))
        image.resize(SIZE).save(folder / f"{number:03d}.png")
        text = f"A painting in the style of {name.replace('_', ' ')}"
        (folder / f"{number:03d}.txt").write_text(text)
    return DataConfig(source=str(folder), resolution=SIZE[0], test_share=0.5)


def noise(file: Path, seed: int = 0) -> Path:
    """Twenty images of noise."""
    values = np.random.default_rng(seed).integers(0, 256, (20, *SIZE, 3), dtype=np.uint8)
    np.savez(file, values)
    return file


def test_twenty_images_of_noise_against_twenty_paintings(tmp_path: Path) -> None:
    data = paintings(tmp_path / "paintings", 20)
    of = {"data": data, "extractors": ["small-clip"]}
    card = evaluate(noise(tmp_path / "a.npz"), out=tmp_path / "out", **of)
    assert not [key for key in card.rows[0].metrics if key.endswith("small-clip")]
    assert {"frechet.small-clip", "kernel.small-clip", "clip_score.small-clip"} < card.blind.keys()
    for table in card_tables(card):
        own = dict(zip(table.columns, table.rows[0], strict=True))
        assert {own.get("Frechet", "blind"), own.get("CLIP score (small-clip)", "blind")} == {
            "blind"
        }
    notes = " ".join(card.warnings)
    assert "need 256 images on both sides" in notes
    assert "does not know this data's captions" in notes
    assert read_card(tmp_path / "out").blind == card.blind
    other = evaluate(noise(tmp_path / "b.npz", 1), out=tmp_path / "other", **of)
    keys = [one.key for one in compare(card, other).differences]
    assert keys
    assert not card.blind.keys() & set(keys)


def test_with_more_paintings_noise_is_seen_but_captions_are_not(tmp_path: Path) -> None:
    data = paintings(tmp_path / "paintings", 80)
    card = evaluate(
        noise(tmp_path / "a.npz"), data=data, out=tmp_path / "out", extractors=["small-clip"]
    )
    assert card.blind.keys() == {"clip_score.small-clip"}
    real = card.baselines["small-clip"].metrics["frechet"]
    assert card.rows[0].metrics["frechet.small-clip"].value > real.mean + 10 * real.std


# Closed forms -------------------------------------------------------------------------------------


def blind(noise: float, blur: float, counts: tuple[int, int] = (20, 100)) -> bool:
    """Of real sets at 1 ± 0.125."""
    baseline = Baseline(
        count=20,
        reference_count=100,
        pairs=10,
        disjoint="both",
        metrics={"frechet": Spread(mean=1, std=0.125)},
    )
    changed = [
        PerturbationBaseline(title=title, frechet=value, count=20, of_reference=False)
        for title, value in (("shift 0.5 px", 9.0), ("noise 0.05", noise), ("blur 1.5 px", blur))
    ]
    return bool(distances_blind("one", baseline, changed, counts=counts, dim=128))


def test_one_of_noise_and_blur_must_lie_three_deviations_above_real_images() -> None:
    assert blind(1.375, 1.375)
    assert not blind(1.0, 1.376)
    assert not blind(1.376, 1.0)
    assert not blind(2.0, 2.0)


@pytest.mark.parametrize(
    ("counts", "few"), [((255, 999), True), ((999, 255), True), ((256, 256), False)]
)
def test_without_a_baseline_twice_as_many_images_as_features(
    counts: tuple[int, int], few: bool
) -> None:
    assert bool(distances_blind("one", None, [], counts=counts, dim=128)) == few


def test_real_images_must_agree_with_their_own_captions() -> None:
    generator = torch.Generator().manual_seed(0)
    texts = torch.eye(8).repeat(10, 1)
    images = texts + 0.1 * torch.randn(80, 8, generator=generator)
    assert captions_blind("one", images, texts) == ""
    assert captions_blind("one", torch.randn(80, 8, generator=generator), texts)
    assert captions_blind("one", images, texts[:1].expand(80, -1)) == ""  # one caption for all
