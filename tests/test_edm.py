"""Continuous noise levels: EDM's preconditioning, densities of levels, and its solvers."""

import math

import pytest
import torch

from sfumato.base.errors import ConfigError
from sfumato.config.schema import load_experiment
from sfumato.diffusion.process import (
    PREDICTIONS,
    Preconditioned,
    Process,
    RectifiedFlow,
    process_from_dict,
)
from sfumato.diffusion.solvers.build import build_solver
from sfumato.diffusion.solvers.registry import Sampling
from sfumato.generation.loading import load
from sfumato.methods.registry import run_experiment
from tests.test_sampling import NORMAL, exact_solution, ideal_x0, root_mean_square, slopes_of

EDM = Preconditioned()
TIMES = torch.tensor([0.01, 0.2, 0.5, 0.9, 0.999], dtype=torch.float64)
CLOSE = {"rtol": 1e-9, "atol": 1e-12}


def drawn(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 5, 3, 4, 4, generator=generator, dtype=torch.float64)


# The process --------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", [0.3, 0.5, 1.0, 2.0])
def test_preconditioning_is_that_of_the_paper(c: float) -> None:
    """Karras et al. 2022, Table 1, last column, in y = x0 + sigma eps."""
    process = Preconditioned(sigma_data=c)
    x0, eps, output = drawn(3)
    sigma = process.noise_level(TIMES)[:, None, None, None]
    y = x0 + sigma * eps
    c_skip, c_out = c**2 / (sigma**2 + c**2), sigma * c / (sigma**2 + c**2).sqrt()
    c_in = 1 / (sigma**2 + c**2).sqrt()
    x_t = process.add_noise(x0, eps, TIMES)
    torch.testing.assert_close(x_t, y / (1 + sigma**2).sqrt(), **CLOSE)
    torch.testing.assert_close(process.network_input(x_t, TIMES), c_in * y, **CLOSE)
    torch.testing.assert_close(process.target(x0, eps, TIMES), (x0 - c_skip * y) / c_out, **CLOSE)
    torch.testing.assert_close(process.x0(output, x_t, TIMES), c_skip * y + c_out * output, **CLOSE)
    # Eq. 8: the weight of the error of x0 is 1 / c_out^2.
    ratio = process.error_ratio(process.snr(TIMES))
    torch.testing.assert_close(ratio, (1 / c_out**2).flatten(), **CLOSE)


def test_target_and_input_have_variance_one() -> None:
    c, generator = 0.5, torch.Generator().manual_seed(0)
    x0 = c * torch.randn(1, 1, 300, 300, generator=generator)
    eps = torch.randn(1, 1, 300, 300, generator=generator)
    for t in TIMES[:, None]:
        x_t = EDM.add_noise(x0, eps, t)
        assert float(EDM.network_input(x_t, t).std()) == pytest.approx(1, abs=0.02)
        assert float(EDM.target(x0, eps, t).std()) == pytest.approx(1, abs=0.02)


def test_at_c_one_it_is_v() -> None:
    x0, eps = drawn(2)
    process = Preconditioned(sigma_data=1.0)
    a, s = process.signal_and_noise(TIMES, x0)
    v = PREDICTIONS["v_prediction"].target(x0, eps, a, s)
    torch.testing.assert_close(process.target(x0, eps, TIMES), -v, **CLOSE)
    x_t = process.add_noise(x0, eps, TIMES)
    torch.testing.assert_close(process.network_input(x_t, TIMES), x_t, **CLOSE)


def test_a_uniform_flow_weighs_as_v_with_uniform_t_times_half_pi() -> None:
    """Effective weight of the error of x0 per d ln sigma: density times error ratio."""
    sigma = torch.logspace(-2, 2, 41, dtype=torch.float64)

    def weight(process: Process) -> torch.Tensor:
        log = sigma.log().requires_grad_(True)
        t = process.time_of(log.exp())
        slope = torch.autograd.grad(t.sum(), log)[0]  # uniform t: the density of ln sigma
        return slope * process.error_ratio(process.snr(t.detach()))

    flow, v = weight(RectifiedFlow()), weight(Preconditioned(sigma_data=1.0))
    torch.testing.assert_close(flow, 1 / sigma, **CLOSE)
    torch.testing.assert_close(flow / v, torch.full_like(sigma, math.pi / 2), **CLOSE)


@pytest.mark.parametrize("process", [RectifiedFlow(), EDM], ids=lambda one: one.process)
def test_time_of_a_noise_level(process) -> None:
    sigma = torch.logspace(-3, 3, 13, dtype=torch.float64)
    torch.testing.assert_close(
        process.noise_level(process.time_of(sigma)), sigma, rtol=1e-8, atol=0
    )


@pytest.mark.parametrize("kind", [RectifiedFlow, Preconditioned])
def test_densities_by_their_quantiles(kind) -> None:
    shares = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
    normal = torch.special.ndtri(shares.double()).float()

    def quantiles(**settings) -> torch.Tensor:
        process = kind(**settings)
        t = process.draw_t(100_000, torch.Generator().manual_seed(0))
        assert bool(((t > 0) & (t <= 1)).all())
        return t.quantile(shares)

    close = {"rtol": 0, "atol": 0.01}
    torch.testing.assert_close(quantiles(density="uniform"), shares, **close)
    law = {"density_mean": 0.4, "density_std": 0.8}
    logit = (0.4 + 0.8 * normal).sigmoid()
    torch.testing.assert_close(quantiles(density="logit_normal", **law), logit, **close)
    level = kind().time_of((0.4 + 0.8 * normal).exp())
    torch.testing.assert_close(quantiles(density="log_normal", **law), level, **close)


def test_for_a_flow_logit_normal_and_log_normal_are_one_law() -> None:
    """t / (1 - t) is s / a."""
    one, other = (
        RectifiedFlow(density=kind).draw_t(50, torch.Generator().manual_seed(0))
        for kind in ("logit_normal", "log_normal")
    )
    torch.testing.assert_close(one, other)


def test_written_and_read_back() -> None:
    process = Preconditioned(sigma_data=0.4, density="logit_normal")
    assert process_from_dict(process.to_dict()) == process


@pytest.mark.parametrize(
    "setting",
    [
        "diffusion.sigma_data=0",
        "diffusion.density_std=-1",
        "diffusion.density=beta",
        "sampling.sampler=DPMSolver++",
        "sampling.timestep_spacing=linspace",
    ],
)
def test_what_is_refused(setting: str, refused) -> None:
    given = ["diffusion.process=edm", "sampling.sampler=Heun"]
    assert load_experiment("digits", given).diffusion == EDM
    with refused(ConfigError):
        load_experiment("digits", [*given, setting])


# Solvers ------------------------------------------------------------------------------------------


def test_euler_is_the_scheduler_of_diffusers() -> None:
    from diffusers import EDMEulerScheduler

    scheduler = EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5)
    scheduler.set_timesteps(7)
    solver = build_solver(EDM, Sampling(sampler="Euler", steps=7))
    a, _ = EDM.scales(solver.times[0])
    x_t = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    theirs = (x_t / a).float()
    for index, t in enumerate(scheduler.timesteps):
        scheduler.scale_model_input(theirs, t)
        output = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(index))
        x0 = scheduler.precondition_outputs(theirs, output, scheduler.sigmas[index])
        theirs = scheduler.step(output, t, theirs).prev_sample
        x_t = solver.step(x0.double(), x_t, index=index)
    torch.testing.assert_close(x_t, theirs.double(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("name", "order"), [("Euler", 0.9), ("Heun", 1.7)])
def test_order_of_convergence_on_a_gaussian(name: str, order: float) -> None:
    def error(steps: int) -> float:
        solver = build_solver(EDM, Sampling(sampler=name, steps=steps))
        x_t = exact_solution(EDM, solver.times[0])
        for index, t in enumerate(solver.times):
            x_t = solver.step(ideal_x0(EDM, x_t, t), x_t, index=index)
        return root_mean_square(x_t - exact_solution(EDM, torch.zeros((), dtype=torch.float64)))

    assert NORMAL.dtype == torch.float64
    slopes = slopes_of(error, [20, 30, 40, 60, 120])
    assert min(slopes) >= order, slopes


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("name", ["Euler", "Heun"])
def test_the_last_step_is_x0_exactly(name: str, steps: int) -> None:
    solver = build_solver(EDM, Sampling(sampler=name, steps=steps))
    x_t, x0 = torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for index in range(len(solver.times)):
        x_t = solver.step(x0, x_t, index=index)
    torch.testing.assert_close(x_t, x0, rtol=0, atol=0)


@pytest.mark.slow
def test_a_run_trains_samples_and_is_exported(tmp_path) -> None:
    from sfumato.generation.pipeline import TextToImagePipeline
    from tests.conftest import SMALL

    settings = ["diffusion.process=edm", "sampling.sampler=Heun", "training.images=64"]
    run_experiment(load_experiment("digits", [*SMALL, *settings]), tmp_path / "run", device="cpu")
    model = load(tmp_path / "run", device="cpu").with_(steps=3)
    found = model.sample("A handwritten digit 3", range(2))
    assert found.nfe == 10  # two calls a step but the last, both with guidance
    assert bool(found.x0.isfinite().all())
    model.export(tmp_path / "model")
    pipe = TextToImagePipeline.from_pretrained(tmp_path / "model")
    images = pipe(
        "A handwritten digit 3", num_images_per_prompt=2, seeds=[0, 1], output_type="uint8"
    )
    assert torch.equal(images.images, found.tensor)
