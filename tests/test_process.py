"""Forward processes: schedules, conversions and loss weights in closed form."""

import diffusers
import pytest
import torch

from sfumato.base.errors import ConfigError, InputError
from sfumato.config.schema import load_experiment
from sfumato.diffusion.guidance import ClassifierFreeGuidance
from sfumato.diffusion.process import (
    BETA_SCHEDULES,
    PROCESSES,
    Process,
    RectifiedFlow,
    VariancePreserving,
    process_from_dict,
)
from sfumato.diffusion.sampling import initial_noise, sample
from sfumato.diffusion.solvers.build import build_solver
from sfumato.diffusion.solvers.registry import SAMPLERS, Sampler, Sampling
from sfumato.diffusion.solvers.schedulers import belongs_to, build_scheduler
from sfumato.generation.model import generators_from_seeds
from tests.conftest import IdealDenoiser

PREDICTIONS = ["epsilon", "v_prediction", "sample"]
SCHEDULERS = SAMPLERS["variance_preserving"]
FLOW = RectifiedFlow()


def schedule_of(*alpha_bar: float, **settings) -> VariancePreserving:
    """A process with noise levels of our own."""
    process = VariancePreserving(num_train_timesteps=len(alpha_bar), **settings)
    vars(process)["alpha_bar"] = torch.tensor(alpha_bar, dtype=torch.float64)
    return process


@pytest.mark.parametrize("name", sorted(BETA_SCHEDULES))
def test_alpha_bar_equals_diffusers_in_float64(name: str) -> None:
    ours = VariancePreserving(beta_schedule=name).alpha_bar
    theirs = diffusers.DDPMScheduler(num_train_timesteps=1000, beta_schedule=name)
    # diffusers keeps betas in float32: their product in float64 carries 1000 roundings of 6e-8.
    torch.testing.assert_close(
        ours, torch.cumprod(1 - theirs.betas.double(), 0), rtol=1e-4, atol=1e-10
    )
    assert ours.dtype == torch.float64
    assert bool((ours.diff() < 0).all())


def test_squared_cosine_has_the_known_last_value() -> None:
    alpha_bar = VariancePreserving(beta_schedule="squaredcos_cap_v2").alpha_bar
    assert float(alpha_bar[-1]) == pytest.approx(2.4e-9, rel=0.02)


def test_snr_and_forward_process_in_closed_form() -> None:
    process = schedule_of(0.9, 0.5, 0.1)
    t = torch.tensor([0, 2])
    torch.testing.assert_close(process.snr(t), torch.tensor([9.0, 1 / 9], dtype=torch.float64))
    x0 = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    eps = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = torch.stack(
        [0.9**0.5 * x0[0] + 0.1**0.5 * eps[0], 0.1**0.5 * x0[1] + 0.9**0.5 * eps[1]]
    )
    torch.testing.assert_close(process.add_noise(x0, eps, t), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", sorted(BETA_SCHEDULES))
def test_target_and_x0_are_inverse(name: str, prediction: str, dtype: torch.dtype) -> None:
    """t is (B,), x is (B, C, H, W) with B different from C, H and W, so that shapes cannot lie."""
    process = VariancePreserving(beta_schedule=name, prediction_type=prediction)
    generator = torch.Generator().manual_seed(0)
    x0 = torch.rand(5, 3, 4, 6, generator=generator, dtype=dtype) * 2 - 1
    eps = torch.randn(5, 3, 4, 6, generator=generator, dtype=dtype)
    t = torch.tensor([0, 10, 500, 900, 990])
    x_t = process.add_noise(x0, eps, t)
    back = process.x0(process.target(x0, eps, t), x_t, t)
    exact = dtype == torch.float64
    # eps divides by sqrt(alpha_bar): float32 loses what that amplifies.
    loose = 1e-2 if prediction == "epsilon" else 1e-5
    torch.testing.assert_close(back, x0, rtol=0, atol=1e-10 if exact else loose)
    if exact:
        torch.testing.assert_close(process.eps(back, x_t, t), eps, rtol=0, atol=1e-8)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_targets_equal_diffusers(prediction: str) -> None:
    scheduler = diffusers.DDPMScheduler(beta_schedule="linear", prediction_type=prediction)
    process = VariancePreserving(beta_schedule="linear", prediction_type=prediction)
    generator = torch.Generator().manual_seed(3)
    x0, eps = (torch.randn(4, 1, 8, 8, generator=generator) for _ in range(2))
    t = torch.tensor([0, 100, 700, 999])
    torch.testing.assert_close(
        process.add_noise(x0, eps, t), scheduler.add_noise(x0, eps, t), rtol=1e-4, atol=1e-4
    )
    ours = process.target(x0, eps, t)
    theirs = {
        "epsilon": eps,
        "v_prediction": scheduler.get_velocity(x0, eps, t),
        "sample": x0,
    }[prediction]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


# Loss weights -------------------------------------------------------------------------------------


def test_min_snr_weights_in_closed_form() -> None:
    """gamma = 5 at SNR 0, 1/4, 5 and 20."""
    snr = torch.tensor([0, 0.25, 5, 20], dtype=torch.float64)
    expected = {
        "sample": [0, 0.25, 5, 5],
        "epsilon": [1, 1, 1, 5 / 20],
        "v_prediction": [0, 0.25 / 1.25, 5 / 6, 5 / 21],
    }
    for prediction, values in expected.items():
        process = schedule_of(*(snr / (1 + snr)).tolist(), prediction_type=prediction)
        t = torch.arange(4)
        weights = process.loss_weight(t, "min_snr", 5.0)
        torch.testing.assert_close(weights, torch.tensor(values, dtype=torch.float64))
        assert bool((process.loss_weight(t, "uniform", 5.0) == 1).all())


TIMES = {
    "variance_preserving": torch.tensor([0, 100, 300, 700, 999]),
    "rectified_flow": torch.tensor([0.01, 0.2, 0.5, 0.9, 0.999], dtype=torch.float64),
}


@pytest.mark.parametrize(
    "process",
    [*(VariancePreserving(prediction_type=prediction) for prediction in PREDICTIONS), FLOW],
    ids=lambda process: process.prediction_type,
)
def test_min_snr_is_the_same_loss_of_x0_for_every_prediction(process: Process) -> None:
    """Weighted error of the output = min(SNR, gamma) times the error of the x0 it stands for."""
    generator = torch.Generator().manual_seed(0)
    x0, eps, output = torch.randn(3, 5, 1, 4, 4, generator=generator, dtype=torch.float64)
    t = TIMES[process.process]
    x_t = process.add_noise(x0, eps, t)
    error = (output - process.target(x0, eps, t)).square().mean((1, 2, 3))
    x0_error = (process.x0(output, x_t, t) - x0).square().mean((1, 2, 3))
    weighted = process.loss_weight(t, "min_snr", 5.0) * error
    expected = process.snr(t).clamp(max=5) * x0_error
    torch.testing.assert_close(weighted, expected, rtol=1e-9, atol=1e-12)


# Rectified flow -----------------------------------------------------------------------------------


def test_rectified_flow_in_closed_form() -> None:
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 5, 3, 4, 6, generator=generator, dtype=torch.float64)
    t = TIMES["rectified_flow"]
    column = t[:, None, None, None]
    x_t = FLOW.add_noise(x0, eps, t)
    exact = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(x_t, (1 - column) * x0 + column * eps, **exact)
    velocity = FLOW.target(x0, eps, t)
    assert torch.equal(velocity, eps - x0)
    # The line through x0 and eps: its direction is the velocity, and it ends in both.
    torch.testing.assert_close(FLOW.x0(velocity, x_t, t), x_t - column * velocity, **exact)
    torch.testing.assert_close(FLOW.x0(velocity, x_t, t), x0, **exact)
    torch.testing.assert_close(FLOW.eps(x0, x_t, t), eps, rtol=0, atol=1e-12)
    torch.testing.assert_close(FLOW.snr(t), ((1 - t) / t).square(), **exact)
    torch.testing.assert_close(FLOW.noise_level(t), t / (1 - t), **exact)


def test_the_ends_of_a_rectified_flow() -> None:
    """Pure noise at t = 1, where the SNR is 0 and the x0 of the network is x_t - velocity."""
    t = torch.ones(1, dtype=torch.float64)
    x0, eps, output = torch.randn(3, 1, 1, 4, 4, dtype=torch.float64)
    assert torch.equal(FLOW.add_noise(x0, eps, t), eps)
    assert torch.equal(FLOW.x0(output, eps, t), eps - output)
    assert float(FLOW.snr(t)) == float(FLOW.loss_weight(t, "min_snr", 5.0)) == 0
    assert float(FLOW.noise_level(t)) == torch.inf


def test_times_of_a_rectified_flow_are_uniform_and_never_clean() -> None:
    t = FLOW.draw_t(100_000, torch.Generator().manual_seed(0))
    assert bool(((t > 0) & (t <= 1)).all())
    assert float(t.mean()) == pytest.approx(0.5, abs=0.005)
    assert float(t.var()) == pytest.approx(1 / 12, abs=0.002)
    network = FLOW.network_time(torch.tensor([0.001, 0.25, 1.0], dtype=torch.float64))
    assert network.dtype == torch.float32
    torch.testing.assert_close(network, torch.tensor([1.0, 250.0, 1000.0]))


@pytest.mark.parametrize("name", sorted(PROCESSES))
def test_a_process_is_written_and_read_back(name: str, refused) -> None:
    process = PROCESSES[name]()
    assert process_from_dict(process.to_dict()) == process
    assert process.to_dict()["process"] == name
    with refused(ValueError):
        process_from_dict({"process": "reversed"})


@pytest.mark.parametrize(
    "setting",
    [
        "sampling.sampler=DPMSolver++",
        "sampling.timestep_spacing=linspace",
        "diffusion.beta_schedule=linear",
        "diffusion.prediction_type=epsilon",
    ],
)
def test_what_a_rectified_flow_refuses(setting: str, refused) -> None:
    flow = ["diffusion.process=rectified_flow", "sampling.sampler=Heun"]
    assert load_experiment("digits", flow).diffusion == FLOW
    with refused(ConfigError):
        load_experiment("digits", [*flow, setting])
    with refused(InputError):
        build_solver(FLOW, Sampling(sampler="Euler", timestep_spacing="leading"))


# Zero terminal SNR --------------------------------------------------------------------------------


def rescaled(name: str = "linear", prediction: str = "v_prediction") -> VariancePreserving:
    return VariancePreserving(
        beta_schedule=name, prediction_type=prediction, rescale_zero_terminal_snr=True
    )


@pytest.mark.parametrize("name", sorted(BETA_SCHEDULES))
def test_zero_terminal_snr_in_closed_form_and_as_in_diffusers(name: str) -> None:
    before = VariancePreserving(beta_schedule=name).alpha_bar
    after = rescaled(name).alpha_bar
    assert after[-1] == 0
    assert float(after[0]) == pytest.approx(float(before[0]), rel=1e-12)
    assert bool((after.diff() < 0).all())
    steps = after.sqrt().diff() / before.sqrt().diff()  # one factor everywhere: shift and scale
    torch.testing.assert_close(steps, steps[:1].expand_as(steps), rtol=1e-6, atol=0)
    theirs = diffusers.DDPMScheduler(beta_schedule=name, rescale_betas_zero_snr=True)
    torch.testing.assert_close(after, theirs.alphas_cumprod.double(), rtol=1e-3, atol=1e-7)


def test_x0_is_finite_at_zero_snr_from_v_and_not_from_eps() -> None:
    process = rescaled()
    t = torch.tensor([999])
    x_t, output = torch.randn(2, 1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    x0 = process.x0(output, x_t, t)
    torch.testing.assert_close(x0, -output)
    torch.testing.assert_close(process.eps(x0, x_t, t), x_t)
    from_eps = rescaled(prediction="epsilon").x0(output, x_t, t)
    assert not bool(torch.isfinite(from_eps).any())


def has_the_flag(name: str) -> bool:
    scheduler_class = getattr(diffusers, SCHEDULERS[name].scheduler_class)
    return "rescale_betas_zero_snr" in scheduler_class().config


@pytest.mark.parametrize("name", [name for name in sorted(SCHEDULERS) if has_the_flag(name)])
def test_samplers_start_at_zero_terminal_snr(name: str, digits8) -> None:
    process = rescaled()
    assert belongs_to(build_scheduler(name, process), process)
    ideal = IdealDenoiser(digits8, process)
    labels = torch.arange(10)
    generators = generators_from_seeds(range(10))
    cond = labels.float()[:, None, None]
    sampled = sample(
        ideal,
        build_solver(process, Sampling(sampler=name, steps=20), generators=generators),
        process=process,
        noise=initial_noise((1, 8, 8), generators),
        tokens={"cond": cond},
        guidance=ClassifierFreeGuidance(1.0),
        x0_range=(-1.0, 1.0),
    )
    assert bool(torch.isfinite(sampled.x0).all())
    assert bool((ideal.nearest_labels(sampled.x0) == labels).all())


def test_a_sampler_without_the_flag_refuses_zero_terminal_snr(monkeypatch, refused) -> None:
    monkeypatch.setitem(SCHEDULERS, "Heun", Sampler(scheduler_class="HeunDiscreteScheduler"))
    assert belongs_to(build_scheduler("Heun", VariancePreserving()), VariancePreserving())
    with refused(ConfigError):
        build_scheduler("Heun", rescaled())
