"""Noise schedules under their diffusers names, and the forward process (Section 3.2.4, step 4)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sfumato.base.section import Count, Fraction, Section

BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
PredictionType = Literal["epsilon", "v_prediction", "sample"]


class DiffusionConfig(Section):
    """The forward process and what the network is asked to predict."""

    beta_schedule: BetaSchedule = "linear"
    """Noise schedule by its diffusers name."""
    num_train_timesteps: Count = 1000
    """T, the number of noise levels."""
    beta_start: Fraction = 1e-4
    """First beta of the linear schedules (not used by squaredcos_cap_v2)."""
    beta_end: Fraction = 0.02
    """Last beta of the linear schedules (not used by squaredcos_cap_v2)."""
    prediction_type: PredictionType = "epsilon"
    """What the network predicts: the noise (the paper), v, or the clean image."""
    rescale_zero_terminal_snr: bool = False
    """Bend the schedule so that the last noise level is pure noise (Lin et al. 2023)."""


def linear_betas(config: DiffusionConfig) -> Tensor:
    """DDPM, Ho et al. 2020, Section 4."""
    return torch.linspace(
        config.beta_start, config.beta_end, config.num_train_timesteps, dtype=torch.float64
    )


def scaled_linear_betas(config: DiffusionConfig) -> Tensor:
    """Latent diffusion, Rombach et al. 2022: linear in sqrt(beta)."""
    start, end = math.sqrt(config.beta_start), math.sqrt(config.beta_end)
    return torch.linspace(start, end, config.num_train_timesteps, dtype=torch.float64).square()


def squared_cosine_betas(config: DiffusionConfig) -> Tensor:
    """Improved DDPM, Nichol and Dhariwal 2021, Eq. 17, betas capped at 0.999."""

    def alpha_bar(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    steps = config.num_train_timesteps
    ratios = [alpha_bar((i + 1) / steps) / alpha_bar(i / steps) for i in range(steps)]
    return torch.tensor([min(1 - ratio, 0.999) for ratio in ratios], dtype=torch.float64)


BETA_SCHEDULES: dict[str, Callable[[DiffusionConfig], Tensor]] = {
    "linear": linear_betas,
    "scaled_linear": scaled_linear_betas,
    "squaredcos_cap_v2": squared_cosine_betas,
}


def rescaled_to_zero_terminal_snr(alpha_bar: Tensor) -> Tensor:
    """sqrt(alpha_bar) shifted to end at 0 and scaled to start where it did; (T,) to (T,).

    Lin et al. 2023, Algorithm 1; the `rescale_betas_zero_snr` of diffusers.
    """
    root = alpha_bar.sqrt()
    return ((root - root[-1]) * (root[0] / (root[0] - root[-1]))).square()


@dataclass(frozen=True)
class NoiseSchedule:
    """A variance-preserving forward process with T noise levels.

    `alpha_bar`: (T,) float64, strictly falling in [0, 1), 0 at the last level only; index t is an
    integer timestep.
    """

    alpha_bar: Tensor

    @classmethod
    def from_config(cls, config: DiffusionConfig) -> "NoiseSchedule":
        alpha_bar = torch.cumprod(1 - BETA_SCHEDULES[config.beta_schedule](config), dim=0)
        if config.rescale_zero_terminal_snr:
            alpha_bar = rescaled_to_zero_terminal_snr(alpha_bar)
        return cls(alpha_bar)

    @property
    def num_train_timesteps(self) -> int:
        return len(self.alpha_bar)

    @property
    def sigma(self) -> Tensor:
        """(T,) float64, rising: sqrt((1 - alpha_bar) / alpha_bar), the noise on an unscaled x0.

        The noise level of EDM, Karras et al. 2022.
        """
        return ((1 - self.alpha_bar) / self.alpha_bar).sqrt()

    def snr(self, t: Tensor) -> Tensor:
        """Signal-to-noise ratio alpha_bar / (1 - alpha_bar) at integer `t` (any shape), float64."""
        alpha_bar = self.alpha_bar[t.cpu()]
        return alpha_bar / (1 - alpha_bar)

    def signal_and_noise_scale(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t), each (B, 1, ..., 1), float32 beside `like`.

        `t`: (B,) or () integer; `like`: (B, ...). The square roots are taken in float64.
        """
        alpha_bar = self.alpha_bar[t.cpu()].reshape(-1, *[1] * (like.ndim - 1))
        signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        return signal.to(like.device, dtype), noise.to(like.device, dtype)

    def add_noise(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t = sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) eps  (DDPM, Ho et al. 2020, Eq. 4).

        `x0`, `eps`: (B, C, H, W); `t`: (B,) integer in [0, T).
        """
        signal, noise = self.signal_and_noise_scale(t, x0)
        return signal * x0 + noise * eps
