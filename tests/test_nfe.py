"""`sfumato nfe`: as many steps as a number of network evaluations allows, on the same seeds."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sfumato.base.errors import InputError
from sfumato.diffusion.process import Preconditioned, RectifiedFlow
from sfumato.diffusion.solvers.registry import Sampling
from sfumato.generation.loading import load
from sfumato.generation.model import Model
from sfumato.studies.nfe_curve import (
    NfeConfig,
    chart,
    lines_of,
    markdown,
    measure_nfe,
    settings_of,
    usual_samplers,
    with_nfe,
)


@pytest.fixture(scope="module")
def model(small_run: Path) -> Model:
    return load(small_run, device="cpu").with_(guidance=2.0)


@pytest.mark.parametrize(("guidance", "calls"), [(1.0, 1), (2.0, 2)])
def test_the_most_steps_that_need_no_more(model: Model, guidance: float, calls: int) -> None:
    guided = model.with_(guidance=guidance, sampler="DDIM")
    for nfe in (2, 4, 6, 9):
        fitting = with_nfe(guided, nfe)
        assert fitting is not None
        assert fitting.sampling.steps == nfe // calls
    assert (with_nfe(guided, 1) is None) == (calls > 1)
    heun = with_nfe(guided.with_(sampler="Heun"), 9 * calls)
    assert heun is not None
    assert heun.sampling.steps == 5  # 2 N - 1 evaluations


def test_samplers_are_those_of_the_process(model: Model) -> None:
    sampling = Sampling(sampler="Euler", guidance_scale=2.0)
    edm = replace(model, process=Preconditioned(), sampling=sampling)
    assert usual_samplers(model) == ["DPMSolver++", "DDIM"]
    assert usual_samplers(edm) == ["Euler", "Heun"]
    assert usual_samplers(replace(edm, process=RectifiedFlow())) == ["Euler", "Heun"]
    config = NfeConfig(nfe=(4, 2), samplers=tuple(usual_samplers(edm)))
    found = [
        (one.name, one.asked, one.model.sampling.steps) for one in settings_of(edm, {}, config)
    ]
    assert found == [("Euler", 2, 1), ("Euler", 4, 2), ("Heun", 2, 1)]


def test_what_is_refused(model: Model, refused) -> None:
    with refused(InputError):
        settings_of(model, {}, NfeConfig(nfe=(1,)))  # guidance takes two
    with refused(InputError):
        settings_of(model, {"runs/other": model}, NfeConfig(nfe=(2,)))


def student(model: Model, *, low: float, high: float, nfe: int = 2) -> Model:
    """The model as a student would be sampled; its pictures mean nothing."""
    guidance = f"folded:nfe={nfe},low={low},high={high}"
    own = Sampling(sampler="DDIM", steps=nfe, guidance=guidance, guidance_scale=low)
    return replace(model, sampling=own)


def test_students_are_sampled_at_the_models_scale_where_they_take_it(model: Model) -> None:
    students = {
        "range": student(model, low=1, high=3),
        "other": student(model, low=2.5, high=3),
        "fixed": student(model, low=1.25, high=1.25),
    }
    found = settings_of(model, students, NfeConfig(nfe=(2,), samplers=("DDIM",)))
    scales = {one.name: one.model.sampling.guidance_scale for one in found}
    assert scales == {"DDIM": 2.0, "range": 2.0, "other": 2.5, "fixed": 1.25}


def test_students_of_one_number_of_evaluations_stay_apart(model: Model, tmp_path: Path) -> None:
    config = NfeConfig(nfe=(2,), samplers=("DDIM",), count=30)
    students = {"a/nfe-2": student(model, low=1, high=3), "b/nfe-2": student(model, low=1, high=1)}
    card = measure_nfe(model, students, config, base=tmp_path / "curve")
    lines = {name: [one.nfe for one in own] for name, own in lines_of(card).items()}
    assert lines == {"DDIM": [2], "a/nfe-2": [2], "b/nfe-2": [2]}
    assert card.how == "cfg at w = 2, but b/nfe-2 at its own w = 1"
    assert "| a/nfe-2 |" in markdown(card)
    assert f"{card.how};" in markdown(card)
    assert chart(card).startswith(b"\x89PNG")
    assert measure_nfe(model, students, config, base=tmp_path / "curve").from_cache


def test_a_card_of_other_images_is_another(model: Model, tmp_path: Path) -> None:
    """Of another timestep spacing, and of a student at another scale."""
    config = NfeConfig(nfe=(4,), samplers=("DDIM",), count=30)
    other = student(model, low=1, high=1)
    first = measure_nfe(model, {"student": other}, config, base=tmp_path / "curve")
    leading = model.with_(timestep_spacing="leading")
    second = measure_nfe(leading, {"student": other}, config, base=tmp_path / "curve")
    others = {"student": student(model, low=1.5, high=1.5)}
    third = measure_nfe(model, others, config, base=tmp_path / "curve")
    assert len({first.folder, second.folder, third.folder}) == 3


def test_the_command(sfumato, small_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "curve"
    arguments = ("nfe", str(small_run), "--count", "30", "--out", str(out))
    done = sfumato(*arguments, "--nfe", "4,2,1")
    assert done.code == 0, done.err
    assert "No sampler has a row at 1" in done.out
    card = json.loads((out / "nfe.json").read_text())
    assert [(one["name"], one["nfe"]) for one in card["points"]] == [
        *(("DPMSolver++", 2), ("DPMSolver++", 4)),
        *(("DDIM", 2), ("DDIM", 4)),
    ]
    assert sfumato(*arguments, "--nfe", "4,two").code == 2
