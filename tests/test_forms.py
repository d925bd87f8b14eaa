"""Forms of guidance side by side: `sfumato guidance`."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from sfumato.evaluation.metrics.diversity import diversity_within_classes
from sfumato.evaluation.metrics.intervals import Estimate
from sfumato.evaluation.reference import Scores
from sfumato.evaluation.task import with_overrides
from sfumato.generation.model import Model
from sfumato.studies.guidance_forms import FormRow, FormsCard, choice_among, excess_ratio
from sfumato.studies.scale_claims import scale_claims
from sfumato.studies.verdicts import Claim, Evidence
from tests.conftest import CommandResult

Sfumato = Callable[..., CommandResult]


def test_the_excess_ratio_is_that_of_the_means_and_its_interval_covers_it() -> None:
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for seed in range(40):
        noise = torch.randn(200, generator=generator) * 0.02
        plain = 0.30 + noise + torch.randn(200, generator=generator) * 0.01
        ours = 0.18 + noise + torch.randn(200, generator=generator) * 0.01
        found = excess_ratio(ours, plain, real=0.10, resamples=400, seed=seed)
        assert found is not None
        expected = (ours.mean() - 0.10) / (plain.mean() - 0.10)
        assert found.value == pytest.approx(float(expected), abs=1e-5)
        covered += found.low <= 0.4 <= found.high
    assert covered >= 34  # 95 % of 40 is 38; fewer than 34 has a chance of 3e-3


def test_without_an_excess_there_is_no_ratio() -> None:
    values = torch.tensor([0.1, 0.2, 0.3, 0.2])
    assert excess_ratio(values, values, real=0.2) is None
    assert excess_ratio(values, values, real=0.5) is None


def row(accuracy: float, frechet: float, saturated: float = 0.1) -> FormRow:
    return FormRow(
        form="cfg",
        guidance_scale=2,
        nfe=2,
        seconds=0,
        metrics={
            "class_accuracy": Estimate(value=accuracy),
            "frechet.classifier": Estimate(value=frechet),
            "saturated": Estimate(value=saturated),
        },
        burnt=None,
        accuracy_change=None,
    )


def chosen(rows: list[FormRow], *, of_real: float, noise: float = 0.0) -> tuple[int, list[int]]:
    generator = torch.Generator().manual_seed(0)
    distances = [
        one.metrics["frechet.classifier"].value + noise * torch.randn(200, generator=generator)
        for one in rows
    ]
    real = {"class_accuracy": Estimate(value=of_real), "saturated": Estimate(value=0.02)}
    return choice_among(rows, distances, real)


def test_the_choice_is_the_smallest_distance_among_those_that_are_accurate() -> None:
    rows = [row(0.95, 1.0), row(0.945, 0.5), row(0.93, 0.1)]
    assert chosen(rows, of_real=0.99) == (1, [1])
    assert chosen([row(0.95, 1.0), row(0.5, 0.1)], of_real=0.99) == (0, [0])


def test_more_accuracy_than_real_images_have_is_worth_nothing() -> None:
    assert chosen([row(0.95, 1.0), row(0.86, 0.5), row(0.8, 0.1)], of_real=0.85) == (1, [1])


def test_of_distances_that_do_not_differ_the_least_burnt_is_chosen() -> None:
    rows = [row(0.95, 0.5, 0.2), row(0.95, 0.51, 0.03), row(0.95, 0.51, 0.001), row(0.95, 2, 0.02)]
    assert chosen(rows, of_real=0.99, noise=1.0) == (1, [0, 1, 2])


def test_real_images_of_another_source_are_reported(small_model: Model) -> None:
    logged: list[str] = []
    with_overrides(small_model, [], log=logged.append)
    assert not logged
    with_overrides(small_model, ["data.source=elsewhere"], log=logged.append)
    assert "Real images of elsewhere; the model was trained on " in logged[0]


LABELS = torch.arange(100) % 10


def scored(right: float, spread: float, grey: int, distance: float = 1.0) -> Scores:
    """100 flat images of 10 classes whose features lie `spread` apart within a class."""
    generator = torch.Generator().manual_seed(0)
    features = spread * torch.randn(100, 4, generator=generator)
    values = {
        "brightness": torch.full((100,), grey / 255).double(),
        "saturated": torch.full((100,), float(grey == 255)).double(),
        "class_accuracy": torch.arange(100) < 100 * right,
        "diversity.classifier": diversity_within_classes(features, LABELS).values,
        "frechet.classifier": torch.full((100,), distance),
    }
    return Scores(metrics={}, values=values, notes=[])


def claims(scores: dict[float, Scores]) -> dict[str, Claim]:
    of_plain = {("cfg", scale): one for scale, one in scores.items()}
    evidence = Evidence(scores=of_plain, labels=LABELS, real=REAL)
    return {claim.key: claim for claim in scale_claims(evidence)}


REAL = {"diversity.classifier": Estimate(value=1.0), "brightness": Estimate(value=0.4)}


def test_claims_on_scales_follow_the_images() -> None:
    """As the paper says, and the opposite."""
    as_claimed = {
        0.0: scored(0.1, 3.0, 100, 9.0),
        2.0: scored(0.6, 2.0, 110, 3.0),
        5.0: scored(0.8, 1.0, 150, 6.0),
        10.0: scored(0.95, 0.2, 255, 9.0),
    }
    assert {claim.verdict for claim in claims(as_claimed).values()} == {"held"}
    opposite = {
        0.0: scored(0.9, 0.2, 255, 3.0),
        2.0: scored(0.9, 0.2, 255, 3.0),
        5.0: scored(0.5, 0.2, 150, 2.0),
        10.0: scored(0.1, 0.2, 100, 1.0),
    }
    assert {claim.verdict for claim in claims(opposite).values()} == {"not held"}


def test_what_was_not_sampled_is_not_decidable() -> None:
    two = {2.0: scored(0.6, 2.0, 110), 10.0: scored(0.9, 1.0, 200)}
    found = claims(two)
    assert found["quality_best_at_2"].verdict == "not decidable here"
    assert "w = 0, 5" in found["quality_best_at_2"].sentence
    assert found["brightness_rises"].verdict == "held"
    assert claims({}) == {}


def test_the_command_measures_every_form_and_goes_on(
    sfumato: Sfumato, small_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "guidance"
    command = (
        *("guidance", str(small_run), "--count", "30", "--scales", "0,1,2,5,10", "--steps", "2"),
        *("--guidance-form", "apg", "--guidance-form", "autoguidance", "--out", str(out)),
    )
    found = sfumato(*command)
    assert found.code == 0, found.err
    table, _, choice = found.out.partition("Recommended:")
    assert choice
    _, header, rows = table.partition("accuracy")
    assert header
    assert all(len(line) <= 80 for line in rows.splitlines())
    card = FormsCard.read(out)
    sampled = [(row.label, row.guidance_scale) for row in card.rows]
    assert sampled == [
        *(("cfg", scale) for scale in (0, 1, 2, 5, 10)),
        *((row.label, scale) for row in card.rows[5:6] for scale in (2, 5, 10)),
        *((row.label, scale) for row in card.rows[8:9] for scale in (2, 5, 10)),
    ]
    assert {row.form.partition(":")[0] for row in card.rows} == {"cfg", "apg", "autoguidance"}
    assert [row.nfe for row in card.rows[:3]] == [2, 2, 4]
    assert len(card.claims) == 5
    for name in ("guidance.png", "examples.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 300
    assert "| real test images |" in (out / "guidance.md").read_text()
    before = json.loads((out / "guidance.json").read_text())
    assert "From the cache" in sfumato(*command).out
    assert json.loads((out / "guidance.json").read_text()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--count", "12"], "Give --count 30 or more"),
        (["--scales", "0,1"], "forms differ at scales other than 0 and 1"),
        (["--guidance-form", "apq"], "Did you mean 'apg'? ->"),
        (["--steps", "0"], "equal to 1"),
        (["--scales", "1,1e300"], "not between 0 and 1000"),
        (["--seed", "-5"], "equal to 0"),
    ],
)
def test_bad_input_is_answered(
    sfumato: Sfumato, small_run: Path, tmp_path: Path, arguments, message
) -> None:
    found = sfumato("guidance", str(small_run), *arguments, "--out", str(tmp_path / "out"))
    assert found.code == 2
    assert not (tmp_path / "out").exists()
    assert message in " ".join(found.err.split())
