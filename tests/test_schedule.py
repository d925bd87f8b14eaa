import diffusers
import pytest
import torch
from sfumato.diffusion.schedule import BETA_SCHEDULES, DiffusionConfig, NoiseSchedule
from sfumato.diffusion.targets import LOSS_WEIGHTS, eps_from_x0, predicted_x0, training_target

from sfumato.base.errors import ConfigError
from sfumato.diffusion.guidance import ClassifierFreeGuidance
from sfumato.diffusion.sampling import initial_noise, sample
from sfumato.diffusion.solvers.schedulers import (
    SAMPLERS,
    Sampler,
    build_scheduler,
    build_solver,
    diffusion_of,
)
from sfumato.generation.pipeline import generators_from_seeds
from tests.conftest import IdealDenoiser

PREDICTIONS = ["epsilon", "v_prediction", "sample"]


@pytest.mark.parametrize("name", sorted(BETA_SCHEDULES))
def test_alpha_bar_equals_diffusers_in_float64(name: str) -> None:
    ours = NoiseSchedule.from_config(DiffusionConfig(beta_schedule=name)).alpha_bar
    theirs = diffusers.DDPMScheduler(num_train_timesteps=1000, beta_schedule=name)
    # diffusers keeps betas in float32: their product in float64 carries 1000 roundings of 6e-8.
    torch.testing.assert_close(
        ours, torch.cumprod(1 - theirs.betas.double(), 0), rtol=1e-4, atol=1e-10
    )
    assert ours.dtype == torch.float64
    assert bool((ours.diff() < 0).all())


def test_squared_cosine_has_the_known_last_value() -> None:
    alpha_bar = NoiseSchedule.from_config(
        DiffusionConfig(beta_schedule="squaredcos_cap_v2")
    ).alpha_bar
    assert float(alpha_bar[-1]) == pytest.approx(2.4e-9, rel=0.02)


def test_snr_and_forward_process_in_closed_form() -> None:
    schedule = NoiseSchedule(torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64))
    t = torch.tensor([0, 2])
    torch.testing.assert_close(schedule.snr(t), torch.tensor([9.0, 1 / 9], dtype=torch.float64))
    x0 = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    eps = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = torch.stack(
        [0.9**0.5 * x0[0] + 0.1**0.5 * eps[0], 0.1**0.5 * x0[1] + 0.9**0.5 * eps[1]]
    )
    torch.testing.assert_close(schedule.add_noise(x0, eps, t), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", sorted(BETA_SCHEDULES))
def test_target_and_x0_are_inverse(name: str, prediction: str, dtype: torch.dtype) -> None:
    """t is (B,), x is (B, C, H, W) with B different from C, H and W, so that shapes cannot lie."""
    schedule = NoiseSchedule.from_config(DiffusionConfig(beta_schedule=name))
    generator = torch.Generator().manual_seed(0)
    x0 = torch.rand(5, 3, 4, 6, generator=generator, dtype=dtype) * 2 - 1
    eps = torch.randn(5, 3, 4, 6, generator=generator, dtype=dtype)
    t = torch.tensor([0, 10, 500, 900, 990])
    x_t = schedule.add_noise(x0, eps, t)
    target = training_target(x0, eps, t, schedule=schedule, prediction_type=prediction)
    back = predicted_x0(target, x_t, t, schedule=schedule, prediction_type=prediction)
    exact = dtype == torch.float64
    # eps divides by sqrt(alpha_bar): float32 loses what that amplifies.
    loose = 1e-2 if prediction == "epsilon" else 1e-5
    torch.testing.assert_close(back, x0, rtol=0, atol=1e-10 if exact else loose)
    if exact:
        torch.testing.assert_close(
            eps_from_x0(back, x_t, t, schedule=schedule), eps, rtol=0, atol=1e-8
        )


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_targets_equal_diffusers(prediction: str) -> None:
    scheduler = diffusers.DDPMScheduler(beta_schedule="linear", prediction_type=prediction)
    schedule = NoiseSchedule.from_config(DiffusionConfig(beta_schedule="linear"))
    generator = torch.Generator().manual_seed(3)
    x0, eps = (torch.randn(4, 1, 8, 8, generator=generator) for _ in range(2))
    t = torch.tensor([0, 100, 700, 999])
    torch.testing.assert_close(
        schedule.add_noise(x0, eps, t), scheduler.add_noise(x0, eps, t), rtol=1e-4, atol=1e-4
    )
    ours = training_target(x0, eps, t, schedule=schedule, prediction_type=prediction)
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
        weights = LOSS_WEIGHTS["min_snr"](snr, prediction, 5.0)
        torch.testing.assert_close(weights, torch.tensor(values, dtype=torch.float64))
        assert bool((LOSS_WEIGHTS["uniform"](snr, prediction, 5.0) == 1).all())


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_min_snr_is_the_same_loss_of_x0_for_every_prediction(prediction: str) -> None:
    """Weighted error of the output = min(SNR, gamma) times the error of the x0 it stands for."""
    schedule = NoiseSchedule.from_config(DiffusionConfig(beta_schedule="linear"))
    generator = torch.Generator().manual_seed(0)
    x0, eps, output = torch.randn(3, 5, 1, 4, 4, generator=generator, dtype=torch.float64)
    t = torch.tensor([0, 100, 300, 700, 999])
    x_t = schedule.add_noise(x0, eps, t)
    kind = {"schedule": schedule, "prediction_type": prediction}
    error = (output - training_target(x0, eps, t, **kind)).square().mean((1, 2, 3))
    x0_error = (predicted_x0(output, x_t, t, **kind) - x0).square().mean((1, 2, 3))
    snr = schedule.snr(t)
    weighted = LOSS_WEIGHTS["min_snr"](snr, prediction, 5.0) * error
    torch.testing.assert_close(weighted, snr.clamp(max=5) * x0_error, rtol=1e-9, atol=1e-12)


# Zero terminal SNR --------------------------------------------------------------------------------


def rescaled(name: str = "linear", prediction: str = "v_prediction") -> DiffusionConfig:
    return DiffusionConfig(
        beta_schedule=name, prediction_type=prediction, rescale_zero_terminal_snr=True
    )


@pytest.mark.parametrize("name", sorted(BETA_SCHEDULES))
def test_zero_terminal_snr_in_closed_form_and_as_in_diffusers(name: str) -> None:
    before = NoiseSchedule.from_config(DiffusionConfig(beta_schedule=name)).alpha_bar
    after = NoiseSchedule.from_config(rescaled(name)).alpha_bar
    assert after[-1] == 0
    assert float(after[0]) == pytest.approx(float(before[0]), rel=1e-12)
    assert bool((after.diff() < 0).all())
    steps = after.sqrt().diff() / before.sqrt().diff()  # one factor everywhere: shift and scale
    torch.testing.assert_close(steps, steps[:1].expand_as(steps), rtol=1e-6, atol=0)
    theirs = diffusers.DDPMScheduler(beta_schedule=name, rescale_betas_zero_snr=True)
    torch.testing.assert_close(after, theirs.alphas_cumprod.double(), rtol=1e-3, atol=1e-7)


def test_x0_is_finite_at_zero_snr_from_v_and_not_from_eps() -> None:
    schedule = NoiseSchedule.from_config(rescaled())
    t = torch.tensor([999])
    x_t, output = torch.randn(2, 1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    x0 = predicted_x0(output, x_t, t, schedule=schedule, prediction_type="v_prediction")
    torch.testing.assert_close(x0, -output)
    torch.testing.assert_close(eps_from_x0(x0, x_t, t, schedule=schedule), x_t)
    from_eps = predicted_x0(output, x_t, t, schedule=schedule, prediction_type="epsilon")
    assert not bool(torch.isfinite(from_eps).any())


def has_the_flag(name: str) -> bool:
    scheduler_class = getattr(diffusers, SAMPLERS[name].scheduler_class)
    return "rescale_betas_zero_snr" in scheduler_class().config


@pytest.mark.parametrize("name", [name for name in sorted(SAMPLERS) if has_the_flag(name)])
def test_samplers_start_at_zero_terminal_snr(name: str, digits8) -> None:
    config = rescaled()
    scheduler = build_scheduler(name, config)
    assert diffusion_of(scheduler) == config
    schedule = NoiseSchedule.from_config(config)
    ideal = IdealDenoiser(digits8, schedule)
    labels = torch.arange(10)
    generators = generators_from_seeds(range(10))
    cond = labels.float()[:, None, None]
    sampled = sample(
        ideal,
        build_solver(scheduler, steps=20, generators=generators),
        schedule=schedule,
        prediction_type="v_prediction",
        noise=initial_noise((1, 8, 8), generators),
        tokens={"cond": cond},
        guidance=ClassifierFreeGuidance(1.0),
        value_range=(-1.0, 1.0),
    )
    assert bool(torch.isfinite(sampled.x0).all())
    nearest = torch.cdist(sampled.x0.flatten(1).double(), ideal.images).argmin(1)
    assert bool((ideal.labels[nearest] == labels).all())


def test_a_sampler_without_the_flag_refuses_zero_terminal_snr(monkeypatch) -> None:
    monkeypatch.setitem(SAMPLERS, "Heun", Sampler(scheduler_class="HeunDiscreteScheduler"))
    assert diffusion_of(build_scheduler("Heun", DiffusionConfig())) == DiffusionConfig()
    with pytest.raises(ConfigError, match="cannot start at zero terminal SNR"):
        build_scheduler("Heun", rescaled())
