"""What the network predicts (eps, v or x0) and how each is turned into the others.

All conversions follow from x_t = a x0 + s eps with a = sqrt(alpha_bar_t) and
s = sqrt(1 - alpha_bar_t), so a^2 + s^2 = 1, and from v = a eps - s x0 (progressive distillation,
Salimans and Ho 2022, Appendix D).
"""

from collections.abc import Callable
from dataclasses import dataclass

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


def eps_from_x0(x0: Tensor, x_t: Tensor, t: Tensor, *, schedule: NoiseSchedule) -> Tensor:
    """The noise for which `x0` and `x_t` are consistent: (x_t - a x0) / s."""
    a, s = schedule.signal_and_noise_scale(t, x_t)
    return (x_t - a * x0) / s
