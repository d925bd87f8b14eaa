"""The search for a setting: which candidates there are, how they are halved, what is chosen."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from sfumato.base.errors import InputError
from sfumato.config.schema import load_experiment
from sfumato.diffusion.guidance import GuidanceConfig
from sfumato.evaluation.card import Figure
from sfumato.generation.model import TUNED, ImageGenerator
from sfumato.methods.registry import run_experiment
from sfumato.studies.tuning import (
    Candidate,
    Score,
    candidates_of,
    choice_of,
    nondominated,
    ranking,
    rounds_of,
)
from tests.conftest import SMALL

CFG, INTERVAL = GuidanceConfig.parse("cfg"), GuidanceConfig.parse("interval")


def score(name: float, agreement: float, frechet: float) -> Score:
    candidate = Candidate(guidance_scale=name, guidance=CFG, scheduler="DDIM", steps=5, calls=10)
    return Score(
        candidate=candidate,
        count=100,
        agreement=Figure(value=agreement),
        frechet=Figure(value=frechet),
        survived=1,
    )


A, B, C, D = score(1, 0.90, 1.0), score(2, 0.99, 2.0), score(3, 1.0, 3.0), score(5, 0.98, 4.0)


def names(scores: list[Score]) -> list[float]:
    return [one.candidate.guidance_scale for one in scores]


def test_the_front_is_what_nothing_beats_in_both() -> None:
    assert names(nondominated([A, B, C, D])) == [1, 2, 3]
    assert names(ranking([D, C, B, A], "front")) == [1, 2, 3, 5]
    assert names(ranking([A, B, C, D], "agreement")) == [3, 2, 5, 1]
    assert names(ranking([D, C, B, A], "frechet")) == [1, 2, 3, 5]


def test_the_choice_is_the_closest_of_those_that_agree_enough() -> None:
    assert choice_of([A, B, C, D], "agreement") is C
    assert choice_of([A, B, C, D], "frechet") is A
    assert choice_of([A, B, C, D], "front") is B  # within 0.01 of the best
    assert choice_of([A, B, C, D], "front", least_agreement=0.9) is A
    assert choice_of([A, D], "front", least_agreement=0.999) is D


def test_rounds_spend_the_budget_on_ever_fewer_candidates() -> None:
    rounds = rounds_of(8, 3000, least=64)
    assert [left for left, _ in rounds] == [8, 4, 2]
    assert all(count % 32 == 0 for _, count in rounds)
    drawn, before = 0, 0
    for left, count in rounds:
        drawn += left * (count - before)
        before = count
    assert 2000 < drawn <= 3000
    assert rounds_of(1, 100, least=64) == [(1, 96)]
    with pytest.raises(InputError, match="--budget"):
        rounds_of(8, 500, least=64)


def test_candidates_have_as_many_steps_as_their_calls_allow(small_generator) -> None:
    found = candidates_of(
        small_generator,
        scales=(0, 1, 3),
        forms=(CFG, INTERVAL),
        schedulers=("DDIM", "Heun"),
        calls=20,
    )
    steps = {
        (one.scheduler, one.guidance_scale, one.guidance.form): (one.steps, one.calls)
        for one in found
    }
    assert len(found) == 8  # at w = 0 and 1 the forms are one
    assert steps["DDIM", 1, "cfg"] == (20, 20)
    assert steps["DDIM", 3, "cfg"] == (10, 20)
    assert steps["Heun", 1, "cfg"] == (10, 19)
    assert steps["DDIM", 3, "interval"][0] > 10
    for one in found:
        small_generator.use(scheduler=one.scheduler)
        drawn = next(
            iter(
                small_generator.draw(
                    ["A handwritten digit 1"],
                    [0],
                    guidance_scale=one.guidance_scale,
                    guidance=one.guidance,
                    steps=one.steps,
                )
            )
        )
        assert drawn.settings["calls"] == one.calls <= 20
    small_generator.use(scheduler="DDIM")
    with pytest.raises(InputError, match="too few for a step"):
        candidates_of(small_generator, scales=(3,), forms=(CFG,), schedulers=("DDIM",), calls=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune") / "run"
    settings = [*SMALL, "training.images=1600", "training.averaging.also_halflives_images=[50]"]
    run_experiment(load_experiment("digits", settings), folder)
    return folder


def test_a_tuned_run_is_drawn_with_the_choice(sfumato, run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    ask = ("tune", str(folder), "--scales", "1,3", "--averages", "--budget", "600", "--calls", "8")
    result = sfumato(*ask)
    assert result.code == 0, result.err
    record = json.loads((folder / "tuning" / "tuning.json").read_text())
    chosen = record["choice"]
    assert record["images"] <= 600
    assert len(record["scores"]) == 4
    assert chosen["calls"] <= 8
    assert (folder / "tuning" / "front.png").read_bytes().startswith(b"\x89PNG")
    generator = ImageGenerator.open(folder, device="cpu")
    assert generator.provenance["average"] == chosen["average"]
    assert generator.pipeline.config["guidance_scale"] == chosen["guidance_scale"]
    assert generator.pipeline.config["num_inference_steps"] == chosen["steps"]
    # What lies in the folder is not drawn again, and gives the same.
    features = sorted((folder / "tuning" / "features").rglob("*.safetensors"))
    before = [file.stat().st_mtime_ns for file in features]
    assert sfumato(*ask).code == 0
    assert [file.stat().st_mtime_ns for file in features] == before
    assert json.loads((folder / "tuning" / "tuning.json").read_text())["scores"] == record["scores"]
    (folder / TUNED).unlink()
    own = ImageGenerator.open(folder, device="cpu")
    assert own.provenance["average"] == "average"


def test_another_average_is_other_weights(run: Path) -> None:
    generator = ImageGenerator.open(run, device="cpu")
    first = generator.pipeline.unet.state_dict()
    sha = generator.provenance["weights_sha256"]
    generator.use_average("average-50")
    assert generator.provenance["average"] == "average-50"
    assert generator.provenance["weights_sha256"] != sha
    second = generator.pipeline.unet.state_dict()
    assert any(not torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(InputError, match="average, average-50"):
        generator.use_average("average-1000")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--for", "agrement"], "agreement"),
        (["--at-least", "98"], "no share"),
        (["--budget", "50"], "--budget"),
        (["--sampler", "Hein"], "Heun"),
        (["--scales", "1,x"], "not numbers"),
    ],
)
def test_what_is_asked_wrongly_is_answered_at_once(
    sfumato, run: Path, arguments: list[str], words: str
) -> None:
    result = sfumato("tune", str(run), *arguments)
    assert result.code == 2
    assert words in result.err
    assert not (run / TUNED).exists()


def test_a_pipeline_cannot_be_tuned(sfumato, run: Path) -> None:
    result = sfumato("tune", str(run / "pipeline"))
    assert result.code == 2
    assert "Give the folder of the run" in result.err
