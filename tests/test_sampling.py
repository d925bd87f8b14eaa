import math
from pathlib import Path

import pytest
import torch

from sfumato.base.errors import InputError
from sfumato.base.images import to_uint8
from sfumato.diffusion.guidance import ClassifierFreeGuidance
from sfumato.diffusion.process import (
    BETA_SCHEDULES,
    PREDICTIONS,
    Process,
    RectifiedFlow,
    VariancePreserving,
)
from sfumato.diffusion.sampling import EqualRows, initial_noise, nfe_of, sample
from sfumato.diffusion.solvers.build import build_solver
from sfumato.diffusion.solvers.registry import SAMPLERS, Sampling
from sfumato.diffusion.solvers.schedulers import (
    SPACINGS,
    SchedulerSolver,
    build_scheduler,
    spaced_timesteps,
)
from sfumato.generation.model import Model, generators_from_seeds
from tests.conftest import IdealDenoiser

COSINE = VariancePreserving(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
FLOW = RectifiedFlow()
SCHEDULERS = SAMPLERS["variance_preserving"]
SCALES = [1.0, 3.0, 5.0, 8.0]
EVERY_SAMPLER = [
    *((name, COSINE) for name in sorted(SCHEDULERS)),
    *((name, FLOW) for name in sorted(SAMPLERS["rectified_flow"])),
]


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
    process: Process = COSINE,
    seeds=None,
    clamp=True,
    on_step=None,
):
    generators = generators_from_seeds(range(len(labels)) if seeds is None else seeds)
    return sample(
        network,
        build_solver(process, Sampling(sampler=name, steps=steps), generators=generators),
        process=process,
        noise=initial_noise((1, 8, 8), generators),
        tokens=tokens_of(labels),
        guidance=ClassifierFreeGuidance(scale),
        x0_range=(-1.0, 1.0) if clamp else None,
        on_step=on_step,
    )


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
    t = torch.tensor([400, 400])
    x_t, eps_c, eps_u = torch.randn(3, 2, 1, 4, 4, dtype=torch.float64)
    a, s = COSINE.signal_and_noise(t, x_t)
    on_eps = (x_t - s * (eps_u + 5 * (eps_c - eps_u))) / a
    x0 = {"cond": (x_t - s * eps_c) / a, "uncond": (x_t - s * eps_u) / a}
    torch.testing.assert_close(ClassifierFreeGuidance(5).combine(x0, {}), on_eps)


# The loop on the ideal denoiser -------------------------------------------------------------------


def assert_samples_its_classes(name: str, process: Process, digits8) -> None:
    """The ideal denoiser is sampled into its classes, with and without guidance."""
    ideal = IdealDenoiser(digits8, process)
    labels = torch.arange(10)
    steps = 20 if name == "PNDM" else 10  # of fourth order: coarse in few steps at w = 8
    for scale in SCALES:
        x0 = draw(ideal, name, labels, scale, steps=steps, process=process).x0
        assert bool((ideal.nearest_labels(x0) == labels).all())
        assert bool(x0.isfinite().all())
        assert float(x0.abs().max()) <= 1


@pytest.mark.parametrize("prediction", sorted(set(PREDICTIONS) - {"velocity"}))
@pytest.mark.parametrize("beta_schedule", sorted(BETA_SCHEDULES))
@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_every_sampler_on_every_schedule_and_prediction(name, beta_schedule, prediction, digits8):
    process = VariancePreserving(beta_schedule=beta_schedule, prediction_type=prediction)
    assert_samples_its_classes(name, process, digits8)


@pytest.mark.parametrize("name", sorted(SAMPLERS["rectified_flow"]))
def test_every_sampler_of_a_rectified_flow(name, digits8) -> None:
    assert_samples_its_classes(name, FLOW, digits8)


@pytest.mark.parametrize(("scale", "branches"), [(0.0, 1), (1.0, 1), (3.0, 2)])
@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize(("name", "process"), EVERY_SAMPLER)
def test_nfe_is_that_of_the_network(name, process, steps, scale, branches, digits8) -> None:
    """Rows that the network got, an image; Heun evaluates twice but for the last step, PNDM its
    first step."""
    ideal = IdealDenoiser(digits8, process)
    rows = []

    def counted(x_t, t, tokens):
        rows.append(len(x_t))
        return ideal(x_t, t, tokens)

    sampled = draw(counted, name, torch.arange(3), scale, steps=steps, process=process)
    evaluations = 2 * steps - 1 if name == "Heun" else steps
    evaluations += name == "PNDM" and steps > 1
    assert sampled.nfe == evaluations * branches == sum(rows) / 3
    solver = build_solver(process, Sampling(sampler=name, steps=steps))
    assert nfe_of(solver.times, process, ClassifierFreeGuidance(scale)) == sampled.nfe


@pytest.mark.parametrize("name", ["DDIM", "DPMSolver++", "UniPC"])
def test_loop_equals_diffusers_own_loop_without_clamping(name, digits8) -> None:
    """The scheduler in its own prediction type, fed with raw network outputs."""
    ideal = IdealDenoiser(digits8, COSINE)
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
    ideal = IdealDenoiser(digits8, COSINE)
    first = draw(ideal, "DDIM", torch.zeros(4), 0.0, steps=10).x0
    second = draw(ideal, "DDIM", torch.full((4,), 7), 0.0, steps=10).x0
    assert torch.equal(first, second)


def test_no_scheduler_clips_by_itself() -> None:
    for name in SCHEDULERS:
        solver = build_solver(COSINE, Sampling(sampler=name, steps=4))
        for one in (build_scheduler(name, COSINE), solver.scheduler):
            assert not one.config.get("clip_sample", False)
            assert not one.config.get("thresholding", False)


def test_steps_that_are_told_equal_the_result(digits8) -> None:
    ideal = IdealDenoiser(digits8, COSINE)
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
    for name, sampler in SCHEDULERS.items():
        solver = build_solver(COSINE, Sampling(sampler=name, steps=20))
        sigma = float(COSINE.noise_level(solver.times[0]))
        assert 70 < sigma <= 80 if sampler.max_sigma == 80 else sigma > 20_000


def assert_steps_agree_on_levels(solver, process: Process, *, seed: int, exact: bool) -> None:
    """One image at the origin is known in closed form: x_t stays N(0, s_t^2) per pixel.

    With x0 = 0 a deterministic sampler scales x_t by the ratio of noise levels, so a step that
    ends elsewhere than the next one starts would show, as DDIM's t - T // steps does for 15 steps.
    """
    levels = process.scales(solver.times)[1]
    noise = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(seed))
    x_t = noise * levels[0]
    for index, level in enumerate(levels.tolist()):
        if exact:
            torch.testing.assert_close(x_t, noise * level, rtol=1e-3, atol=1e-5)
        else:
            assert float(x_t.std()) == pytest.approx(level, rel=0.1)
        x_t = solver.step(torch.zeros_like(x_t), x_t, index=index)
    assert float(x_t.abs().max()) < 1e-4  # 80 times the rounding of float32


@pytest.mark.parametrize("spacing", sorted(SPACINGS))
@pytest.mark.parametrize("steps", [1, 12, 15, 20, pytest.param(600, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_consecutive_steps_agree_on_the_level_between_them(name, steps, spacing) -> None:
    sampling = Sampling(sampler=name, steps=steps, timestep_spacing=spacing)
    solver = build_solver(COSINE, sampling, generators=generators_from_seeds([1]))
    exact = not SCHEDULERS[name].draws_noise
    assert_steps_agree_on_levels(solver, COSINE, seed=0, exact=exact)


@pytest.mark.parametrize("steps", [1, 12, 600])
@pytest.mark.parametrize("name", sorted(SAMPLERS["rectified_flow"]))
def test_consecutive_steps_of_a_rectified_flow_agree(name, steps) -> None:
    solver = build_solver(FLOW, Sampling(sampler=name, steps=steps))
    assert_steps_agree_on_levels(solver, FLOW, seed=0, exact=True)


def test_ddim_and_euler_are_the_same_steps(digits8) -> None:
    """Euler in sigma is DDIM (Song et al. 2021, Section 4.3), here to rounding."""
    process = VariancePreserving(beta_schedule="scaled_linear", prediction_type="v_prediction")
    ideal = IdealDenoiser(digits8, process)
    ddim, euler = (
        draw(ideal, name, torch.arange(4), 3, steps=15, process=process).x0
        for name in ("DDIM", "Euler")
    )
    torch.testing.assert_close(ddim, euler, rtol=0, atol=1e-4)


def test_what_a_solver_refuses(refused) -> None:
    import diffusers

    with refused(InputError):
        build_solver(COSINE, Sampling(sampler="Heun", steps=1000))
    karras = diffusers.EulerDiscreteScheduler.from_config(
        build_scheduler("Heun", COSINE).config, use_karras_sigmas=True
    )
    with refused(InputError):
        build_solver(COSINE, Sampling(sampler="Euler", steps=10), scheduler=karras)
    solver = build_solver(
        COSINE, Sampling(sampler="EulerAncestral", steps=2), generators=generators_from_seeds([0])
    )
    with refused(AssertionError):
        solver.step(torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4), index=0)


# Orders of convergence ----------------------------------------------------------------------------


class Float64(torch.Tensor):
    """A float64 tensor that stays one: some diffusers schedulers cast to float32 in `step`."""

    def to(self, *args, **kwargs):
        return self


MEAN, VARIANCE = 0.5, 0.6**2
"""Of the data N(m, v). At level t, x_t is N(a m, V) with V = a^2 v + s^2, the ideal denoiser is
E[x0 | x_t] = m + (a v / V) (x_t - a m), and the probability-flow ODE keeps (x_t - a m) / sqrt(V)
constant, which is the exact solution."""
NORMAL = torch.linspace(-3, 3, 101, dtype=torch.float64).reshape(-1, 1, 1, 1)


def exact_solution(process: Process, t: torch.Tensor) -> torch.Tensor:
    """x_t of `NORMAL`."""
    a, s = process.scales(t)
    return a * MEAN + (a.square() * VARIANCE + s.square()).sqrt() * NORMAL


def ideal_x0(process: Process, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    a, s = process.scales(t)
    return MEAN + a * VARIANCE / (a.square() * VARIANCE + s.square()) * (x_t - a * MEAN)


def gaussian_error(name: str, steps: int, *, first: int = 800, last: int = 200) -> float:
    """Root mean square error at t = `last` of a sampler that started exactly at t = `first`."""
    process = VariancePreserving(beta_schedule="linear")
    timesteps = torch.linspace(first, last, steps + 1, dtype=torch.float64).round().long()
    solver = SchedulerSolver(
        build_scheduler(name, process),
        SCHEDULERS[name],
        process.alpha_bar[timesteps],
        timesteps=timesteps,
        generators=[],
    )
    if hasattr(solver.scheduler, "sigmas"):
        # diffusers rounds its table to float32
        sigma = process.noise_level(solver.times)
        solver.scheduler.sigmas = torch.cat([sigma, sigma.new_zeros(1)])
    x_t = exact_solution(process, torch.tensor(first)).as_subclass(Float64)
    for index, t in enumerate(solver.times):
        if index and t == last:
            break
        x_t = solver.step(ideal_x0(process, x_t, t), x_t, index=index)
        assert x_t.dtype == torch.float64
    return root_mean_square(x_t - exact_solution(process, torch.tensor(last)))


def flow_error(name: str, steps: int) -> float:
    """Root mean square error at t = 0 from pure noise at t = 1."""
    solver = build_solver(FLOW, Sampling(sampler=name, steps=steps))
    x_t = NORMAL
    for index, t in enumerate(solver.times):
        x_t = solver.step(ideal_x0(FLOW, x_t, t), x_t, index=index)
        assert x_t.dtype == torch.float64
    return root_mean_square(x_t - exact_solution(FLOW, torch.tensor(0.0)))


def root_mean_square(error: torch.Tensor) -> float:
    return float(error.square().mean().sqrt())


def slopes_of(error, counts: list[int]) -> list[float]:
    """Log-log slope of the error between every two step counts."""
    errors = [error(steps) for steps in counts]
    return [
        math.log(errors[i] / errors[i + 1]) / math.log(counts[i + 1] / counts[i])
        for i in range(len(counts) - 1)
    ]


@pytest.mark.parametrize(
    ("name", "order"), [("Euler", 0.9), ("DDIM", 0.9), ("Heun", 1.7), ("DPMSolver++", 1.7)]
)
def test_order_of_convergence_on_a_gaussian(name: str, order: float) -> None:
    """Over an interior interval."""
    slopes = slopes_of(lambda steps: gaussian_error(name, steps), [20, 30, 40, 60, 120])
    assert min(slopes) >= order, slopes


@pytest.mark.parametrize(("name", "order"), [("Euler", 0.9), ("Heun", 1.7)])
def test_order_of_convergence_of_a_rectified_flow(name: str, order: float) -> None:
    """From pure noise to the image."""
    slopes = slopes_of(lambda steps: flow_error(name, steps), [20, 30, 40, 60, 120])
    assert min(slopes) >= order, slopes


# Rectified flow -----------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("name", ["Euler", "Heun"])
def test_the_last_step_of_a_rectified_flow_is_x0_exactly(name, steps) -> None:
    solver = build_solver(FLOW, Sampling(sampler=name, steps=steps))
    x_t, x0 = torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for index in range(len(solver.times)):
        x_t = solver.step(x0, x_t, index=index)
    assert torch.equal(x_t, x0)


def test_levels_of_a_rectified_flow() -> None:
    """Equal steps from pure noise; Heun evaluates the inner ones twice."""
    euler, heun = (build_solver(FLOW, Sampling(sampler=n, steps=4)) for n in ("Euler", "Heun"))
    assert euler.times.tolist() == [1, 0.75, 0.5, 0.25]
    assert heun.times.tolist() == [1, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25]


@pytest.mark.parametrize("name", ["Euler", "Heun"])
def test_a_seed_of_a_rectified_flow_is_one_image(name, digits8) -> None:
    """Bits of the loop and the solver: the same alone and in a batch, whatever came before."""
    ideal = EqualRows(IdealDenoiser(digits8, FLOW), 4)
    labels = torch.arange(4)
    together = draw(ideal, name, labels, 3, steps=5, process=FLOW).x0
    for seed in range(4):
        label = labels[seed : seed + 1]
        alone = draw(ideal, name, label, 3, steps=5, process=FLOW, seeds=[seed]).x0
        assert torch.equal(alone, together[seed : seed + 1])


# A trained network --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
@pytest.mark.parametrize(
    "scale", [1.0, 3.0, *(pytest.param(one, marks=pytest.mark.slow) for one in (5.0, 8.0))]
)
def test_a_seed_is_one_image_alone_or_among_others(name, scale, small_model: Model) -> None:
    """uint8 equal: of a set alone, in a batch of 8, in 3 + 5."""
    model = small_model.with_(sampler=name, guidance=scale, steps=4)
    prompts = [f"A handwritten digit {digit}" for digit in range(8)]
    seeds = list(range(100, 108))

    def images(start: int, stop: int) -> torch.Tensor:
        return model.sample(prompts[start:stop], seeds[start:stop], alone=False).tensor

    together = images(0, 8)
    assert torch.equal(torch.cat([images(0, 3), images(3, 8)]), together)
    assert torch.equal(torch.cat([images(i, i + 1) for i in range(8)]), together)


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_a_seed_is_one_image_in_calls_of_every_size(scale, small_model: Model) -> None:
    """Float bits equal: 56 images (at w = 5, 112 rows: 64 + 32 + 16) and each ten by themselves."""

    def x0(start: int, stop: int) -> torch.Tensor:
        prompts = [f"A handwritten digit {index % 10}" for index in range(start, stop)]
        return small_model.sample(prompts, range(start, stop), guidance=scale, steps=2).x0

    together = x0(0, 56)
    alone = torch.cat([x0(start, min(start + 10, 56)) for start in range(0, 56, 10)])
    assert torch.equal(together, alone)
    assert torch.equal(x0(0, 56), together)  # now with sizes that were checked before


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_an_only_image_is_that_of_its_set_or_says_that_it_is_not(scale, small_model: Model) -> None:
    """Bits equal where fewer rows have them; else one row an evaluation and `rows` in its text."""
    prompts = [f"A handwritten digit {digit}" for digit in range(8)]
    together = small_model.sample(prompts, range(8), guidance=scale, steps=4)
    assert "rows" not in together.settings[3]
    rows = []
    hook = small_model.network.register_forward_pre_hook(
        lambda _, given: rows.append(len(given[0]))
    )
    for _ in range(2):  # what was found is remembered
        rows.clear()
        only = small_model.sample(prompts[3], 3, guidance=scale, steps=4)
    hook.remove()
    needed = 1 if scale == 1 else 2
    if "rows" in only.settings[0]:
        assert only.settings[0]["rows"] == 1
        assert rows == [needed] * 4
        assert b"rows" in only.png(0)
        assert int((only.tensor[0].int() - together.tensor[3].int()).abs().max()) <= 1
    else:
        assert torch.equal(only.x0[0], together.x0[3])
        assert set(rows) <= {needed, 2, 4, 8}
    of_a_set = small_model.sample(prompts[3], 3, guidance=scale, steps=4, alone=False)
    assert torch.equal(of_a_set.x0[0], together.x0[3])
    assert "rows" not in of_a_set.settings[0]


@pytest.mark.parametrize(("fewest", "rows"), [(1, 1), (2, 2), (3, 4), (4, 4), (9, 16)])
@pytest.mark.parametrize("alone", [False, True])
def test_the_fewest_rows_with_equal_bits(fewest: int, rows: int, alone: bool) -> None:
    """A network whose bits change below `fewest` rows."""
    sizes = []

    def network(x_t, t, tokens):
        sizes.append(len(x_t))
        return x_t * 2 + (1e-3 if len(x_t) < fewest else 0)

    inputs = torch.randn(1, 1, 2, 2), torch.zeros(1), torch.zeros(1, 3, 4)
    checked: dict = {}
    for _ in range(2):
        sizes.clear()
        call = EqualRows(network, 16, fewer=(1, 2, 4, 8), checked=checked, alone=alone)
        output = call(*inputs)
        by_itself = alone and rows == 16
        assert call.exact != by_itself
        assert torch.equal(output, inputs[0] * 2) != by_itself
    assert sizes == [1 if by_itself else rows]


def test_layers_of_the_time_always_get_as_many_rows(small_model: Model) -> None:
    """The network's output is what it was, to rounding, and the layers are left as they were."""
    from sfumato.models.time_rows import time_in_rows

    network, tokens = small_model.network, small_model.tokens(["A handwritten digit 3"])["cond"]
    x_t, t = torch.randn(1, 1, 8, 8), torch.tensor([500])
    layer, rows = network.time_embedding.linear_1, []
    plain_forward = layer.forward
    layer.forward = lambda embedded: (rows.append(len(embedded)), plain_forward(embedded))[1]
    with torch.no_grad():
        plain = network(x_t, t, tokens).sample
        with time_in_rows(network, 16):
            filled = network(x_t, t, tokens).sample
    del layer.forward
    torch.testing.assert_close(filled, plain)
    assert rows == [1, 16]
    assert not any("forward" in vars(module) for module in network.modules())


def test_an_image_says_where_sampling_started(small_model: Model) -> None:
    first = {}
    for name in ("DDIM", "Heun"):
        samples = small_model.sample("A handwritten digit 3", 0, sampler=name, steps=3)
        first[name] = samples.settings[0]["first_t"]
        assert samples.settings[0]["timestep_spacing"] == "trailing"
    assert first == {"DDIM": 999, "Heun": 990}


def test_fixed_rows_change_nothing_but_the_call_size() -> None:
    sizes = []

    def network(x_t, t, tokens):
        sizes.append(len(x_t))
        return x_t * 2 + t[:, None, None, None] + tokens.sum((1, 2))[:, None, None, None]

    x_t, t, tokens = torch.randn(5, 1, 2, 2), torch.arange(5), torch.randn(5, 3, 4)
    expected = network(x_t, t, tokens)
    sizes.clear()
    torch.testing.assert_close(EqualRows(network, 4)(x_t, t, tokens), expected)
    assert sizes == [4, 4]


def class_accuracy(model: Model, scale: float, *, own_loop_of_diffusers: bool) -> float:
    """Share of 100 images in which a classifier reads the caption's digit; 20 DDIM steps."""
    from sfumato.evaluation.classifier import load_classifier

    assert model.data is not None
    classifier = load_classifier(model.data)
    labels = torch.arange(100) % 10
    prompts = [f"A handwritten digit {label}" for label in labels]
    if not own_loop_of_diffusers:
        images = model.sample(prompts, range(100), guidance=scale, sampler="DDIM", steps=20).tensor
    else:
        import diffusers

        scheduler = diffusers.DDIMScheduler(
            beta_schedule="squaredcos_cap_v2",
            prediction_type="v_prediction",
            timestep_spacing="trailing",
            clip_sample=True,
        )
        scheduler.set_timesteps(20)
        tokens = model.tokens(prompts)
        x_t = initial_noise((1, 8, 8), generators_from_seeds(range(100)))
        for t in scheduler.timesteps:
            with torch.no_grad():
                cond = model.network(x_t, t, tokens["cond"], return_dict=False)[0]
                uncond = model.network(x_t, t, tokens["uncond"], return_dict=False)[0]
            guided = uncond + scale * (cond - uncond)
            x_t = scheduler.step(guided, t, x_t, return_dict=False)[0]
        images = to_uint8(x_t, (-1.0, 1.0))
    return float((classifier.predict(images) == labels).double().mean())


def test_clipping_x0_but_not_eps_collapses_under_guidance(small_model: Model) -> None:
    """The trap: DDIM's `clip_sample` clips x0 and keeps the eps of the unclipped one."""
    inconsistent = class_accuracy(small_model, 5.0, own_loop_of_diffusers=True)
    consistent = class_accuracy(small_model, 5.0, own_loop_of_diffusers=False)
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
    call = EqualRows(network, 4, larger=(8, 16), checked=checked)
    expected = EqualRows(network, 4)(*inputs)
    assert torch.equal(call(*inputs), expected)
    assert list(checked.values()) == [not depends]
    sizes.clear()
    assert torch.equal(call(*inputs), expected)
    assert sizes == ([4] * 6 if depends else [16, 4, 4])


def test_samples_are_ordinary_tensors(small_model: Model) -> None:
    samples = small_model.sample("A handwritten digit 3")
    for images in (samples.x0, samples.tensor):
        images.mul_(0.5) if images.is_floating_point() else images.add_(1)
        assert not images.is_inference()  # those of inference mode cannot be changed


def test_one_prompt_or_one_seed_is_repeated(small_model: Model, refused) -> None:
    prompts = ["A handwritten digit 3"] * 3
    several = small_model.sample(prompts, [4, 5, 6], steps=1)
    assert torch.equal(small_model.sample(prompts[0], [4, 5, 6], steps=1).tensor, several.tensor)
    assert [one["seed"] for one in several.settings] == [4, 5, 6]
    one_seed = small_model.sample(prompts, 4, steps=1)
    assert all(torch.equal(image, several.tensor[0]) for image in one_seed.tensor)
    assert len(small_model.sample(prompts[0], steps=1)) == 1
    assert repr(one_seed) == "<Samples: images 3, size 8x8x1, NFE 2>"
    few = (((), 0), (prompts, ()), (prompts, [0, 1]))
    for bad in (*few, (prompts[0], -1), (prompts[0], 2**63), ([3], 0), (3, 0)):
        with refused(InputError):
            small_model.sample(*bad, steps=1)


def test_seeds_of_python_numpy_and_torch(small_model: Model, refused) -> None:
    import numpy as np

    wanted = small_model.sample("A handwritten digit 3", [0, 1, 2], steps=1)
    for seeds in (range(3), np.arange(3), torch.arange(3), [torch.tensor(0), np.int64(1), 2]):
        found = small_model.sample("A handwritten digit 3", seeds, steps=1)
        assert torch.equal(found.tensor, wanted.tensor)
        assert [type(one["seed"]) for one in found.settings] == [int] * 3
    for seed in (2, np.int64(2), np.array(2), torch.tensor(2)):
        found = small_model.sample("A handwritten digit 3", seed, steps=1, alone=False)
        assert torch.equal(found.tensor[0], wanted.tensor[2])
    for bad in (1.5, [0.0], "3", np.array([0.5]), None):
        with refused(InputError):
            small_model.sample("A handwritten digit 3", bad, steps=1)


def test_each_image_says_its_negative_prompt(small_model: Model, refused) -> None:
    """In its settings and its PNG; the empty one is not named."""
    from sfumato.base.images import settings_in_png

    prompts = [f"A handwritten digit {digit}" for digit in range(3)]
    against = [prompts[1], None, ""]
    samples = small_model.sample(prompts, range(3), negative_prompt=against, steps=2)
    assert [one.get("negative_prompt") for one in samples.settings] == [prompts[1], None, None]
    for index in (0, 1):
        Path(f"{index}.png").write_bytes(samples.png(index))
    assert settings_in_png(Path("0.png"))["negative_prompt"] == prompts[1]
    assert "negative_prompt" not in settings_in_png(Path("1.png"))
    plain = small_model.sample(prompts, range(3), steps=2)
    assert torch.equal(samples.tensor[1:], plain.tensor[1:])
    for index, one in enumerate(against):
        same = small_model.sample(prompts[index], index, negative_prompt=one, steps=2, alone=False)
        assert torch.equal(same.tensor[0], samples.tensor[index])
    with refused(InputError):
        small_model.sample(prompts, range(3), negative_prompt=["a", "b"], steps=2)


def test_settings_of_a_scheduler_are_in_those_of_the_image(small_model: Model) -> None:
    import dataclasses

    import diffusers

    config = build_scheduler("DPMSolver++", small_model.process).config
    third = diffusers.DPMSolverMultistepScheduler.from_config(config, solver_order=3)
    model = dataclasses.replace(small_model.with_(sampler="DPMSolver++"), scheduler=third)
    image = model.sample("A handwritten digit 3", steps=4)
    assert image.settings[0]["sampler_settings"] == {"solver_order": 3}
    assert "sampler_settings" not in small_model.sample("A handwritten digit 3").settings[0]


def test_a_model_is_not_changed_by_other_settings(small_model: Model, refused) -> None:
    before = small_model.sampling
    assert small_model.with_() is small_model
    other = small_model.with_(guidance=7, form="rescaled", sampler="heun", steps=3)
    assert (other.sampling.guidance_scale, other.sampling.sampler) == (7, "Heun")
    assert other.sampling.guidance == "rescaled:phi=0.7"
    assert small_model.sampling == before
    assert other.nfe() == 2 * (2 * 3 - 1)
    bad_spacing = {"timestep_spacing": "even"}
    for bad in (
        {"guidance": -1},
        {"guidance": 1001},
        {"steps": 0},
        {"sampler": "Hun"},
        bad_spacing,
    ):
        with refused(InputError):
            small_model.with_(**bad)


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_samples_do_not_depend_on_the_batch_size(batch_size: int, small_model: Model) -> None:
    batches = []
    prompts = [f"A handwritten digit {digit}" for digit in range(7)]
    samples = small_model.sample(
        prompts, range(7), steps=2, batch_size=batch_size, on_batch=batches.append
    )
    assert sum(batches) == 7
    assert max(batches) == min(batch_size, 7)
    assert torch.equal(samples.tensor, small_model.sample(prompts, range(7), steps=2).tensor)
    assert samples[2].tobytes() == samples.tensor[2].numpy().tobytes()
