import pytest
import torch

from sfumato.base.images import to_uint8
from sfumato.diffusion.guidance import ClassifierFreeGuidance
from sfumato.diffusion.sampling import in_fixed_rows, initial_noise, sample
from sfumato.diffusion.schedule import DiffusionConfig, NoiseSchedule
from sfumato.models.schedulers import SAMPLERS, build_scheduler, taking_x0
from sfumato.pipeline import generators_from_seeds
from tests.conftest import IdealDenoiser

COSINE = DiffusionConfig(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
SCALES = [1.0, 5.0]


def tokens_of(labels: torch.Tensor) -> dict:
    cond = labels.float()[:, None, None]
    return {"cond": cond, "uncond": torch.full_like(cond, -1)}


def draw(network, scheduler, labels, scale, *, clamp=True, seeds=None):
    generators = generators_from_seeds(list(seeds or range(len(labels))))
    draws_noise = type(scheduler).__name__ == "DDPMScheduler"
    return sample(
        network,
        scheduler,
        schedule=NoiseSchedule.from_config(COSINE),
        prediction_type="v_prediction",
        noise=initial_noise((1, 8, 8), generators),
        tokens=tokens_of(labels),
        guidance=ClassifierFreeGuidance(scale),
        value_range=(-1.0, 1.0) if clamp else None,
        step_kwargs={"generator": generators} if draws_noise else {},
    )


def scheduler_for(name: str, steps: int):
    scheduler = taking_x0(build_scheduler(name, COSINE))
    scheduler.set_timesteps(steps)
    return scheduler


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


@pytest.mark.parametrize("name", sorted(SAMPLERS))
@pytest.mark.parametrize("scale", SCALES)
def test_ideal_denoiser_is_sampled_into_its_classes(name, scale, digits8) -> None:
    ideal = IdealDenoiser(digits8, NoiseSchedule.from_config(COSINE))
    labels = torch.arange(20) % 10
    sampled = draw(ideal, scheduler_for(name, 20), labels, scale)
    assert bool((nearest_class(sampled.x0, ideal) == labels).all())
    assert sampled.calls == (20 if scale == 1 else 40)
    assert float(sampled.x0.abs().max()) <= 1


@pytest.mark.parametrize("name", ["DDIM", "DPMSolver++"])
def test_loop_equals_diffusers_own_loop_without_clamping(name, digits8) -> None:
    """The scheduler in its own prediction type, fed with raw network outputs."""
    ideal = IdealDenoiser(digits8, NoiseSchedule.from_config(COSINE))
    labels = torch.arange(4)
    ours = draw(ideal, scheduler_for(name, 10), labels, 1.0, clamp=False).x0
    plain = build_scheduler(name, COSINE)
    plain.set_timesteps(10)
    x_t = initial_noise((1, 8, 8), generators_from_seeds(range(4)))
    for t in plain.timesteps:
        output = ideal(x_t, t.expand(4), tokens_of(labels)["cond"])
        x_t = plain.step(output, t, x_t, return_dict=False)[0]
    torch.testing.assert_close(ours, x_t, rtol=1e-3, atol=1e-3)


def test_zero_guidance_ignores_the_caption(digits8) -> None:
    ideal = IdealDenoiser(digits8, NoiseSchedule.from_config(COSINE))
    first = draw(ideal, scheduler_for("DDIM", 10), torch.zeros(4), 0.0).x0
    second = draw(ideal, scheduler_for("DDIM", 10), torch.full((4,), 7), 0.0).x0
    assert torch.equal(first, second)


def test_no_scheduler_clips_by_itself() -> None:
    for name in SAMPLERS:
        for scheduler in (build_scheduler(name, COSINE), taking_x0(build_scheduler(name, COSINE))):
            assert not scheduler.config.get("clip_sample", False)
            assert not scheduler.config.get("thresholding", False)


def test_steps_that_are_told_equal_the_result(digits8) -> None:
    ideal = IdealDenoiser(digits8, NoiseSchedule.from_config(COSINE))
    told = []
    generators = generators_from_seeds([0, 1])
    sampled = sample(
        ideal,
        scheduler_for("DDIM", 5),
        schedule=NoiseSchedule.from_config(COSINE),
        prediction_type="v_prediction",
        noise=initial_noise((1, 8, 8), generators),
        tokens=tokens_of(torch.tensor([3, 4])),
        guidance=ClassifierFreeGuidance(2),
        value_range=(-1, 1),
        on_step=told.append,
    )
    assert [step.index for step in told] == list(range(5))
    assert [step.t for step in told] == [999, 799, 599, 399, 199]
    assert torch.equal(told[-1].x_t.clamp(-1, 1), sampled.x0)


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
            prompts[start:stop], seeds[start:stop], guidance_scale=scale, steps=8
        )
        return torch.stack([picture.image for picture in drawn])

    together = pictures(0, 8)
    assert torch.equal(torch.cat([pictures(0, 3), pictures(3, 8)]), together)
    assert torch.equal(torch.cat([pictures(i, i + 1) for i in range(8)]), together)
    small_generator.use(scheduler="DPMSolver++")


def test_fixed_rows_change_nothing_but_the_call_size() -> None:
    sizes = []

    def network(x_t, t, tokens):
        sizes.append(len(x_t))
        return x_t * 2 + t[:, None, None, None] + tokens.sum((1, 2))[:, None, None, None]

    x_t, t, tokens = torch.randn(5, 1, 2, 2), torch.arange(5), torch.randn(5, 3, 4)
    expected = network(x_t, t, tokens)
    sizes.clear()
    torch.testing.assert_close(in_fixed_rows(network, 4)(x_t, t, tokens), expected)
    assert sizes == [4, 4]


def agreement(generator, scale: float, *, own_loop_of_diffusers: bool) -> float:
    """Share of 100 images in which the judge reads the caption's digit; 20 DDIM steps."""
    from sfumato.training.judges import load_judge

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
        tokens = pipeline._tokens(prompts, "", ("cond", "uncond"))
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
