import diffusers
import pytest
import torch

from sfumato.diffusion.schedule import BETA_SCHEDULES, DiffusionConfig, NoiseSchedule
from sfumato.diffusion.targets import eps_from_x0, predicted_x0, training_target

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
