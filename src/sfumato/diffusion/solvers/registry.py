"""The samplers by name and the settings of sampling. Imports no torch.

A new sampler is an entry in `SAMPLERS` under the process that it samples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from sfumato.base.errors import InputError, nearest
from sfumato.diffusion.guidance import GuidanceForm, parse_form
from sfumato.diffusion.process import STRICT, Process

TimestepSpacing = Literal["trailing", "leading", "linspace"]

MAX_SIGMA = 80.0
"""Where samplers in sigma start at most (Karras et al. 2022, Table 1).

The last level of squaredcos_cap_v2 has sigma 20,291 and a usual step ends near 10. Heun's second
evaluation multiplies the change of x0 over a step by half the ratio of the two, so a trained model
would give noise; from 80 it samples as well as the others.
"""


STUDENT_SAMPLERS = {"variance_preserving": "DDIM", "rectified_flow": "Euler", "edm": "Euler"}
"""The sampler of a distilled student by its process: x0 and x_t determine the next x_t (of a flow
Euler's step is DDIM's)."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a trained model samples, unless a call or a command says otherwise."""

    __pydantic_config__ = STRICT

    sampler: str = "DPMSolver++"
    """Sampler: DDPM, DDIM, PNDM, DPMSolver++, DPMSolver++SDE, UniPC, Euler, EulerAncestral, Heun,
    LMS or LCM."""
    steps: int = 20
    """Denoising steps. A guided step costs two network evaluations, with Heun nearly four."""
    guidance_scale: float = 3.0
    """w of Eq. 1: 0 is unconditional, 1 conditional without guidance."""
    guidance: str = "cfg"
    """Form of guidance with its parameters, such as `apg:eta=0`."""
    timestep_spacing: TimestepSpacing = "trailing"
    """Which timesteps are visited: `trailing` starts at the noisiest that the sampler takes."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be 1 or more (got {self.steps})")
        if self.timestep_spacing not in get_args(TimestepSpacing):
            known = " or ".join(get_args(TimestepSpacing))
            raise ValueError(f"timestep_spacing must be {known} (got '{self.timestep_spacing}')")
        if not 0 <= self.guidance_scale <= 1000:
            raise ValueError(f"guidance_scale must be 0 to 1000 (got {self.guidance_scale:g})")
        object.__setattr__(self, "guidance", str(parse_form(self.guidance)))
        if self.form.folded:
            self._check_folded(**dict(self.form.parameters))

    def _check_folded(self, nfe: float, low: float, high: float) -> None:
        """`ValueError` for settings that a distilled student was not trained with."""
        scales = f"w = {low:g}" if low == high else f"w from {low:g} to {high:g}"
        wrong = [
            f"{name} is {value}"
            for name, value, right in (
                ("sampler", self.sampler, self.sampler in STUDENT_SAMPLERS.values()),
                ("steps", self.steps, self.steps == nfe),
                ("timestep_spacing", self.timestep_spacing, self.timestep_spacing == "trailing"),
                ("guidance_scale", f"{self.guidance_scale:g}", low <= self.guidance_scale <= high),
            )
            if not right
        ]
        if wrong:
            raise ValueError(
                f"the model is distilled: it samples in {int(nfe)} trailing "
                f"step{'' if nfe == 1 else 's'} of DDIM at {scales}, but {' and '.join(wrong)}"
            )

    def scales_among(self, scales: Sequence[float]) -> tuple[float, ...]:
        """Those of `scales` that the model can be sampled at, its own where there are none: a
        distilled student has those of its training."""
        if not self.form.folded:
            return tuple(scales)
        known = dict(self.form.parameters)
        fitting = [scale for scale in scales if known["low"] <= scale <= known["high"]]
        return tuple(dict.fromkeys(fitting)) or (self.guidance_scale,)

    @property
    def form(self) -> GuidanceForm:
        return parse_form(self.guidance)


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """One way to sample; those with a `scheduler_class` are diffusers schedulers."""

    scheduler_class: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the scheduler, where they are not the defaults of its class."""
    also: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """Other values of its settings that are followed, each tested; any other value is refused."""
    draws_noise: bool = False
    """Whether `step` draws noise (and takes generators)."""
    takes_eps: bool = False
    """Whether `step` takes eps, not x0."""
    in_sigma: bool = False
    """Whether it steps x0 + sigma eps, not sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps."""
    max_sigma: float = math.inf
    """Sampling starts at the noisiest level with no more noise than this."""
    order: int = 1
    """Network evaluations of a step but for the last, of the solvers of a flow."""


CLIPS: dict[str, tuple[Any, ...]] = {"clip_sample": (True, False)}
"""x0 is clamped at every step, whatever the scheduler says of its own clipping."""
MULTISTEP: dict[str, tuple[Any, ...]] = {
    "solver_type": ("heun",),
    "lower_order_final": (False,),
    "euler_at_final": (True,),
}

SAMPLERS: dict[str, dict[str, Sampler]] = {
    "variance_preserving": {
        "DDPM": Sampler(
            scheduler_class="DDPMScheduler",
            settings={"clip_sample": False},
            # None, which is `fixed_small`, comes from the settings of DPM-Solver++.
            also={**CLIPS, "variance_type": ("fixed_small_log", "fixed_large", None)},
            draws_noise=True,
        ),
        "DDIM": Sampler(
            scheduler_class="DDIMScheduler", settings={"clip_sample": False}, also=CLIPS
        ),
        "PNDM": Sampler(
            scheduler_class="PNDMScheduler",
            settings={"skip_prk_steps": True, "set_alpha_to_one": True},
            also={"set_alpha_to_one": (False,)},  # the default; the last step ends at the image
            takes_eps=True,
            max_sigma=MAX_SIGMA,
        ),
        "DPMSolver++": Sampler(
            scheduler_class="DPMSolverMultistepScheduler",
            settings={
                "algorithm_type": "dpmsolver++",
                "solver_order": 2,
                "final_sigmas_type": "zero",
            },
            also={"solver_order": (1, 3), **MULTISTEP},
        ),
        "DPMSolver++SDE": Sampler(
            scheduler_class="DPMSolverMultistepScheduler",
            settings={"algorithm_type": "sde-dpmsolver++", "final_sigmas_type": "zero"},
            also={"solver_order": (1,), **MULTISTEP},
            draws_noise=True,
        ),
        "UniPC": Sampler(
            scheduler_class="UniPCMultistepScheduler",
            settings={"solver_order": 2, "final_sigmas_type": "zero"},
            # Not `bh1` or without `lower_order_final`: NaN at the last step, where sigma is 0.
            also={"solver_order": (1, 3), "disable_corrector": ([0], [0, 1])},
        ),
        "Euler": Sampler(
            scheduler_class="EulerDiscreteScheduler", in_sigma=True, max_sigma=MAX_SIGMA
        ),
        "EulerAncestral": Sampler(
            scheduler_class="EulerAncestralDiscreteScheduler",
            draws_noise=True,
            in_sigma=True,
            max_sigma=MAX_SIGMA,
        ),
        "Heun": Sampler(
            scheduler_class="HeunDiscreteScheduler",
            settings={"clip_sample": False},
            also=CLIPS,
            in_sigma=True,
            max_sigma=MAX_SIGMA,
        ),
        "LMS": Sampler(scheduler_class="LMSDiscreteScheduler", in_sigma=True, max_sigma=MAX_SIGMA),
        "LCM": Sampler(scheduler_class="LCMScheduler", also=CLIPS, draws_noise=True),
    },
    "rectified_flow": {
        "Euler": Sampler(
            scheduler_class="FlowMatchEulerDiscreteScheduler", also={"shift": (0.5, 2.0, 3.0)}
        ),
        "Heun": Sampler(
            scheduler_class="FlowMatchHeunDiscreteScheduler",
            also={"shift": (0.5, 2.0, 3.0)},
            order=2,
        ),
    },
    "edm": {"Euler": Sampler(), "Heun": Sampler(order=2)},
}


def sampler_name(name: str, process: Process | None = None) -> str:
    """The registered name of a sampler of `process` (of any without it), from that or its diffusers
    class, in any case. `InputError` with the nearest match if there is none."""
    kinds = SAMPLERS if process is None else {process.process: SAMPLERS[process.process]}
    for samplers in kinds.values():
        for known, sampler in samplers.items():
            if name and name.lower() in (known.lower(), sampler.scheduler_class.lower()):
                return known
    known_names = list(dict.fromkeys(known for samplers in kinds.values() for known in samplers))
    of = f" for {process.process}" if process is not None else ""
    raise InputError(f"No sampler named '{name}'{of}.", hint=nearest(name, known_names))


def sampler_of(name: str, process: Process) -> Sampler:
    """The sampler called `name`; `InputError` as `sampler_name`."""
    return SAMPLERS[process.process][sampler_name(name, process)]


def check_sampling(sampling: Sampling, process: Process) -> None:
    """`InputError` for a sampler or timestep spacing that `process`, or a student of it, does not
    have."""
    sampler_of(sampling.sampler, process)
    if sampling.form.folded and sampling.sampler != (own := STUDENT_SAMPLERS[process.process]):
        raise InputError(
            f"The model is distilled: it samples with {own}, not {sampling.sampler}.",
            hint=f"Use sampler={own}.",
        )
    if process.process != "variance_preserving" and sampling.timestep_spacing != "trailing":
        raise InputError(
            f"timestep_spacing '{sampling.timestep_spacing}' is not available for "
            f"{process.process}, which has its own levels from noise to image.",
            hint="Use timestep_spacing=trailing.",
        )
