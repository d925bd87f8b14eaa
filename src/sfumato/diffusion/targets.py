"""What the network predicts (eps, v or x0), how each is turned into the others, loss weights.

All conversions follow from x_t = a x0 + s eps with a = sqrt(alpha_bar_t) and
s = sqrt(1 - alpha_bar_t), so a^2 + s^2 = 1, and from v = a eps - s x0 (progressive distillation,
Salimans and Ho 2022, Appendix D).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sfumato.diffusion.schedule import NoiseSchedule, PredictionType


@dataclass(frozen=True)
class Prediction:
    """One kind of network output.

    Every function takes (first, second, a, s) with tensors that broadcast to (B, C, H, W).
    """

    target: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    """(x0, eps, a, s) to the training target."""
    x0: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    """(output, x_t, a, s) to the clean image."""


PREDICTIONS: dict[str, Prediction] = {
    "epsilon": Prediction(
        target=lambda x0, eps, a, s: eps,
        x0=lambda output, x_t, a, s: (x_t - s * output) / a,
    ),
    "v_prediction": Prediction(
        target=lambda x0, eps, a, s: a * eps - s * x0,
        x0=lambda output, x_t, a, s: a * x_t - s * output,
    ),
    "sample": Prediction(
        target=lambda x0, eps, a, s: x0,
        x0=lambda output, x_t, a, s: output,
    ),
}


def training_target(
    x0: Tensor, eps: Tensor, t: Tensor, *, schedule: NoiseSchedule, prediction_type: PredictionType
) -> Tensor:
    """The tensor that the network should output at x_t.

    `x0`, `eps`: (B, C, H, W) float; `t`: (B,) integer in [0, T). Returns (B, C, H, W).
    """
    a, s = schedule.signal_and_noise_scale(t, x0)
    return PREDICTIONS[prediction_type].target(x0, eps, a, s)


def predicted_x0(
    output: Tensor,
    x_t: Tensor,
    t: Tensor,
    *,
    schedule: NoiseSchedule,
    prediction_type: PredictionType,
) -> Tensor:
    """The clean image that a network output stands for; shapes as in `training_target`."""
    a, s = schedule.signal_and_noise_scale(t, x_t)
    return PREDICTIONS[prediction_type].x0(output, x_t, a, s)


LossWeight = Literal["uniform", "min_snr"]


def uniform_weight(snr: Tensor, prediction_type: PredictionType, gamma: float) -> Tensor:
    """1 at every noise level: the simple loss of DDPM, Ho et al. 2020, Eq. 14."""
    return torch.ones_like(snr)


def min_snr_weight(snr: Tensor, prediction_type: PredictionType, gamma: float) -> Tensor:
    """min(SNR, gamma) on the loss of x0, whatever the network predicts.

    Min-SNR-gamma, Hang et al. 2023, Section 3.4. The squared error of eps is SNR times that of
    x0, and the error of v is SNR + 1 times it, so their weights are divided by that.
    """
    kept = snr.clamp(max=gamma)
    weights: dict[str, Tensor] = {
        # min(SNR, gamma) / SNR, written so that SNR = 0 gives 1 and not 0 / 0
        "epsilon": (gamma / snr).clamp(max=1),
        "v_prediction": kept / (snr + 1),
        "sample": kept,
    }
    return weights[prediction_type]


LOSS_WEIGHTS: dict[str, Callable[[Tensor, PredictionType, float], Tensor]] = {
    "uniform": uniform_weight,
    "min_snr": min_snr_weight,
}
"""(SNR, prediction type, gamma) to the weight of the squared error of the network's output."""


def eps_from_x0(x0: Tensor, x_t: Tensor, t: Tensor, *, schedule: NoiseSchedule) -> Tensor:
    """The noise for which `x0` and `x_t` are consistent: (x_t - a x0) / s."""
    a, s = schedule.signal_and_noise_scale(t, x_t)
    return (x_t - a * x0) / s
