"""Each form of guidance in closed form, in the loop, and through configuration and PNG."""

import io
import math

import pytest
import torch
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance
from diffusers.guiders.guider_utils import rescale_noise_cfg
from PIL import Image

from sfumato.base.errors import ConfigError, InputError
from sfumato.base.images import settings_in_png
from sfumato.config.schema import DiffusionExperiment, load_experiment
from sfumato.diffusion.guidance import (
    GUIDANCE_FORMS,
    AdaptiveProjectedGuidance,
    AutoGuidance,
    ChannelThresholding,
    ClassifierFreeGuidance,
    DynamicThresholding,
    IntervalGuidance,
    RescaledGuidance,
    parse_form,
    parse_guidance,
)
from sfumato.diffusion.process import VariancePreserving
from sfumato.diffusion.sampling import Network, Sampled, initial_noise, sample
from sfumato.diffusion.solvers.build import build_solver
from sfumato.diffusion.solvers.registry import Sampling
from sfumato.generation.loading import load
from sfumato.generation.model import generators_from_seeds
from tests.conftest import IdealDenoiser
from tests.test_process import schedule_of

COSINE = VariancePreserving(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
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
        build_solver(COSINE, Sampling(sampler="DDIM", steps=steps)),
        process=COSINE,
        noise=initial_noise((1, 8, 8), generators_from_seeds(range(len(labels)))),
        tokens={"cond": cond, "uncond": torch.full_like(cond, -1), "weak": cond},
        guidance=guidance,
        weak_network=weak,
        x0_range=(-1.0, 1.0),
    )


# Neutral parameters are plain guidance ------------------------------------------------------------


@pytest.mark.parametrize("value_range", RANGES)
@pytest.mark.parametrize(
    "text",
    ["interval:low=0,high=1e9", "rescaled:phi=0", "apg:eta=1,momentum=0,norm=0", "cfg"],
)
@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0, 8.0])
def test_neutral_parameters_equal_eq_1(text: str, scale: float, value_range) -> None:
    form = parse_form(text).build(scale=scale, value_range=value_range)
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
    process = schedule_of(0.5, 0.2, 0.0)
    expected = torch.tensor([1.0, 2.0, math.inf], dtype=torch.float64)
    torch.testing.assert_close(process.noise_level(torch.arange(3)), expected)


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


def test_channel_thresholding_by_hand() -> None:
    """Each channel by itself: the 75th percentile of 0 to 4 is 3, that of 0 to 0.4 below the
    limit."""
    values = torch.tensor([0.0, -1, 2, -3, 4])
    x0 = torch.stack([values, values / 10]).reshape(1, 2, 1, 5)
    form = ChannelThresholding(1.0, percentile=0.75, limit=2)
    expected = torch.stack([torch.tensor([0, -2 / 3, 4 / 3, -2, 2]), values / 10])
    torch.testing.assert_close(form.combine({"cond": x0}, {})[0, :, 0], expected)


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
    form = parse_form(text)
    half_norm = parse_form(text.replace("norm=1", "norm=0.5"))
    a = form.build(scale=5.0).combine(wide, {})
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
    ideal = IdealDenoiser(digits8, COSINE)
    labels = torch.arange(20) % 10
    guidance = parse_form(form).build(scale=8.0)
    # The weaker network does not understand captions.
    sampled = draw(guidance, ideal, labels, weak=lambda x, t, c: ideal(x, t, -torch.ones_like(c)))
    assert bool(torch.isfinite(sampled.x0).all())
    assert bool((ideal.nearest_labels(sampled.x0) == labels).all())


def test_nfe_of_an_interval_is_counted_exactly(digits8) -> None:
    ideal = IdealDenoiser(digits8, COSINE)
    rows = 0

    def network(x_t, t, tokens):
        nonlocal rows
        rows += len(x_t)
        return ideal(x_t, t, tokens)

    sampled = draw(IntervalGuidance(3.0, low=0.3, high=2.0), network, torch.arange(4))
    levels = COSINE.noise_level(torch.arange(999, -1, -50))
    inside = int(((levels > 0.3) & (levels <= 2.0)).sum())
    assert 0 < inside < 20
    assert sampled.nfe == 20 + inside
    assert rows == 4 * sampled.nfe


def test_momentum_does_not_outlive_a_sampling_run(digits8) -> None:
    ideal = IdealDenoiser(digits8, COSINE)
    form = AdaptiveProjectedGuidance(4.0, momentum=-0.7)
    first, second = (draw(form, ideal, torch.arange(4), steps=5).x0 for _ in range(2))
    assert torch.equal(first, second)


def test_autoguidance_by_a_copy_of_itself_is_no_guidance(digits8) -> None:
    ideal = IdealDenoiser(digits8, COSINE)
    labels = torch.arange(4)
    copied = draw(AutoGuidance(5.0), ideal, labels, weak=lambda *parts: ideal(*parts), steps=5)
    alone = draw(ClassifierFreeGuidance(1.0), ideal, labels, steps=5)
    torch.testing.assert_close(copied.x0, alone.x0, rtol=1e-4, atol=1e-4)
    assert (copied.nfe, alone.nfe) == (10, 5)


# Configuration ------------------------------------------------------------------------------------


def test_a_form_is_written_and_read_back() -> None:
    form = parse_form("apg:eta=0.25")
    assert str(form) == "apg:eta=0.25,momentum=-0.5,norm=0"
    assert form.label == "apg:eta=0.25"
    assert parse_form(str(form)) == form
    assert Sampling(guidance="apg:eta=0.25").guidance == str(form)
    assert Sampling(guidance="apg:eta=0.25").form == form
    assert Sampling().guidance == str(Sampling().form) == Sampling().form.label == "cfg"


@pytest.mark.parametrize(
    "text",
    [
        "apgg",
        "apg:eat=0",
        "apg:eta",
        "apg:eta=much",
        "apg:eta=inf",
        "apg:momentum=1",
        "cfg:phi=1",
        "interval:low=3,high=2",
        "rescaled:phi=2",
        "dynamic_thresholding:percentile=99.5",
        "channel_thresholding:limit=0",
        "autoguidance:images=1.5",
    ],
)
def test_a_wrong_form_is_answered_with_what_there_is(text: str, refused) -> None:
    with refused(InputError):
        parse_guidance(text)
    with refused(ConfigError):
        load_experiment("digits", [f"sampling.guidance={text}"])


def test_guidance_is_a_setting_of_an_experiment(tmp_path) -> None:
    experiment = load_experiment("digits", ["sampling.guidance=apg:eta=0.5"])
    assert experiment.sampling.guidance == "apg:eta=0.5,momentum=-0.5,norm=0"
    (tmp_path / "mine.yaml").write_text(experiment.to_yaml())
    again: DiffusionExperiment = load_experiment(str(tmp_path / "mine.yaml"))
    assert again == experiment
    assert again.sampling.form == parse_form("apg:eta=0.5")


# A trained network: configuration, PNG, command line ----------------------------------------------

PROMPTS = [f"A handwritten digit {digit}" for digit in range(4)]


@pytest.mark.parametrize("text", ["interval:low=0.5,high=3", "apg:norm=4", "autoguidance"])
def test_an_image_carries_what_samples_it_again(
    text: str, small_run, small_model, tmp_path
) -> None:
    samples = small_model.sample(PROMPTS, range(4), guidance=4, form=text, steps=6)
    (tmp_path / "one.png").write_bytes(samples.png(3))
    settings = settings_in_png(tmp_path / "one.png")
    assert bool(settings["weak_weights_sha256"]) == (text == "autoguidance")
    again = load(small_run, device="cpu").sample(
        settings["prompt"],
        int(settings["seed"]),
        sampler=settings["sampler"],
        guidance=float(settings["guidance_scale"]),
        form=settings["guidance"],
        steps=int(settings["steps"]),
        alone="rows" in settings,  # it was one of a set
    )
    assert torch.equal(again.tensor[0], samples.tensor[3])
    assert again.settings == samples.settings[3:]


@pytest.mark.parametrize("text", ["rescaled:phi=0.5", "autoguidance:images=OLDEST"])
def test_an_exported_model_carries_its_guidance(
    text: str, small_run, small_model, tmp_path
) -> None:
    from sfumato.training.checkpoint import Checkpoints

    oldest = Checkpoints(small_run / "checkpoints").all()[0].images_seen
    model = small_model.with_(form=text.replace("OLDEST", str(oldest)))
    model.export(tmp_path / "model")
    exported = load(tmp_path / "model", device="cpu")
    assert exported.sampling == model.sampling
    assert (tmp_path / "model" / "weak_unet").is_dir() == text.startswith("autoguidance")
    ours, theirs = (one.sample(PROMPTS[0], 7, guidance=5) for one in (model, exported))
    assert torch.equal(ours.tensor, theirs.tensor)
    assert ours.settings == theirs.settings


def test_a_weaker_checkpoint_that_is_not_there(small_run, small_model, refused) -> None:
    form = "autoguidance:images=123"
    with refused(InputError):
        small_model.sample(PROMPTS, range(4), form=form)
    exported = load(small_run / "model", device="cpu")
    with refused(InputError):
        exported.sample(PROMPTS, range(4), form=form)


@pytest.mark.parametrize("text", ["rescaled", "dynamic_thresholding", "apg:norm=4", "autoguidance"])
def test_a_seed_is_one_image_alone_or_among_others(text: str, small_model) -> None:
    model = small_model.with_(form=text, guidance=5, steps=6)
    together = model.sample(PROMPTS, range(4)).tensor
    assert torch.equal(model.sample(PROMPTS[2], 2).tensor[0], together[2])


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
    image = Image.open(io.BytesIO((tmp_path / drawn.out.strip()).read_bytes()))
    assert image.text["sfumato:guidance"] == "interval:low=0.5,high=3"
    assert 6 < int(image.text["sfumato:nfe"]) < 12
    wrong = sfumato("evaluate", str(small_run), "--guidance-form", "appg")
    assert wrong.code == 2
    assert "Did you mean 'apg'" in wrong.err
