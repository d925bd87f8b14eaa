import math

import pytest
import torch
from sfumato.diffusion.schedule import BETA_SCHEDULES, DiffusionConfig, NoiseSchedule
from sfumato.diffusion.spacing import SPACINGS, spaced_timesteps
from sfumato.diffusion.targets import PREDICTIONS

from sfumato.base.errors import InputError
from sfumato.base.images import to_uint8
from sfumato.diffusion.guidance import ClassifierFreeGuidance
from sfumato.diffusion.sampling import in_equal_rows, initial_noise, sample
from sfumato.diffusion.solvers.schedulers import (
    SAMPLERS,
    SchedulerSolver,
    build_scheduler,
    build_solver,
)
from sfumato.generation.pipeline import generators_from_seeds
from tests.conftest import IdealDenoiser

COSINE = DiffusionConfig(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
SCALES = [1.0, 3.0, 5.0, 8.0]


def tokens_of(labels: torch.Tensor) -> dict:
    cond = labels.float()[:, None, None]
    return {"cond": cond, "uncond": torch.full_like(cond, -1)}


def draw(
    network,
    name,
    labels,
    scale,
    *,
    steps,
    diffusion=COSINE,
    spacing="trailing",
    clamp=True,
    on_step=None,
):
    generators = generators_from_seeds(range(len(labels)))
    scheduler = build_scheduler(name, diffusion, timestep_spacing=spacing)
    return sample(
        network,
        build_solver(scheduler, steps=steps, generators=generators),
        schedule=NoiseSchedule.from_config(diffusion),
        prediction_type=diffusion.prediction_type,
        noise=initial_noise((1, 8, 8), generators),
        tokens=tokens_of(labels),
        guidance=ClassifierFreeGuidance(scale),
        value_range=(-1.0, 1.0) if clamp else None,
        on_step=on_step,
    )


def nearest_class(x0: torch.Tensor, ideal: IdealDenoiser) -> torch.Tensor:
    return ideal.labels[torch.cdist(x0.flatten(1).double(), ideal.images).argmin(1)]


# Guidance -----------------------------------------------------------------------------------------


def test_guidance_in_closed_form() -> None:
    cond, uncond = torch.tensor([2.0, -1.0]), torch.tensor([1.0, 1.0])
    guided = ClassifierFreeGuidance(3).combine({"cond": cond, "uncond": uncond}, {})
    torch.testing.assert_close(guided, torch.tensor([4.0, -5.0]))


@pytest.mark.parametrize(("scale", "branch"), [(0.0, "uncond"), (1.0, "cond")])
def test_no_guidance_is_one_call_and_equals_eq_1(scale: float, branch: str) -> None:
    guidance = ClassifierFreeGuidance(scale)
    assert guidance.branches(1.0) == (branch,)
    parts = {"cond": torch.randn(4), "uncond": torch.randn(4)}
    eq_1 = parts["uncond"] + scale * (parts["cond"] - parts["uncond"])
    torch.testing.assert_close(guidance.combine({branch: parts[branch]}, {}), eq_1)


def test_eq_1_on_x0_equals_eq_1_on_eps() -> None:
    schedule = NoiseSchedule.from_config(COSINE)
    t = torch.tensor([400, 400])
    x_t, eps_c, eps_u = torch.randn(3, 2, 1, 4, 4, dtype=torch.float64)
    a, s = schedule.signal_and_noise_scale(t, x_t)
    on_eps = (x_t - s * (eps_u + 5 * (eps_c - eps_u))) / a
    x0 = {"cond": (x_t - s * eps_c) / a, "uncond": (x_t - s * eps_u) / a}
    torch.testing.assert_close(ClassifierFreeGuidance(5).combine(x0, {}), on_eps)


# The loop on the ideal denoiser -------------------------------------------------------------------


@pytest.mark.parametrize("prediction", sorted(PREDICTIONS))
@pytest.mark.parametrize("beta_schedule", sorted(BETA_SCHEDULES))
@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_every_sampler_on_every_schedule_and_prediction(name, beta_schedule, prediction, digits8):
    """The ideal denoiser is sampled into its classes, with and without guidance."""
    diffusion = DiffusionConfig(beta_schedule=beta_schedule, prediction_type=prediction)
    ideal = IdealDenoiser(digits8, NoiseSchedule.from_config(diffusion), prediction_type=prediction)
    labels = torch.arange(10)
    for scale in SCALES:
        x0 = draw(ideal, name, labels, scale, steps=10, diffusion=diffusion).x0
        assert bool((nearest_class(x0, ideal) == labels).all())
        assert bool(x0.isfinite().all())
        assert float(x0.abs().max()) <= 1


@pytest.mark.parametrize(("scale", "branches"), [(0.0, 1), (1.0, 1), (3.0, 2)])
@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_calls_are_those_of_the_network(name, steps, scale, branches, digits8) -> None:
    """Rows that the network got, an image; Heun evaluates twice but for the last step."""
    ideal = IdealDenoiser(digits8, NoiseSchedule.from_config(COSINE))
    rows = []

    def counted(x_t, t, tokens):
        rows.append(len(x_t))
        return ideal(x_t, t, tokens)

    sampled = draw(counted, name, torch.arange(3), scale, steps=steps)
    evaluations = 2 * steps - 1 if name == "Heun" else steps
    assert sampled.calls == evaluations * branches == sum(rows) / 3


@pytest.mark.parametrize("name", ["DDIM", "DPMSolver++", "UniPC"])
def test_loop_equals_diffusers_own_loop_without_clamping(name, digits8) -> None:
    """The scheduler in its own prediction type, fed with raw network outputs."""
    ideal = IdealDenoiser(digits8, NoiseSchedule.from_config(COSINE))
    labels = torch.arange(4)
    ours = draw(ideal, name, labels, 1.0, steps=10, clamp=False).x0
    plain = build_scheduler(name, COSINE)
    plain.set_timesteps(10)
    x_t = initial_noise((1, 8, 8), generators_from_seeds(range(4)))
    for t in plain.timesteps:
        output = ideal(x_t, t.expand(4), tokens_of(labels)["cond"])
        x_t = plain.step(output, t, x_t, return_dict=False)[0]
    torch.testing.assert_close(ours, x_t, rtol=1e-3, atol=1e-3)


def test_zero_guidance_ignores_the_caption(digits8) -> None:
    ideal = IdealDenoiser(digits8, NoiseSchedule.from_config(COSINE))
    first = draw(ideal, "DDIM", torch.zeros(4), 0.0, steps=10).x0
    second = draw(ideal, "DDIM", torch.full((4,), 7), 0.0, steps=10).x0
    assert torch.equal(first, second)


def test_no_scheduler_clips_by_itself() -> None:
    for name in SAMPLERS:
        scheduler = build_scheduler(name, COSINE)
        for one in (scheduler, build_solver(scheduler, steps=4, generators=[]).scheduler):
            assert not one.config.get("clip_sample", False)
            assert not one.config.get("thresholding", False)


def test_steps_that_are_told_equal_the_result(digits8) -> None:
    ideal = IdealDenoiser(digits8, NoiseSchedule.from_config(COSINE))
    told = []
    sampled = draw(ideal, "DDIM", torch.tensor([3, 4]), 2, steps=5, on_step=told.append)
    assert [step.index for step in told] == list(range(5))
    assert [step.t for step in told] == [999, 799, 599, 399, 199]
    assert torch.equal(told[-1].x_t.clamp(-1, 1), sampled.x0)


# Noise levels and solvers -------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 12, 15, 20, 600, 1000])
@pytest.mark.parametrize("spacing", sorted(SPACINGS))
def test_timesteps_are_different_and_fall(spacing: str, steps: int) -> None:
    timesteps = spaced_timesteps(1000, steps, spacing=spacing)
    assert len(timesteps) == steps
    assert bool((timesteps.diff() < 0).all())
    assert int(timesteps[-1]) >= 0
    assert int(timesteps[0]) == (1000 // steps * (steps - 1) if spacing == "leading" else 999)


def test_samplers_in_sigma_start_where_sigma_is_at_most_80() -> None:
    for name, sampler in SAMPLERS.items():
        solver = build_solver(build_scheduler(name, COSINE), steps=20, generators=[])
        sigma = float(NoiseSchedule.from_config(COSINE).sigma[solver.timesteps[0]])
        assert 70 < sigma <= 80 if sampler.in_sigma else sigma > 20_000


@pytest.mark.parametrize("spacing", sorted(SPACINGS))
@pytest.mark.parametrize("steps", [1, 12, 15, 20, 600])
@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_consecutive_steps_agree_on_the_level_between_them(name, steps, spacing) -> None:
    """One image at the origin is known in closed form: x_t stays N(0, 1 - alpha_bar_t) per pixel.

    With x0 = 0 a deterministic sampler scales x_t by the ratio of noise levels, so a step that
    ends elsewhere than the next one starts would show, as DDIM's t - T // steps does for 15 steps.
    """
    scheduler = build_scheduler(name, COSINE, timestep_spacing=spacing)
    generators = generators_from_seeds([0])
    solver = build_solver(scheduler, steps=steps, generators=generators)
    schedule = NoiseSchedule.from_config(COSINE)
    noise = torch.randn(1, 1, 64, 64, generator=generators[0])
    x_t = noise * (1 - schedule.alpha_bar[solver.timesteps[0]]).sqrt()
    for index, t in enumerate(solver.timesteps):
        level = float((1 - schedule.alpha_bar[t]).sqrt())
        if SAMPLERS[name].draws_noise:
            assert float(x_t.std()) == pytest.approx(level, rel=0.1)
        else:
            torch.testing.assert_close(x_t, noise * level, rtol=1e-3, atol=1e-5)
        x_t = solver.step(torch.zeros_like(x_t), x_t, index=index)
    assert float(x_t.abs().max()) < 1e-4  # 80 times the rounding of float32


def test_ddim_and_euler_are_the_same_steps(digits8) -> None:
    """Euler in sigma is DDIM (Song et al. 2021, Section 4.3), here to rounding."""
    diffusion = DiffusionConfig(beta_schedule="scaled_linear", prediction_type="v_prediction")
    ideal = IdealDenoiser(digits8, NoiseSchedule.from_config(diffusion))
    ddim, euler = (
        draw(ideal, name, torch.arange(4), 3, steps=15, diffusion=diffusion).x0
        for name in ("DDIM", "Euler")
    )
    torch.testing.assert_close(ddim, euler, rtol=0, atol=1e-4)


def test_what_a_solver_refuses() -> None:
    import diffusers

    scheduler = build_scheduler("Heun", COSINE)
    with pytest.raises(InputError, match="991 noise levels"):
        build_solver(scheduler, steps=1000, generators=[])
    karras = diffusers.EulerDiscreteScheduler.from_config(scheduler.config, use_karras_sigmas=True)
    with pytest.raises(InputError, match="use_karras_sigmas"):
        build_solver(karras, steps=10, generators=[])
    solver = build_solver(
        build_scheduler("EulerAncestral", COSINE), steps=2, generators=generators_from_seeds([0])
    )
    with pytest.raises(AssertionError, match="one generator an image"):
        solver.step(torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4), index=0)


# Orders of convergence ----------------------------------------------------------------------------


class Float64(torch.Tensor):
    """A float64 tensor that stays one: some diffusers schedulers cast to float32 in `step`."""

    def to(self, *args, **kwargs):
        return self


def gaussian_error(name: str, steps: int, *, first: int = 800, last: int = 200) -> float:
    """Root mean square error at t = `last` of a sampler that started exactly at t = `first`.

    Data N(m, s^2). At level t, x_t is N(a m, V) with V = a^2 s^2 + 1 - a^2, the ideal denoiser is
    E[x0 | x_t] = m + (a s^2 / V) (x_t - a m), and the probability-flow ODE keeps (x_t - a m) /
    sqrt(V) constant, which is the exact solution.
    """
    mean, variance = 0.5, 0.6**2
    config = DiffusionConfig(beta_schedule="linear")
    alpha_bar = NoiseSchedule.from_config(config).alpha_bar
    timesteps = torch.linspace(first, last, steps + 1, dtype=torch.float64).round().long()
    solver = SchedulerSolver(
        build_scheduler(name, config), alpha_bar[timesteps], timesteps=timesteps, generators=[]
    )
    if hasattr(solver.scheduler, "sigmas"):
        # diffusers rounds its table to float32
        sigma = ((1 - alpha_bar) / alpha_bar).sqrt()[solver.timesteps]
        solver.scheduler.sigmas = torch.cat([sigma, sigma.new_zeros(1)])

    def at(t: int | torch.Tensor, normal: torch.Tensor) -> torch.Tensor:
        a2 = alpha_bar[t]
        return a2.sqrt() * mean + (a2 * variance + 1 - a2).sqrt() * normal

    normal = torch.linspace(-3, 3, 101, dtype=torch.float64).reshape(-1, 1, 1, 1)
    x_t = at(first, normal).as_subclass(Float64)
    for index, t in enumerate(solver.timesteps):
        if index and t == last:
            break
        a2 = alpha_bar[t]
        gain = a2.sqrt() * variance / (a2 * variance + 1 - a2)
        x_t = solver.step(mean + gain * (x_t - a2.sqrt() * mean), x_t, index=index)
        assert x_t.dtype == torch.float64
    return float((x_t - at(last, normal)).square().mean().sqrt())


@pytest.mark.parametrize(
    ("name", "order"), [("Euler", 0.9), ("DDIM", 0.9), ("Heun", 1.7), ("DPMSolver++", 1.7)]
)
def test_order_of_convergence_on_a_gaussian(name: str, order: float) -> None:
    """Log-log slope of the error over an interior interval, between every two step counts."""
    counts = [20, 30, 40, 60, 120]
    errors = [gaussian_error(name, steps) for steps in counts]
    slopes = [
        math.log(errors[i] / errors[i + 1]) / math.log(counts[i + 1] / counts[i])
        for i in range(len(counts) - 1)
    ]
    assert min(slopes) >= order, slopes


# A trained network --------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_a_seed_gives_one_picture_alone_or_among_others(name, scale, small_generator) -> None:
    """uint8 equal: alone, in a batch of 8, in 3 + 5."""
    small_generator.use(scheduler=name)
    prompts = [f"A handwritten digit {digit}" for digit in range(8)]
    seeds = list(range(100, 108))

    def pictures(start: int, stop: int) -> torch.Tensor:
        drawn = small_generator.draw(
            prompts[start:stop], seeds[start:stop], guidance_scale=scale, steps=4
        )
        return torch.stack([picture.image for picture in drawn])

    together = pictures(0, 8)
    assert torch.equal(torch.cat([pictures(0, 3), pictures(3, 8)]), together)
    assert torch.equal(torch.cat([pictures(i, i + 1) for i in range(8)]), together)
    small_generator.use(scheduler="DPMSolver++")


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_a_seed_gives_one_picture_in_calls_of_every_size(scale, small_generator) -> None:
    """Float bits equal: 56 images (at w = 5, 112 rows: 64 + 32 + 16) and each ten by themselves."""
    pipeline = small_generator.pipeline

    def x0(start: int, stop: int) -> torch.Tensor:
        return pipeline.sample(
            [f"A handwritten digit {index % 10}" for index in range(start, stop)],
            generators=generators_from_seeds(range(start, stop)),
            guidance_scale=scale,
            num_inference_steps=2,
        ).x0

    together = x0(0, 56)
    alone = torch.cat([x0(start, min(start + 10, 56)) for start in range(0, 56, 10)])
    assert torch.equal(together, alone)
    assert torch.equal(x0(0, 56), together)  # now with sizes that were checked before


def test_a_picture_says_where_sampling_started(small_generator) -> None:
    first = {}
    for name in ("DDIM", "Heun"):
        small_generator.use(scheduler=name)
        (picture,) = small_generator.draw(["A handwritten digit 3"], [0], steps=3)
        first[name] = picture.settings["first_timestep"]
        assert picture.settings["timestep_spacing"] == "trailing"
    small_generator.use(scheduler="DPMSolver++")
    assert first == {"DDIM": 999, "Heun": 990}


def test_fixed_rows_change_nothing_but_the_call_size() -> None:
    sizes = []

    def network(x_t, t, tokens):
        sizes.append(len(x_t))
        return x_t * 2 + t[:, None, None, None] + tokens.sum((1, 2))[:, None, None, None]

    x_t, t, tokens = torch.randn(5, 1, 2, 2), torch.arange(5), torch.randn(5, 3, 4)
    expected = network(x_t, t, tokens)
    sizes.clear()
    torch.testing.assert_close(in_equal_rows(network, 4)(x_t, t, tokens), expected)
    assert sizes == [4, 4]


def agreement(generator, scale: float, *, own_loop_of_diffusers: bool) -> float:
    """Share of 100 images in which the judge reads the caption's digit; 20 DDIM steps."""
    from sfumato.evaluation.classifier import load_judge

    judge = load_judge(generator.data)
    labels = torch.arange(100) % 10
    prompts = [f"A handwritten digit {label}" for label in labels]
    if not own_loop_of_diffusers:
        generator.use(scheduler="DDIM")
        drawn = generator.draw(prompts, range(100), guidance_scale=scale, steps=20)
        images = torch.stack([picture.image for picture in drawn])
        generator.use(scheduler="DPMSolver++")
    else:
        import diffusers

        pipeline = generator.pipeline
        scheduler = diffusers.DDIMScheduler(
            beta_schedule="squaredcos_cap_v2",
            prediction_type="v_prediction",
            timestep_spacing="trailing",
            clip_sample=True,
        )
        scheduler.set_timesteps(20)
        tokens = pipeline._tokens(prompts, "")
        x_t = initial_noise((1, 8, 8), generators_from_seeds(range(100)))
        for t in scheduler.timesteps:
            with torch.no_grad():
                cond = pipeline.unet(x_t, t, tokens["cond"], return_dict=False)[0]
                uncond = pipeline.unet(x_t, t, tokens["uncond"], return_dict=False)[0]
            guided = uncond + scale * (cond - uncond)
            x_t = scheduler.step(guided, t, x_t, return_dict=False)[0]
        images = to_uint8(x_t, (-1.0, 1.0))
    predicted, _ = judge(images)
    return float((predicted == labels).double().mean())


def test_clipping_x0_but_not_eps_collapses_under_guidance(small_generator) -> None:
    """The trap: DDIM's `clip_sample` clips x0 and keeps the eps of the unclipped one."""
    inconsistent = agreement(small_generator, 5.0, own_loop_of_diffusers=True)
    consistent = agreement(small_generator, 5.0, own_loop_of_diffusers=False)
    assert consistent >= 0.95
    assert inconsistent <= 0.5


@pytest.mark.parametrize("depends", [False, True])
def test_larger_calls_are_used_where_they_give_the_same_bits(depends: bool) -> None:
    sizes = []

    def network(x_t, t, tokens):
        sizes.append(len(x_t))
        return x_t * 2 + (len(x_t) * 1e-3 if depends else 0)

    inputs = torch.randn(23, 1, 2, 2), torch.zeros(23), torch.zeros(23, 3, 4)
    checked: dict = {}
    call = in_equal_rows(network, 4, larger=(8, 16), checked=checked)
    expected = in_equal_rows(network, 4)(*inputs)
    assert torch.equal(call(*inputs), expected)
    assert list(checked.values()) == [not depends]
    sizes.clear()
    assert torch.equal(call(*inputs), expected)
    assert sizes == ([4] * 6 if depends else [16, 4, 4])


def test_what_the_pipeline_returns_is_an_ordinary_tensor(small_generator) -> None:
    pipeline = small_generator.pipeline
    images = pipeline("A handwritten digit 3", seeds=[0], output_type="pt").images
    images.mul_(0.5)  # refused for tensors of inference mode
    assert not images.is_inference()
