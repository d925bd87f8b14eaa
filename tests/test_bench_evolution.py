"""Simulated users: attributes in closed form, and evolution beside random search."""

import json
from math import atan, degrees, log
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sfumato.base.errors import InputError
from sfumato.base.randomness import derived_seed
from sfumato.bench.attributes import ATTRIBUTES, attributes_of, brightness, slant, stroke_width
from sfumato.bench.evolution import (
    SUCCESS,
    Study,
    User,
    class_judge,
    class_likelihood,
    measure_evolution,
    share_of_users,
)
from sfumato.evaluation.metrics.intervals import wilson
from sfumato.generation.genome import Genome, sample_genomes
from sfumato.interactive.operators import Operators


def drawn(value: int = 255, *, width: int = 2, length: int = 12, shear: int = 0) -> torch.Tensor:
    """uint8 (1, 1, 32, 32): an upright bar, or one of steps of `shear` pixels a row."""
    image = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    for row in range(length):
        left = 14 + shear * (length // 2 - row)
        image[0, 0, 8 + row, left : left + width] = value
    return image


@pytest.mark.parametrize("shear", [-1, 0, 1])
def test_slant_of_a_line(shear: int) -> None:
    assert float(slant(drawn(shear=shear))) == pytest.approx(degrees(atan(shear)))


@pytest.mark.parametrize(("width", "length"), [(1, 10), (2, 12), (4, 16)])
@pytest.mark.parametrize("value", [90, 255])
def test_stroke_width_of_a_bar(width: int, length: int, value: int) -> None:
    bar = drawn(value, width=width, length=length)
    assert float(stroke_width(bar)) == pytest.approx(width * length / (width + length))
    assert float(stroke_width(255 - bar)) == pytest.approx(width * length / (width + length))


@pytest.mark.parametrize("value", [51, 204])
def test_brightness_of_a_bar(value: int) -> None:
    assert float(brightness(drawn(value))) == pytest.approx(value / 255)


def test_an_empty_image_has_no_attributes() -> None:
    empty = torch.full((2, 3, 16, 16), 7, dtype=torch.uint8)
    assert attributes_of(empty, tuple(ATTRIBUTES)).abs().max() < 1e-9


def test_a_user_without_noise_takes_the_nearest() -> None:
    study = Study(attributes=("brightness",), noise=0)
    user = User(torch.tensor([0.8]), torch.tensor([0.1]), study, 0)
    images = torch.cat([drawn(value) for value in (51, 204, 255)])
    distances = user.distances(images)
    torch.testing.assert_close(distances, torch.tensor([6.0, 0.0, 2.0]).double(), atol=1e-6, rtol=0)
    assert user.last_choice(distances, [[0], [1, 2]]) == pytest.approx(0, abs=1e-6)
    noisy = User(torch.tensor([0.8]), torch.tensor([0.1]), Study(noise=0.5), 3)
    spread = noisy.seen(torch.zeros(20_000, dtype=torch.float64), 0).std()
    assert float(spread) == pytest.approx(0.5, abs=0.01)


def test_both_ways_are_looked_at_alike(monkeypatch) -> None:
    """Best picks stay on the next page; the last choice sees each favourite once."""
    user = User(torch.zeros(1), torch.ones(1), Study(generations=3, size=4, picks=2, noise=0), 0)
    looks, seen = [], user.seen

    def noted(distances: torch.Tensor, page: int) -> torch.Tensor:
        looks.append((page, distances.tolist()))
        return seen(distances, page)

    monkeypatch.setattr(user, "seen", noted)
    new = torch.tensor([[5.0, 2.5], [9.0, 0.5], [7.0, 6.0]]).double()
    found = user.walk(torch.tensor([4.0, 1.0, 3.0, 2.0]).double(), lambda best, page: new[page])
    assert found == (0.5, 10)
    pages = {page: values for page, values in looks if page >= 0}
    assert pages == {0: [4, 1, 3, 2], 1: [1, 2, 5, 2.5], 2: [1, 2, 9, 0.5], 3: [0.5, 1, 7, 6]}
    assert looks[-1] == (-1, [1, 0.5])


def test_both_ways_have_the_same_start_and_pictures(small_model) -> None:
    """And the same numbers each time."""
    study = Study(targets=20, population=20, generations=1, size=6, picks=1, noise=0)
    model, prompt = small_model.with_(steps=1), "A handwritten digit 7"
    found = measure_evolution(model, prompt, study, Operators())
    assert found.pictures == (11,) * 20
    for best, start in zip((*found.evolution, *found.search), found.start * 2, strict=True):
        assert best <= start
    difference = sum(found.search) / 20 - sum(found.evolution) / 20
    assert found.difference.value == pytest.approx(difference)
    assert found.deviation == pytest.approx(1, abs=0.1)
    assert measure_evolution(model, prompt, study, Operators()) == found
    assert found.accuracies is None
    counts = [sum(one <= SUCCESS for one in way) for way in (found.evolution, found.search)]
    assert [round(20 * one.value) for one in found.successes] == counts
    assert found.more_successes.value == pytest.approx((counts[0] - counts[1]) / 20)


def test_the_last_pictures_of_both_ways_are_judged(small_model) -> None:
    study = Study(targets=20, population=20, generations=2, size=6, picks=1, noise=0)
    judged: list[torch.Tensor] = []

    def judge(images: torch.Tensor) -> torch.Tensor:
        judged.append(images)
        return torch.tensor([len(judged) % 2 == 1, *[True] * (len(images) - 1)])

    model, prompt = small_model.with_(steps=1), "A handwritten digit 7"
    found = measure_evolution(model, prompt, study, Operators(), judge=judge)
    assert [len(one) for one in judged] == [5] * 40
    assert found.accuracies is not None
    assert [one.count for one in found.accuracies] == [100, 100]
    assert [one.value for one in found.accuracies] == [1.0, 0.8]
    key = f"user/{study.seed}/0"
    others = [Genome.of_seed(derived_seed(key, i), prompt) for i in range(11, 16)]
    assert torch.equal(judged[1], sample_genomes(model, others).tensor)


def test_a_class_is_an_attribute_by_its_log_odds(small_model, refused) -> None:
    shares = torch.tensor([[0.5, 0.5], [0.1, 0.9], [1.0, 0.0]])
    classifier: Any = SimpleNamespace(class_names=["3", "7"], probabilities=lambda images: shares)
    seen = class_likelihood(classifier, "A handwritten digit 7")
    images = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    found = attributes_of(images, ("class",), seen)[:, 0]
    assert found.tolist() == pytest.approx([0, log(9), log(1e-6 / (1 - 1e-6))], abs=1e-4)
    with refused(InputError):
        measure_evolution(small_model, "a 7", Study(attributes=("class",)), Operators())
    spread: Any = SimpleNamespace(
        class_names=["3", "7"],
        probabilities=lambda images: (images.double().mean((1, 2, 3)) / 255)[:, None].expand(-1, 2),
    )
    study = Study(attributes=("class",), targets=20, population=20, generations=1, size=6, picks=1)
    light = class_likelihood(spread, "7")
    wanted = measure_evolution(
        small_model.with_(steps=1), "a 7", study, Operators(), likelihood=light
    )
    assert len(wanted.evolution) == 20


def test_children_of_one_user_are_relatives() -> None:
    """One of ten users went astray with all 13 children: that is one event and not 13."""
    shares = [torch.full((13,), user > 0) for user in range(10)]
    found, pooled = share_of_users(shares), wilson(117, 130)
    assert found.value == pytest.approx(0.9)
    assert (found.low, found.high) == (pytest.approx(0.7), 1.0)
    assert found.low < pooled.low < pooled.high < found.high
    assert share_of_users(shares[1:]) == wilson(117, 117)


def test_a_judge_knows_the_class_of_the_prompt(refused) -> None:
    classifier: Any = SimpleNamespace(
        class_names=["0", "1", "7"], predict=lambda images: torch.tensor([2, 1])
    )
    judge = class_judge(classifier, "A handwritten digit 7")
    assert judge(torch.zeros(2, 1, 8, 8)).tolist() == [True, False]
    with refused(InputError):
        class_judge(classifier, "a digit")


def test_what_is_refused(small_model, refused) -> None:
    for wrong in (
        {"attributes": ("weight",)},
        {"attributes": ()},
        {"targets": 19},
        {"population": 30},
        {"picks": 9},
    ):
        with refused(InputError):
            Study(**wrong)
    with refused(InputError):
        measure_evolution(small_model.with_(sampler="DDPM"), "a 7", Study(), Operators())
    with refused(InputError):
        measure_evolution(small_model, "a 7", Study(), Operators(newcomers=13))


def test_bench_evolution(sfumato, small_run: Path, tmp_path: Path) -> None:
    short = ("--targets", "20", "--population", "20", "--generations", "1", "--picks", "1")
    found = sfumato(
        "bench", "evolution", str(small_run), *short, "--size", "6", "--steps", "1",
        "--device", "cpu", "--out", "record.json", "--classifier", "untrained", cwd=tmp_path,
    )  # fmt: skip
    assert found.code == 0, found.err
    assert "Class accuracy of the last children" in found.out.replace("\n", " ")
    assert "20 users, 11 to 11 pictures each" in found.out.replace("\n", " ")
    record = json.loads((tmp_path / "record.json").read_text())
    assert len(record["evolution"]) == len(record["search"]) == 20
    assert record["settings"]["operators"]["name"] == "rotation"
