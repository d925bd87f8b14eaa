"""Each form of guidance in closed form, in the loop, and through configuration and PNG."""

import io
import math

import pytest
import torch
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance
from diffusers.guiders.guider_utils import rescale_noise_cfg
from PIL import Image
from sfumato.diffusion.schedule import DiffusionConfig, NoiseSchedule

from sfumato.base.errors import ConfigError, InputError
from sfumato.base.images import settings_in_png
from sfumato.config.schema import DiffusionExperiment, load_experiment
from sfumato.diffusion.guidance import (
    GUIDANCE_FORMS,
    AdaptiveProjectedGuidance,
    AutoGuidance,
    ClassifierFreeGuidance,
    DynamicThresholding,
    GuidanceConfig,
    IntervalGuidance,
    RescaledGuidance,
)
from sfumato.diffusion.sampling import Network, Sampled, initial_noise, sample
from sfumato.diffusion.solvers.schedulers import build_scheduler, build_solver
from sfumato.generation.model import ImageGenerator
from sfumato.generation.pipeline import generators_from_seeds
from tests.conftest import IdealDenoiser

COSINE = DiffusionConfig(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
SCHEDULE = NoiseSchedule.from_config(COSINE)
RANGES = [(-1.0, 1.0), (0.0, 1.0)]


def predictions(value_range=(-1.0, 1.0), *, seed: int = 0) -> dict:
    """Random x0 (3, 2, 4, 4) inside the value range, for every branch."""
    low, high = value_range
    draws = torch.rand(
        3, 3, 2, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return dict(zip(("cond", "uncond", "weak"), low + (high - low) * draws, strict=True))


def pair(x0: dict, *names: str) -> dict:
    return {name: x0[name] for name in names or ("cond", "uncond")}


def draw(
    guidance, network: Network, labels, *, weak: Network | None = None, steps: int = 20
) -> Sampled:
    cond = labels.float()[:, None, None]
    return sample(
        network,
        build_solver(build_scheduler("DDIM", COSINE), steps=steps, generators=[]),
        schedule=SCHEDULE,
        prediction_type="v_prediction",
        noise=initial_noise((1, 8, 8), generators_from_seeds(range(len(labels)))),
        tokens={"cond": cond, "uncond": torch.full_like(cond, -1), "weak": cond},
        guidance=guidance,
        weak_network=weak,
        value_range=(-1.0, 1.0),
    )


# Neutral parameters are plain guidance ------------------------------------------------------------


@pytest.mark.parametrize("value_range", RANGES)
@pytest.mark.parametrize(
    "text",
    ["interval:low=0,high=1e9", "rescaled:phi=0", "apg:eta=1,momentum=0,norm=0", "cfg"],
)
@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0, 8.0])
def test_neutral_parameters_equal_eq_1(text: str, scale: float, value_range) -> None:
    form = GuidanceConfig.parse(text).build(scale=scale, value_range=value_range)
    plain = ClassifierFreeGuidance(scale)
    assert form.branches(5.0) == plain.branches(5.0)
    x0 = pair(predictions(value_range), *plain.branches(5.0))
    torch.testing.assert_close(form.combine(x0, {}), plain.combine(x0, {}), rtol=0, atol=1e-12)


@pytest.mark.parametrize("value_range", RANGES)
def test_thresholding_leaves_an_image_inside_the_range_alone(value_range) -> None:
    x0 = predictions(value_range)["cond"]
    form = DynamicThresholding(1.0, value_range, percentile=1.0)
    torch.testing.assert_close(form.combine({"cond": x0}, {}), x0, rtol=0, atol=1e-15)


# Closed forms -------------------------------------------------------------------------------------


def test_interval_needs_one_call_outside_and_two_inside() -> None:
    form = IntervalGuidance(3.0, low=0.3, high=2.0)
    both, alone = ("cond", "uncond"), ("cond",)
    assert [form.branches(sigma) for sigma in (0.1, 0.3, 0.31, 2.0, 2.01, math.inf)] == [
        alone,
        alone,
        both,
        both,
        alone,
        alone,
    ]
    assert IntervalGuidance(0.0, low=0.3, high=2.0).branches(9.0) == ("uncond",)
    assert IntervalGuidance(1.0, low=0.3, high=2.0).branches(1.0) == ("cond",)


def test_sigma_is_the_noise_level_of_edm() -> None:
    schedule = NoiseSchedule(torch.tensor([0.5, 0.2, 0.0], dtype=torch.float64))
    expected = torch.tensor([1.0, 2.0, math.inf], dtype=torch.float64)
    torch.testing.assert_close(schedule.sigma[:3], expected)


def test_rescaling_gives_the_contrast_of_cond_by_the_share_phi() -> None:
    x0 = pair(predictions())
    plain = ClassifierFreeGuidance(6.0).combine(x0, {})
    full = RescaledGuidance(6.0, phi=1.0).combine(x0, {})
    std = [v.std((1, 2, 3)) for v in (x0["cond"], full)]
    torch.testing.assert_close(std[1], std[0])
    half = RescaledGuidance(6.0, phi=0.5).combine(x0, {})
    torch.testing.assert_close(half, (plain + full) / 2)
    torch.testing.assert_close(half, rescale_noise_cfg(plain, x0["cond"], guidance_rescale=0.5))


def test_dynamic_thresholding_by_hand() -> None:
    """|x0| = 0, 1, 2, 3, 4: the 75th percentile is 3, so 4 -> 3 / 3 and 1 -> 1 / 3."""
    x0 = torch.tensor([0.0, -1, 2, -3, 4]).reshape(1, 1, 1, 5)
    form = DynamicThresholding(1.0, percentile=0.75)
    expected = torch.tensor([0, -1 / 3, 2 / 3, -1, 1]).reshape(1, 1, 1, 5)
    torch.testing.assert_close(form.combine({"cond": x0}, {}), expected)


def test_apg_removes_what_lies_along_cond() -> None:
    x0 = pair(predictions())
    update = AdaptiveProjectedGuidance(2.0, eta=0.0, momentum=0).combine(x0, {}) - x0["cond"]
    along = (update * x0["cond"]).sum((1, 2, 3))
    torch.testing.assert_close(along, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)


def test_apg_limits_the_norm_of_the_direction() -> None:
    x0 = pair(predictions())
    form = AdaptiveProjectedGuidance(2.0, eta=1.0, momentum=0, norm=0.25)
    update = form.combine(x0, {}) - x0["cond"]
    torch.testing.assert_close(update.flatten(1).norm(dim=1), torch.full((3,), 0.25).double())


def test_apg_equals_the_implementation_of_diffusers_over_steps() -> None:
    """diffusers is given w - 1, because it adds to cond what we scale by w - 1."""
    form = AdaptiveProjectedGuidance(4.0, eta=0.3, momentum=-0.5, norm=2.0)
    memory: dict = {}
    buffer = MomentumBuffer(-0.5)
    for step in range(4):
        x0 = pair(predictions(seed=step))
        theirs = normalized_guidance(
            x0["cond"],
            x0["uncond"],
            3.0,
            momentum_buffer=buffer,
            eta=0.3,
            norm_threshold=2.0,
            use_original_formulation=True,
        )
        torch.testing.assert_close(form.combine(x0, memory), theirs)


@pytest.mark.parametrize("text", ["rescaled:phi=0.7", "dynamic_thresholding", "apg:norm=1"])
def test_pictures_do_not_depend_on_the_value_range(text: str) -> None:
    """x0 in [0, 1] gives half of x0 in [-1, 1], plus one half."""
    wide = pair(predictions())
    narrow = {name: (value + 1) / 2 for name, value in wide.items()}
    config = GuidanceConfig.parse(text)
    half_norm = GuidanceConfig.parse(text.replace("norm=1", "norm=0.5"))
    a = config.build(scale=5.0).combine(wide, {})
    b = half_norm.build(scale=5.0, value_range=(0.0, 1.0)).combine(narrow, {})
    torch.testing.assert_close((a + 1) / 2, b)


def test_autoguidance_leads_away_from_the_weak_network() -> None:
    form = AutoGuidance(3.0)
    assert form.branches(1.0) == ("cond", "weak")
    assert AutoGuidance(0.0).branches(1.0) == ("weak",)
    x0 = predictions()
    guided = form.combine(pair(x0, "cond", "weak"), {})
    torch.testing.assert_close(guided, x0["weak"] + 3 * (x0["cond"] - x0["weak"]))


# The loop on the ideal denoiser -------------------------------------------------------------------


@pytest.mark.parametrize("form", sorted(GUIDANCE_FORMS))
def test_every_form_is_finite_and_in_its_class_at_w_8(form: str, digits8) -> None:
    ideal = IdealDenoiser(digits8, SCHEDULE)
    labels = torch.arange(20) % 10
    guidance = GuidanceConfig(form=form).build(scale=8.0)
    # The weaker network does not understand captions.
    sampled = draw(guidance, ideal, labels, weak=lambda x, t, c: ideal(x, t, -torch.ones_like(c)))
    assert bool(torch.isfinite(sampled.x0).all())
    nearest = torch.cdist(sampled.x0.flatten(1).double(), ideal.images).argmin(1)
    assert bool((ideal.labels[nearest] == labels).all())


def test_interval_calls_are_counted_exactly(digits8) -> None:
    ideal = IdealDenoiser(digits8, SCHEDULE)
    rows = 0

    def network(x_t, t, tokens):
        nonlocal rows
        rows += len(x_t)
        return ideal(x_t, t, tokens)

    sampled = draw(IntervalGuidance(3.0, low=0.3, high=2.0), network, torch.arange(4))
    levels = SCHEDULE.sigma[torch.arange(999, -1, -50)]
    inside = int(((levels > 0.3) & (levels <= 2.0)).sum())
    assert 0 < inside < 20
    assert sampled.calls == 20 + inside
    assert rows == 4 * sampled.calls


def test_momentum_does_not_outlive_a_sampling_run(digits8) -> None:
    ideal = IdealDenoiser(digits8, SCHEDULE)
    form = AdaptiveProjectedGuidance(4.0, momentum=-0.7)
    first, second = (draw(form, ideal, torch.arange(4), steps=5).x0 for _ in range(2))
    assert torch.equal(first, second)


def test_autoguidance_by_a_copy_of_itself_is_no_guidance(digits8) -> None:
    ideal = IdealDenoiser(digits8, SCHEDULE)
    labels = torch.arange(4)
    copied = draw(AutoGuidance(5.0), ideal, labels, weak=lambda *parts: ideal(*parts), steps=5)
    alone = draw(ClassifierFreeGuidance(1.0), ideal, labels, steps=5)
    torch.testing.assert_close(copied.x0, alone.x0, rtol=1e-4, atol=1e-4)
    assert (copied.calls, alone.calls) == (10, 5)


# Configuration ------------------------------------------------------------------------------------


def test_the_short_form_is_written_and_read_back() -> None:
    config = GuidanceConfig.parse("apg:eta=0.25")
    assert str(config) == "apg:eta=0.25,momentum=-0.5,norm=0"
    assert config.label == "apg:eta=0.25"
    assert GuidanceConfig.parse(str(config)) == config
    assert GuidanceConfig.model_validate(config.model_dump(mode="json")) == config
    assert str(GuidanceConfig()) == GuidanceConfig().label == "cfg"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("apgg", "Did you mean 'apg'"),
        ("apg:eat=0", "Did you mean 'eta'"),
        ("apg:eta", "has no value"),
        ("apg:eta=much", "not a number"),
        ("apg:eta=inf", "finite"),
        ("apg:momentum=1", "between -1 and 1"),
        ("cfg:phi=1", "no parameter 'phi'"),
        ("interval:low=3,high=2", "low < high"),
        ("rescaled:phi=2", "0 (plain) to 1"),
        ("dynamic_thresholding:percentile=99.5", "share"),
        ("autoguidance:images=1.5", "images"),
    ],
)
def test_a_wrong_form_is_answered_with_what_there_is(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        GuidanceConfig.parse(text)
    assert message in caught.value.what
    assert "apg:eta=0,momentum=-0.5,norm=0" in caught.value.hint
    with pytest.raises(ConfigError, match=r"sampling\.guidance"):
        load_experiment("digits", [f"sampling.guidance={text}"])


def test_guidance_is_a_setting_of_an_experiment(tmp_path) -> None:
    short = load_experiment("digits", ["sampling.guidance=apg:eta=0.5"])
    long = load_experiment(
        "digits", ["sampling.guidance.form=apg", "sampling.guidance.parameters={eta: 0.5}"]
    )
    assert short == long
    (tmp_path / "mine.yaml").write_text(short.to_yaml())
    again: DiffusionExperiment = load_experiment(str(tmp_path / "mine.yaml"))
    assert again.sampling.guidance == GuidanceConfig.parse("apg:eta=0.5")


# A trained network: configuration, PNG, command line ----------------------------------------------

PROMPTS = [f"A handwritten digit {digit}" for digit in range(4)]


@pytest.mark.parametrize("text", ["interval:low=0.5,high=3", "apg:norm=4", "autoguidance"])
def test_a_picture_carries_what_draws_it_again(text: str, small_run, tmp_path) -> None:
    generator = ImageGenerator.open(small_run, device="cpu")
    *_, picture = generator.draw(
        PROMPTS, range(4), guidance_scale=4, guidance=GuidanceConfig.parse(text), steps=6
    )
    (tmp_path / "one.png").write_bytes(picture.png())
    settings = settings_in_png(tmp_path / "one.png")
    assert bool(settings["weak_weights_sha256"]) == (text == "autoguidance")
    fresh = ImageGenerator.open(small_run, device="cpu")
    fresh.use(
        scheduler=settings["scheduler"],
        guidance_scale=float(settings["guidance_scale"]),
        guidance=GuidanceConfig.parse(settings["guidance"]),
        steps=int(settings["steps"]),
    )
    (again,) = fresh.draw([settings["prompt"]], [int(settings["seed"])])
    assert torch.equal(again.image, picture.image)
    assert again.settings == picture.settings


@pytest.mark.parametrize("text", ["rescaled:phi=0.5", "autoguidance:images=4000"])
def test_an_exported_pipeline_carries_its_guidance(text: str, small_run, tmp_path) -> None:
    from sfumato.training.checkpoint import Checkpoints

    oldest = Checkpoints(small_run / "checkpoints").all()[0].images_seen
    guidance = GuidanceConfig.parse(text.replace("4000", str(oldest)))
    generator = ImageGenerator.open(small_run, device="cpu")
    generator.use(guidance=guidance)
    generator.export(tmp_path / "pipeline")
    exported = ImageGenerator.open(tmp_path / "pipeline", device="cpu")
    assert exported.guidance == guidance
    assert (tmp_path / "pipeline" / "weak_unet").is_dir() == guidance.needs_weak_network
    (ours,) = generator.draw(PROMPTS[:1], [7], guidance_scale=5)
    (theirs,) = exported.draw(PROMPTS[:1], [7], guidance_scale=5)
    assert torch.equal(ours.image, theirs.image)
    assert ours.settings == theirs.settings


def test_a_weaker_checkpoint_that_is_not_there(small_run) -> None:
    generator = ImageGenerator.open(small_run, device="cpu")
    form = GuidanceConfig.parse("autoguidance:images=123")
    with pytest.raises(InputError, match="not 123") as caught:
        list(generator.draw(PROMPTS, range(4), guidance=form))
    assert "keep_checkpoints" in caught.value.hint
    exported = ImageGenerator.open(small_run / "pipeline", device="cpu")
    with pytest.raises(InputError, match="no weaker network"):
        list(exported.draw(PROMPTS, range(4), guidance=form))


@pytest.mark.parametrize("text", ["rescaled", "dynamic_thresholding", "apg:norm=4", "autoguidance"])
def test_a_seed_gives_one_picture_alone_or_among_others(text: str, small_run) -> None:
    generator = ImageGenerator.open(small_run, device="cpu")
    generator.use(guidance=GuidanceConfig.parse(text), guidance_scale=5, steps=6)
    together = list(generator.draw(PROMPTS, range(4)))
    (alone,) = generator.draw(PROMPTS[2:3], [2])
    assert torch.equal(alone.image, together[2].image)


def test_grid_compares_forms_and_sample_records_one(sfumato, small_run, tmp_path) -> None:
    grid = tmp_path / "grid.png"
    forms = ["--guidance-form", "cfg", "--guidance-form", "interval:low=0.5,high=3"]
    drawn = sfumato("grid", str(small_run), "--scales", "3,8", *forms, "--out", str(grid))
    assert drawn.code == 0, drawn.err
    rows = settings_in_png(grid)["rows"]
    assert rows == (
        "cfg, w = 3 | cfg, w = 8 | interval:low=0.5,high=3, w = 3 | interval:low=0.5,high=3, w = 8"
    )
    drawn = sfumato(
        "sample",
        str(small_run),
        PROMPTS[0],
        "--guidance-form",
        "interval:low=0.5,high=3",
        "--out",
        str(tmp_path),
    )
    assert drawn.code == 0, drawn.err
    picture = Image.open(io.BytesIO((tmp_path / drawn.out.strip()).read_bytes()))
    assert picture.text["sfumato:guidance"] == "interval:low=0.5,high=3"
    assert 6 < int(picture.text["sfumato:calls"]) < 12
    wrong = sfumato("evaluate", str(small_run), "--guidance-form", "appg")
    assert wrong.code == 2
    assert "Did you mean 'apg'" in wrong.err
