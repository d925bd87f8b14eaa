"""Settings of diffusers schedulers: each that is taken is followed, each other one is refused."""

import diffusers
import pytest
import torch

from sfumato.base.errors import InputError
from sfumato.diffusion.guidance import ClassifierFreeGuidance
from sfumato.diffusion.process import BETA_SCHEDULES, Process, RectifiedFlow, VariancePreserving
from sfumato.diffusion.sampling import initial_noise, sample
from sfumato.diffusion.solvers.build import build_solver
from sfumato.diffusion.solvers.registry import SAMPLERS, Sampling
from sfumato.diffusion.solvers.schedulers import (
    OF_PROCESS,
    _defaults,
    belongs_to,
    build_scheduler,
    changed_settings,
    scheduler_name,
)
from sfumato.generation.model import generators_from_seeds
from tests.conftest import IdealDenoiser

COSINE = VariancePreserving(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
FLOW = RectifiedFlow()
SCHEDULERS = SAMPLERS["variance_preserving"]
FLOWS = SAMPLERS["rectified_flow"]
STEPS = 12
LABELS = torch.arange(10)


def scheduler_of(name: str, process: Process = COSINE, **settings):
    """The scheduler of a sampler as `from_config` makes it."""
    if process is FLOW:
        return getattr(diffusers, FLOWS[name].scheduler_class)(**settings)
    own = build_scheduler(name, process)
    return type(own).from_config(own.config, **settings)


def draw(ideal: IdealDenoiser, scheduler, *, seeds=range(10)) -> torch.Tensor:
    """(10, 1, 8, 8) images of ten digits at w = 1."""
    process, generators = ideal.process, generators_from_seeds(seeds)
    sampling = Sampling(sampler=scheduler_name(scheduler), steps=STEPS)
    return sample(
        ideal,
        build_solver(process, sampling, generators=generators, scheduler=scheduler),
        process=process,
        noise=initial_noise((1, 8, 8), generators),
        tokens={"cond": LABELS.float()[:, None, None]},
        guidance=ClassifierFreeGuidance(1.0),
        x0_range=(-1.0, 1.0),
    ).x0


FOLLOWED = [
    (process, name, setting, value)
    for process, samplers in ((COSINE, SCHEDULERS), (FLOW, FLOWS))
    for name, sampler in samplers.items()
    for setting, values in sampler.also.items()
    for value in values
]


def identity(value: object) -> str:
    return value.process if isinstance(value, Process) else str(value)


@pytest.mark.parametrize(("process", "name", "setting", "value"), FOLLOWED, ids=identity)
def test_a_setting_that_is_taken_draws_clean_images(process, name, setting, value, digits8):
    """Every image is one of the data set's images of its class, as with the default."""
    ideal = IdealDenoiser(digits8, process)
    images = draw(ideal, scheduler_of(name, process, **{setting: value}))
    default = draw(ideal, scheduler_of(name, process))
    distance = torch.cdist(images.flatten(1).double(), ideal.images).min(1)
    assert bool((ideal.nearest_labels(images) == LABELS).all())
    assert float(distance.values.max()) < 8 * 0.15  # 8x8 pixels, 0.15 of the range -1 to 1 each
    assert float((images - default).abs().mean()) < 0.35


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_an_offset_of_leading_timesteps_is_nothing_to_others(name, spacing, digits8) -> None:
    """In diffusers as here. `StableDiffusionPipeline` sets it in every scheduler it is given."""
    scheduler = scheduler_of(name, timestep_spacing=spacing)
    if "steps_offset" not in scheduler.config:
        pytest.skip(f"{name} has no offset")
    other = type(scheduler).from_config(scheduler.config, steps_offset=1)
    ideal = IdealDenoiser(digits8, COSINE)
    assert torch.equal(draw(ideal, other), draw(ideal, scheduler))
    for one in (scheduler, other):
        one.set_timesteps(STEPS)
    assert torch.equal(other.timesteps, scheduler.timesteps)


SEEDED = [*((COSINE, name) for name in SCHEDULERS), *((FLOW, name) for name in FLOWS)]


@pytest.mark.parametrize(("process", "name"), SEEDED, ids=identity)
def test_a_seed_is_followed_by_every_sampler_and_setting(process, name, digits8) -> None:
    ideal = IdealDenoiser(digits8, process)
    also = (FLOWS if process is FLOW else SCHEDULERS)[name].also
    for settings in [{}, *({s: v} for s, values in also.items() for v in values)]:
        scheduler = scheduler_of(name, process, **settings)
        first, again = draw(ideal, scheduler), draw(ideal, scheduler)
        other = draw(ideal, scheduler, seeds=range(100, 110))
        assert torch.equal(first, again), settings
        assert bool(((first - other).flatten(1).abs().amax(1) > 0.1).all()), settings


OTHER_VALUES = {
    # What the classes of diffusers take, and a value that none of them names.
    bool: [True, False],
    "algorithm_type": ["dpmsolver", "sde-dpmsolver", "other"],
    "variance_type": ["fixed_small", "fixed_large_log", "learned", "learned_range", "other"],
    "solver_type": ["midpoint", "bh1", "bh2", "logrho", "other"],
    "solver_order": [0, 2, 4],
    "final_sigmas_type": ["sigma_min", "other"],
    "interpolation_type": ["log_linear", "other"],
    "timestep_type": ["continuous", "other"],
    "timestep_spacing": ["other"],
    "time_shift_type": ["linear"],
    "disable_corrector": [[1]],
    "lambda_min_clipped": [-5.1],
}


def other_values(setting: str, default: object) -> list:
    """Values of a setting to try beside its default."""
    if setting in OTHER_VALUES:
        return OTHER_VALUES[setting]
    if isinstance(default, bool):
        return OTHER_VALUES[bool]
    return [default + 1] if isinstance(default, int | float) else [0.5]


REFUSED = [
    (process, name, setting, value)
    for process, samplers in ((COSINE, SCHEDULERS), (FLOW, FLOWS))
    for name, sampler in samplers.items()
    for setting, default in _defaults(getattr(diffusers, sampler.scheduler_class)).items()
    if setting not in OF_PROCESS
    for value in other_values(setting, default)
    if value != sampler.settings.get(setting, default)
    if value not in sampler.also.get(setting, ())
]


@pytest.mark.parametrize(("process", "name", "setting", "value"), REFUSED, ids=identity)
def test_every_other_value_is_refused_by_name(process, name, setting, value) -> None:
    scheduler = scheduler_of(name, process)
    scheduler.register_to_config(**{setting: value})  # some classes refuse it themselves
    if setting == "steps_offset":
        scheduler.register_to_config(timestep_spacing="leading")  # the others do not have it
    sampling = Sampling(sampler=name, steps=4)
    with pytest.raises(InputError) as caught:
        build_solver(process, sampling, generators=[], scheduler=scheduler)
    assert type(scheduler).__name__ in caught.value.what
    assert f"{setting}={value!r}" in caught.value.what
    assert f"{setting}=" in caught.value.hint


def test_what_a_refusal_says(refused) -> None:
    for name, settings in [
        ("UniPC", {"predict_x0": False}),
        ("DPMSolver++", {"final_sigmas_type": "sigma_min"}),
        ("DPMSolver++", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
        ("Euler", {"interpolation_type": "log_linear"}),
        ("PNDM", {"skip_prk_steps": False}),
    ]:
        with refused(InputError):
            sampling = Sampling(sampler=name, steps=4)
            build_solver(COSINE, sampling, scheduler=scheduler_of(name, **settings))


def test_a_stochastic_dpm_solver_is_a_sampler_of_its_own() -> None:
    scheduler = scheduler_of("DPMSolver++", algorithm_type="sde-dpmsolver++")
    assert scheduler_name(scheduler) == "DPMSolver++SDE"
    assert changed_settings(scheduler, SCHEDULERS["DPMSolver++SDE"]) == {}
    third = scheduler_of("DPMSolver++", solver_order=3, use_karras_sigmas=False)
    assert changed_settings(third, SCHEDULERS["DPMSolver++"]) == {"solver_order": 3}


# With diffusers alone -----------------------------------------------------------------------------


@pytest.mark.parametrize("beta_schedule", sorted(BETA_SCHEDULES))
@pytest.mark.parametrize("name", ["Heun", "LMS", "PNDM", "Euler", "DPMSolver++"])
def test_an_exported_scheduler_draws_in_the_plain_loop_of_diffusers(name, beta_schedule, digits8):
    """Heun gave noise from sigma 20,291, the last level of the squared cosine."""
    process = VariancePreserving(beta_schedule=beta_schedule, prediction_type="v_prediction")
    ideal = IdealDenoiser(digits8, process)
    scheduler = build_scheduler(name, process)
    assert belongs_to(scheduler, process)
    scheduler.set_timesteps(30)
    x_t = initial_noise((1, 8, 8), generators_from_seeds(range(10))) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x_t, t)
        output = ideal(scaled, t.long().expand(10), LABELS.float()[:, None, None])
        x_t = scheduler.step(output, t, x_t, return_dict=False)[0]
    assert bool((ideal.nearest_labels(x_t) == LABELS).all())
    distance = torch.cdist(x_t.flatten(1).double(), ideal.images).min(1).values
    assert float(distance.max()) < 8 * 0.15


@pytest.mark.parametrize(("name", "order"), [("Euler", 1), ("Heun", 2)])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_flow_is_stepped_as_diffusers_steps_it(name, order, shift, digits8) -> None:
    """The scheduler's own steps over our levels; diffusers' own end one thousandth higher."""
    ideal = IdealDenoiser(digits8, FLOW)
    scheduler = scheduler_of(name, FLOW, shift=shift)
    solver = build_solver(FLOW, Sampling(sampler=name, steps=6), scheduler=scheduler)
    levels = solver.levels
    scheduler.set_timesteps(6)
    sigmas = levels.float()
    scheduler.sigmas = (
        sigmas
        if order == 1
        else torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
    )
    scheduler.timesteps = solver.times.float() * 1000
    x_t = theirs = initial_noise((1, 8, 8), generators_from_seeds(range(10)))
    tokens = LABELS.float()[:, None, None]
    for index, t in enumerate(solver.times):
        velocity = ideal(theirs, (t * 1000).expand(10), tokens)
        theirs = scheduler.step(velocity, scheduler.timesteps[index], theirs, return_dict=False)[0]
        x0 = FLOW.x0(ideal(x_t, (t * 1000).expand(10), tokens), x_t, t)
        x_t = solver.step(x0, x_t, index=index).float()
    torch.testing.assert_close(x_t, theirs, rtol=0, atol=1e-3)


def test_the_process_of_a_scheduler() -> None:
    """Of a shortened schedule too; of another one not."""
    heun = build_scheduler("Heun", COSINE)
    assert heun.config["num_train_timesteps"] == 991
    assert float(COSINE.noise_level(torch.tensor(990))) < 80
    assert belongs_to(diffusers.DDIMScheduler.from_config(heun.config), COSINE)
    other = VariancePreserving(beta_schedule="linear", prediction_type="v_prediction")
    assert not belongs_to(heun, other)
    betas = [2 * beta for beta in heun.config["trained_betas"][:-1]]
    changed = diffusers.HeunDiscreteScheduler.from_config(heun.config, trained_betas=betas)
    assert not belongs_to(changed, COSINE)
    assert not belongs_to(heun, FLOW)
    assert belongs_to(scheduler_of("Euler", FLOW), FLOW)
    assert not belongs_to(scheduler_of("Euler", FLOW, num_train_timesteps=10), FLOW)
    assert not belongs_to(scheduler_of("Euler", FLOW), COSINE)
