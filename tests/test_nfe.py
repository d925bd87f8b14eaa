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
from sfumato.studies.nfe_curve import NfeConfig, settings_of, usual_samplers, with_nfe


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
        (one.sampler, one.asked, one.model.sampling.steps) for one in settings_of(edm, (), config)
    ]
    assert found == [("Euler", 2, 1), ("Euler", 4, 2), ("Heun", 2, 1)]


def test_what_is_refused(model: Model, refused) -> None:
    with refused(InputError):
        settings_of(model, (), NfeConfig(nfe=(1,)))  # guidance takes two
    with refused(InputError):
        settings_of(model, (model,), NfeConfig(nfe=(2,)))


def test_the_command(sfumato, small_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "curve"
    arguments = ("nfe", str(small_run), "--count", "30", "--out", str(out))
    done = sfumato(*arguments, "--nfe", "4,2")
    assert done.code == 0, done.err
    card = json.loads((out / "nfe.json").read_text())
    assert [(one["sampler"], one["nfe"]) for one in card["points"]] == [
        *(("DPMSolver++", 2), ("DPMSolver++", 4)),
        *(("DDIM", 2), ("DDIM", 4)),
    ]
    assert sfumato(*arguments, "--nfe", "4,two").code == 2
