"""The forward process: how noise enters an image, and what the network predicts.

Every process is x_t = a(t) x0 + s(t) eps. A process is also the `diffusion` section of an
experiment and a JSON object in a saved model, so its fields are plain values. A new process is a
class and an entry in `PROCESSES`. This module imports torch only where tensors are made.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
LossWeight = Literal["uniform", "min_snr"]
Density = Literal["uniform", "logit_normal", "log_normal"]
STRICT = {"extra": "forbid", "use_attribute_docstrings": True, "allow_inf_nan": False}
"""How pydantic reads these dataclasses as sections of an experiment."""


@dataclass(frozen=True)
class Prediction:
    """One kind of network output, with its conversions.

    Every function takes tensors that broadcast to (B, C, H, W).
    """

    target: "Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]"
    """(x0, eps, a, s) to the training target."""
    x0: "Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]"
    """(output, x_t, a, s) to the clean image."""
    error_ratio: "Callable[[Tensor], Tensor]"
    """SNR to the squared error of the output divided by that of x0."""


PREDICTIONS: dict[str, Prediction] = {
    "epsilon": Prediction(
        target=lambda x0, eps, a, s: eps,
        x0=lambda output, x_t, a, s: (x_t - s * output) / a,
        error_ratio=lambda snr: snr,
    ),
    # v = a eps - s x0, progressive distillation, Salimans and Ho 2022, Appendix D
    "v_prediction": Prediction(
        target=lambda x0, eps, a, s: a * eps - s * x0,
        x0=lambda output, x_t, a, s: a * x_t - s * output,
        error_ratio=lambda snr: snr + 1,
    ),
    "sample": Prediction(
        target=lambda x0, eps, a, s: x0,
        x0=lambda output, x_t, a, s: output,
        error_ratio=lambda snr: snr.new_ones(()),
    ),
    # u = eps - x0, flow matching, Lipman et al. 2023; rectified flow, Liu et al. 2023
    "velocity": Prediction(
        target=lambda x0, eps, a, s: eps - x0,
        x0=lambda output, x_t, a, s: (x_t - s * output) / (a + s),
        error_ratio=lambda snr: (snr.sqrt() + 1).square(),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Process:
    """What every forward process shares; `t` is a (B,) or () tensor of its own kind of time."""

    process: str
    prediction_type: str
    __pydantic_config__ = STRICT

    def scales(self, t: "Tensor") -> "tuple[Tensor, Tensor]":
        """a(t) and s(t) in float64, of the shape and on the device of `t`."""
        raise NotImplementedError

    def draw_t(self, count: int, generator: "torch.Generator") -> "Tensor":
        """(count,) times of a training step on the CPU, from the law of t in training."""
        raise NotImplementedError

    def network_time(self, t: "Tensor") -> "Tensor":
        """`t` as the network takes it, on the scale 0 to 1000."""
        return t

    def network_input(self, x_t: "Tensor", t: "Tensor") -> "Tensor":
        """x_t (B, C, H, W) as the network takes it."""
        return x_t

    def error_ratio(self, snr: "Tensor") -> "Tensor":
        """The squared error of the network's output divided by that of x0."""
        return PREDICTIONS[self.prediction_type].error_ratio(snr)

    def signal_and_noise(self, t: "Tensor", like: "Tensor") -> "tuple[Tensor, Tensor]":
        """a(t) and s(t) as (B, 1, ..., 1) beside `like` (B, ...): float64 if `like` is, else
        float32."""
        import torch

        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        shape = (-1, *[1] * (like.ndim - 1))
        a, s = (scale.to(like.device, dtype).reshape(shape) for scale in self.scales(t))
        return a, s

    def snr(self, t: "Tensor") -> "Tensor":
        """Signal-to-noise ratio a^2 / s^2, float64."""
        a, s = self.scales(t)
        return a.square() / s.square()

    def noise_level(self, t: "Tensor") -> "Tensor":
        """s / a, float64: the noise on an unscaled x0 (the sigma of EDM, Karras et al. 2022)."""
        a, s = self.scales(t)
        return s / a

    def add_noise(self, x0: "Tensor", eps: "Tensor", t: "Tensor") -> "Tensor":
        """x_t = a x0 + s eps; `x0`, `eps`: (B, C, H, W)."""
        a, s = self.signal_and_noise(t, x0)
        return a * x0 + s * eps

    def target(self, x0: "Tensor", eps: "Tensor", t: "Tensor") -> "Tensor":
        """What the network should output at x_t, (B, C, H, W)."""
        a, s = self.signal_and_noise(t, x0)
        return PREDICTIONS[self.prediction_type].target(x0, eps, a, s)

    def x0(self, output: "Tensor", x_t: "Tensor", t: "Tensor") -> "Tensor":
        """The clean image (B, C, H, W) that a network output stands for."""
        a, s = self.signal_and_noise(t, x_t)
        return PREDICTIONS[self.prediction_type].x0(output, x_t, a, s)

    def eps(self, x0: "Tensor", x_t: "Tensor", t: "Tensor") -> "Tensor":
        """The noise for which `x0` and `x_t` are consistent: (x_t - a x0) / s."""
        a, s = self.signal_and_noise(t, x_t)
        return (x_t - a * x0) / s

    def loss_weight(self, t: "Tensor", kind: LossWeight, gamma: float) -> "Tensor":
        """(B,) float64: weight of the squared error of the network's output.

        `uniform`: 1 (DDPM, Ho et al. 2020, Eq. 14). `min_snr`: min(SNR, gamma) on the error of x0
        (Hang et al. 2023, Section 3.4), divided by the ratio of the errors of output and x0.
        """
        snr = self.snr(t)
        if kind == "uniform":
            return snr.new_ones(snr.shape)
        if self.prediction_type == "epsilon":
            return (gamma / snr).clamp(max=1)  # min(SNR, gamma) / SNR; 1 where SNR = 0
        return snr.clamp(max=gamma) / self.error_ratio(snr)

    def to_dict(self) -> dict[str, Any]:
        """The process as JSON; `process_from_dict` reads it."""
        return asdict(self)


def _linear_betas(start: float, end: float, steps: int) -> "Tensor":
    """DDPM, Ho et al. 2020, Section 4."""
    import torch

    return torch.linspace(start, end, steps, dtype=torch.float64)


def _scaled_linear_betas(start: float, end: float, steps: int) -> "Tensor":
    """Latent diffusion, Rombach et al. 2022: linear in sqrt(beta)."""
    return _linear_betas(math.sqrt(start), math.sqrt(end), steps).square()


def _squared_cosine_betas(start: float, end: float, steps: int) -> "Tensor":
    """Improved DDPM, Nichol and Dhariwal 2021, Eq. 17, betas capped at 0.999."""
    import torch

    angles = [(i / steps + 0.008) / 1.008 * math.pi / 2 for i in range(steps + 1)]
    alpha_bar = [math.cos(angle) ** 2 for angle in angles]
    ratios = [alpha_bar[i + 1] / alpha_bar[i] for i in range(steps)]
    return torch.tensor([min(1 - ratio, 0.999) for ratio in ratios], dtype=torch.float64)


BETA_SCHEDULES: "dict[str, Callable[[float, float, int], Tensor]]" = {
    "linear": _linear_betas,
    "scaled_linear": _scaled_linear_betas,
    "squaredcos_cap_v2": _squared_cosine_betas,
}


@dataclass(frozen=True, kw_only=True)
class VariancePreserving(Process):
    """DDPM's process with T noise levels; t is an integer index in [0, T). a^2 + s^2 = 1."""

    process: Literal["variance_preserving"] = "variance_preserving"
    """Forward process: variance_preserving (DDPM), rectified_flow or edm."""
    beta_schedule: BetaSchedule = "linear"
    """Noise schedule by its diffusers name."""
    num_train_timesteps: int = 1000
    """T, the number of noise levels."""
    beta_start: float = 1e-4
    """First beta of the linear schedules (not used by squaredcos_cap_v2)."""
    beta_end: float = 0.02
    """Last beta of the linear schedules (not used by squaredcos_cap_v2)."""
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    """What the network predicts: the noise (the paper), v, or the clean image."""
    rescale_zero_terminal_snr: bool = False
    """Rescale the schedule so that the last noise level is pure noise (Lin et al. 2023)."""

    def __post_init__(self) -> None:
        steps = self.num_train_timesteps
        if steps < 1:
            raise ValueError(f"num_train_timesteps must be 1 or more (got {steps})")
        for name in ("beta_start", "beta_end"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must be between 0 and 1 (got {getattr(self, name)})")

    @cached_property
    def alpha_bar(self) -> "Tensor":
        """(T,) float64, strictly falling in [0, 1), 0 at the last level only."""
        betas = BETA_SCHEDULES[self.beta_schedule](
            self.beta_start, self.beta_end, self.num_train_timesteps
        )
        alpha_bar = (1 - betas).cumprod(0)
        if not self.rescale_zero_terminal_snr:
            return alpha_bar
        # Lin et al. 2023, Algorithm 1; `rescale_betas_zero_snr` of diffusers.
        root = alpha_bar.sqrt()
        return ((root - root[-1]) * (root[0] / (root[0] - root[-1]))).square()

    def _alpha_bar(self, t: "Tensor") -> "Tensor":
        """alpha_bar(t), looked up on the device of `t`: a copy of `t` to the CPU would wait for
        everything that the device still has to do."""
        tables: dict[Any, Tensor] = self.__dict__.setdefault("_tables", {})
        if t.device not in tables:
            tables[t.device] = self.alpha_bar.to(t.device)
        return tables[t.device][t]

    def scales(self, t: "Tensor") -> "tuple[Tensor, Tensor]":
        alpha_bar = self._alpha_bar(t)
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def snr(self, t: "Tensor") -> "Tensor":
        alpha_bar = self._alpha_bar(t)
        return alpha_bar / (1 - alpha_bar)

    def noise_level(self, t: "Tensor") -> "Tensor":
        alpha_bar = self._alpha_bar(t)
        return ((1 - alpha_bar) / alpha_bar).sqrt()

    def draw_t(self, count: int, generator: "torch.Generator") -> "Tensor":
        import torch

        return torch.randint(self.num_train_timesteps, (count,), generator=generator)


def _uniform(process: "Continuous", count: int, generator: "torch.Generator") -> "Tensor":
    import torch

    return 1 - torch.rand(count, generator=generator)  # t = 0 has no noise to predict


def _logit_normal(process: "Continuous", count: int, generator: "torch.Generator") -> "Tensor":
    """t = sigmoid(n), Esser et al. 2024, Section 3.1."""
    return _normal(process, count, generator).sigmoid()


def _log_normal(process: "Continuous", count: int, generator: "torch.Generator") -> "Tensor":
    """ln sigma = n, Karras et al. 2022, Table 1."""
    return process.time_of(_normal(process, count, generator).exp())


def _normal(process: "Continuous", count: int, generator: "torch.Generator") -> "Tensor":
    """(count,) n ~ N(density_mean, density_std^2)."""
    import torch

    return process.density_mean + process.density_std * torch.randn(count, generator=generator)


DENSITIES: "dict[str, Callable[[Continuous, int, torch.Generator], Tensor]]" = {
    "uniform": _uniform,
    "logit_normal": _logit_normal,
    "log_normal": _log_normal,
}
"""The law of t in training, for processes of continuous time."""


@dataclass(frozen=True, kw_only=True)
class Continuous(Process):
    """A process with continuous t in (0, 1], from clean to noise, drawn by a law of `DENSITIES`."""

    density: Density
    density_mean: float
    density_std: float

    TIME_SCALE: ClassVar[float] = 1000.0
    """The network's time embedding is made for 0 to 1000."""

    def __post_init__(self) -> None:
        if self.density_std <= 0:
            raise ValueError(f"density_std must be above 0 (got {self.density_std:g})")

    def time_of(self, sigma: "Tensor") -> "Tensor":
        """The t at which s / a is `sigma`."""
        raise NotImplementedError

    def draw_t(self, count: int, generator: "torch.Generator") -> "Tensor":
        import torch

        # In float32 a normal number can round to a t without noise or without signal.
        smallest = torch.finfo(torch.float32).eps
        return DENSITIES[self.density](self, count, generator).clamp(smallest, 1)

    def network_time(self, t: "Tensor") -> "Tensor":
        return (t * self.TIME_SCALE).float()


@dataclass(frozen=True, kw_only=True)
class RectifiedFlow(Continuous):
    """x_t = (1 - t) x0 + t eps.

    The network predicts the velocity eps - x0 (Liu et al. 2023, Eq. 1, with time reversed).
    """

    process: Literal["rectified_flow"] = "rectified_flow"
    """Forward process: variance_preserving (DDPM), rectified_flow or edm."""
    prediction_type: Literal["velocity"] = "velocity"
    """What the network predicts: eps - x0."""
    density: Density = "uniform"
    """How noise levels are drawn in training: uniform in t, or logit_normal (of t) and log_normal
    (of s / a) with density_mean and density_std."""
    density_mean: float = 0.0
    """Mean of the normal law of logit_normal and log_normal."""
    density_std: float = 1.0
    """Standard deviation of the normal law of logit_normal and log_normal."""

    def scales(self, t: "Tensor") -> "tuple[Tensor, Tensor]":
        return 1 - t.double(), t.double()

    def time_of(self, sigma: "Tensor") -> "Tensor":
        return sigma / (1 + sigma)


@dataclass(frozen=True, kw_only=True)
class Preconditioned(Continuous):
    """EDM (Karras et al. 2022): x_t = cos(pi t / 2) x0 + sin(pi t / 2) eps, so s / a is its sigma.

    With c = `sigma_data` and n = sqrt(s^2 + a^2 c^2) the network takes x_t / n and predicts
    F = (s x0 - a c^2 eps) / (c n), which has variance one where x0 has c^2 (Eq. 7 and Table 1; for
    c = 1 it is -v). The uniform loss on F has the weight of Eq. 8.
    """

    process: Literal["edm"] = "edm"
    """Forward process: variance_preserving (DDPM), rectified_flow or edm."""
    prediction_type: Literal["preconditioned"] = "preconditioned"
    """What the network predicts: F of EDM."""
    sigma_data: float = 0.5
    """c, the standard deviation of the images in the network's range."""
    density: Density = "log_normal"
    """How noise levels are drawn in training: uniform in t, or logit_normal (of t) and log_normal
    (of s / a) with density_mean and density_std."""
    density_mean: float = -1.2
    """Mean of the normal law of logit_normal and log_normal."""
    density_std: float = 1.2
    """Standard deviation of the normal law of logit_normal and log_normal."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sigma_data <= 0:
            raise ValueError(f"sigma_data must be above 0 (got {self.sigma_data:g})")

    def scales(self, t: "Tensor") -> "tuple[Tensor, Tensor]":
        angle = t.double() * math.pi / 2
        return angle.cos(), angle.sin()

    def time_of(self, sigma: "Tensor") -> "Tensor":
        return sigma.atan() * 2 / math.pi

    def network_input(self, x_t: "Tensor", t: "Tensor") -> "Tensor":
        a, s = self.signal_and_noise(t, x_t)
        return x_t / self._norm(a, s)

    def target(self, x0: "Tensor", eps: "Tensor", t: "Tensor") -> "Tensor":
        a, s = self.signal_and_noise(t, x0)
        c = self.sigma_data
        return (s * x0 - a * c**2 * eps) / (c * self._norm(a, s))

    def x0(self, output: "Tensor", x_t: "Tensor", t: "Tensor") -> "Tensor":
        a, s = self.signal_and_noise(t, x_t)
        c, n = self.sigma_data, self._norm(a, s)
        return (a * c**2 * x_t + s * c * n * output) / n**2

    def error_ratio(self, snr: "Tensor") -> "Tensor":
        return snr + 1 / self.sigma_data**2

    def _norm(self, a: "Tensor", s: "Tensor") -> "Tensor":
        return (s.square() + a.square() * self.sigma_data**2).sqrt()


AnyProcess = VariancePreserving | RectifiedFlow | Preconditioned
PROCESSES: dict[str, type[AnyProcess]] = {
    "variance_preserving": VariancePreserving,
    "rectified_flow": RectifiedFlow,
    "edm": Preconditioned,
}


def process_from_dict(values: dict[str, Any]) -> AnyProcess:
    """The process that `Process.to_dict` wrote; `ValueError` for an unknown one."""
    name = values.get("process", "variance_preserving")
    if name not in PROCESSES:
        raise ValueError(f"unknown process '{name}'; known: {', '.join(PROCESSES)}")
    return PROCESSES[name](**values)
