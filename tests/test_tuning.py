"""The search for a setting: which candidates there are, how they are halved, what is chosen."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sfumato.base.errors import InputError
from sfumato.config.schema import load_experiment
from sfumato.diffusion.solvers.registry import Sampling
from sfumato.evaluation.metrics.intervals import Estimate
from sfumato.generation.loading import load
from sfumato.generation.model import Model
from sfumato.generation.runs import TUNED
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

CFG, INTERVAL = "cfg", "interval"


def score(name: float, accuracy: float, frechet: float) -> Score:
    sampling = Sampling(guidance_scale=name, sampler="DDIM", steps=5)
    return Score(
        candidate=Candidate(sampling=sampling, nfe=10),
        count=100,
        class_accuracy=Estimate(value=accuracy),
        frechet=Estimate(value=frechet),
        survived=1,
    )


A, B, C, D = score(1, 0.90, 1.0), score(2, 0.99, 2.0), score(3, 1.0, 3.0), score(5, 0.98, 4.0)


def names(scores: list[Score]) -> list[float]:
    return [one.candidate.sampling.guidance_scale for one in scores]


def test_the_front_is_what_nothing_beats_in_both() -> None:
    assert names(nondominated([A, B, C, D])) == [1, 2, 3]
    assert names(ranking([D, C, B, A], "front")) == [1, 2, 3, 5]
    assert names(ranking([A, B, C, D], "accuracy")) == [3, 2, 5, 1]
    assert names(ranking([D, C, B, A], "frechet")) == [1, 2, 3, 5]


def test_the_choice_is_the_closest_of_those_that_are_accurate_enough() -> None:
    assert choice_of([A, B, C, D], "accuracy") is C
    assert choice_of([A, B, C, D], "frechet") is A
    assert choice_of([A, B, C, D], "front") is B  # within 0.01 of the best
    assert choice_of([A, B, C, D], "front", least_accuracy=0.9) is A
    assert choice_of([A, D], "front", least_accuracy=0.999) is D


def test_rounds_spend_the_budget_on_ever_fewer_candidates(refused) -> None:
    rounds = rounds_of(8, 3000, least=64)
    assert [left for left, _ in rounds] == [8, 4, 2]
    assert all(count % 32 == 0 for _, count in rounds)
    sampled, before = 0, 0
    for left, count in rounds:
        sampled += left * (count - before)
        before = count
    assert 2000 < sampled <= 3000
    assert rounds_of(1, 100, least=64) == [(1, 96)]
    with refused(InputError):
        rounds_of(8, 500, least=64)


def test_candidates_have_as_many_steps_as_their_nfe_allows(small_model: Model, refused) -> None:
    found = candidates_of(
        small_model,
        scales=(0, 1, 3),
        forms=(CFG, INTERVAL),
        samplers=("DDIM", "Heun"),
        nfe=20,
    )
    steps = {
        (one.sampling.sampler, one.sampling.guidance_scale, one.sampling.form.form): (
            one.sampling.steps,
            one.nfe,
        )
        for one in found
    }
    assert len(found) == 8  # at w = 0 and 1 the forms are one
    assert steps["DDIM", 1, "cfg"] == (20, 20)
    assert steps["DDIM", 3, "cfg"] == (10, 20)
    assert steps["Heun", 1, "cfg"] == (10, 19)
    assert steps["DDIM", 3, "interval"][0] > 10
    for one in found:
        model = replace(small_model, sampling=one.sampling)
        assert model.sample("A handwritten digit 1", 0).nfe == one.nfe <= 20
    with refused(InputError):
        candidates_of(small_model, scales=(3,), forms=(CFG,), samplers=("DDIM",), nfe=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune") / "run"
    settings = [*SMALL, "model.block_out_channels=[8,16]", "training.images=640"]
    settings.append("training.averaging.also_halflives_images=[50]")
    run_experiment(load_experiment("digits", settings), folder)
    return folder


@pytest.mark.slow
def test_a_tuned_run_samples_with_the_choice(sfumato, run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    ask = ("tune", str(folder), "--scales", "1,3", "--averages", "--budget", "600", "--nfe", "8")
    result = sfumato(*ask)
    assert result.code == 0, result.err
    record = json.loads((folder / "tuning" / "tuning.json").read_text())
    chosen = record["choice"]
    assert record["images"] <= 600
    assert len(record["scores"]) == 4
    assert chosen["nfe"] <= 8
    assert (folder / "tuning" / "front.png").read_bytes().startswith(b"\x89PNG")
    model = load(folder, device="cpu")
    assert model.provenance["average"] == chosen["average"]
    assert model.sampling.guidance_scale == chosen["guidance_scale"]
    assert model.sampling.steps == chosen["steps"]
    # What lies in the folder is not sampled again, and gives the same.
    features = sorted((folder / "tuning" / "images").rglob("*.safetensors"))
    assert features
    before = [file.stat().st_mtime_ns for file in features]
    assert sfumato(*ask).code == 0
    assert [file.stat().st_mtime_ns for file in features] == before
    assert json.loads((folder / "tuning" / "tuning.json").read_text())["scores"] == record["scores"]
    (folder / TUNED).unlink()
    own = load(folder, device="cpu")
    assert own.provenance["average"] == "average"


def test_another_average_is_other_weights(run: Path, refused) -> None:
    model, other = load(run, device="cpu"), load(run, device="cpu", average="average-50")
    assert other.provenance["average"] == "average-50"
    assert other.provenance["weights_sha256"] != model.provenance["weights_sha256"]
    first, second = model.network.state_dict(), other.network.state_dict()
    assert any(not torch.equal(first[name], second[name]) for name in first)
    with refused(InputError):
        load(run, device="cpu", average="average-1000")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--for", "agrement"], "accuracy"),
        (["--at-least", "98"], "less than or equal to 1"),
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
    result = sfumato("tune", str(run / "model"))
    assert result.code == 2
    assert "Give the folder of the run" in result.err
