"""Every rule of the lint: a configuration that it catches, and the preset that it leaves alone."""

import re
from dataclasses import replace

import pytest

from sfumato.base.errors import ConfigError
from sfumato.config.overrides import preset_names
from sfumato.config.schema import load_experiment
from sfumato.generation.loading import load
from sfumato.methods.registry import method_of
from sfumato.training.lint import (
    SAMPLING_RULES,
    TRAINING_RULES,
    LintWarning,
    SamplingPlan,
    lint_experiment,
    lint_sampling,
    warn,
)

LINEAR = ["diffusion.beta_schedule=linear", "diffusion.prediction_type=epsilon"]


THE_PAPERS = ("mnist", "mnist-table5")


@pytest.mark.parametrize("name", [name for name in preset_names() if name not in THE_PAPERS])
def test_the_presets_are_free_of_warnings(name: str) -> None:
    experiment = load_experiment(name)
    assert method_of(experiment).lint(experiment) == []


@pytest.mark.parametrize("name", THE_PAPERS)
def test_the_papers_mnist_is_warned_of_what_the_paper_found(name: str) -> None:
    """Noise under guidance: no caption dropout, and eps at a terminal SNR of almost zero; and half
    of the network of section 3.2 is not told the time."""
    experiment = load_experiment(name, ["training.images=200000"])
    *norms, guidance, terminal = method_of(experiment).lint(experiment)
    assert ["32 on 32 channels" in sentence for sentence in norms] == [True] * (name == "mnist")
    assert "training.caption_dropout=0" in guidance
    assert "multiplies its error by 20,291" in terminal


CAUGHT = {
    "guidance_without_dropout": (["training.caption_dropout=0"], "scale 5 .* null prompt"),
    "eps_at_near_zero_terminal_snr": (
        ["diffusion.prediction_type=epsilon"],
        r"2\.4e-09.* multiplies its error by 20,\d{3}",
    ),
    "spacing_off_the_trained_range": (
        ["sampling.timestep_spacing=leading"],
        r"t = 900 of 999.* 15 % of their signal.*=trailing",
    ),
    "averaging_longer_than_the_run": (
        ["training.averaging.halflife_images=50000", "training.images=44000"],
        r"50,000, longer than the run of 44,000 images: .*\(4,400 images at the end\)"
        r".*usual: --set training\.averaging\.halflife_images=2200$",
    ),
    "rescaling_that_does_nothing": (
        ["diffusion.rescale_zero_terminal_snr=true"],
        r"nothing to squaredcos_cap_v2.* 2\.4e-09",
    ),
    "norms_that_hide_the_time": (["model.norm_num_groups=32"], "32 on 32 channels.*instance norm"),
    "edm_of_pixels_on_latents": (
        ["diffusion.process=edm", "sampling.sampler=Heun", "codec.kind=linear"],
        r"diffusion\.sigma_data=0\.5 .* latents have deviation 1; set diffusion\.sigma_data=1",
    ),
    "weak_checkpoint_not_kept": (
        ["sampling.guidance=autoguidance", "training.keep_checkpoints=1"],
        "keep two",
    ),
}


@pytest.mark.parametrize("rule", sorted(CAUGHT))
def test_a_rule_catches_its_configuration_and_no_other_rule_does(rule: str) -> None:
    overrides, pattern = CAUGHT[rule]
    (sentence,) = lint_experiment(load_experiment("digits", overrides))
    assert re.search(pattern, sentence)


def test_every_rule_has_a_test() -> None:
    rules = {rule.__name__ for rule in [*SAMPLING_RULES, *TRAINING_RULES]}
    assert rules == {*CAUGHT, "scheduler_that_clips"}


@pytest.mark.parametrize(
    "overrides",
    [
        LINEAR,
        [*LINEAR, "sampling.timestep_spacing=leading", "sampling.steps=50"],
        [
            "training.caption_dropout=0",
            "sampling.guidance_scale=1",
            "evaluation.guidance_scales=[1]",
        ],
        ["training.caption_dropout=0", "sampling.guidance=autoguidance"],
        ["diffusion.beta_schedule=linear", "diffusion.rescale_zero_terminal_snr=true"],
        ["training.epochs=60"],
        ["diffusion.process=rectified_flow", "sampling.sampler=Euler"],
        ["diffusion.process=edm", "sampling.sampler=Heun"],
        [
            "diffusion.process=edm",
            "sampling.sampler=Heun",
            "codec.kind=linear",
            "diffusion.sigma_data=1",
        ],
    ],
)
def test_what_is_well_is_not_warned_of(overrides) -> None:
    assert lint_experiment(load_experiment("digits", overrides)) == []


def test_eps_at_zero_terminal_snr_divides_by_zero() -> None:
    (sentence,) = lint_experiment(
        load_experiment("digits", [*LINEAR, "diffusion.rescale_zero_terminal_snr=true"])
    )
    assert "divides by zero" in sentence


def test_averaging_that_keeps_the_untrained_network() -> None:
    overrides = [
        "training.averaging={halflife_images: 1.0e6, rampup_ratio: 2}",
        "training.epochs=9",
    ]
    (sentence,) = lint_experiment(load_experiment("digits", overrides))
    assert "untrained network" in sentence


def test_a_scheduler_that_clips_in_an_exported_pipeline(small_run) -> None:
    import diffusers

    model = load(small_run / "model", device="cpu")
    assert lint_sampling(SamplingPlan.of_model(model, [3.0])) == []
    scheduler = diffusers.DDIMScheduler(clip_sample=True)
    (sentence,) = lint_sampling(SamplingPlan.of_model(replace(model, scheduler=scheduler), [3.0]))
    assert "DDIMScheduler is configured with clip_sample=true" in sentence


def test_findings_are_warnings_and_strict_makes_one_error_of_them(refused, warned) -> None:
    with warned(LintWarning):
        warn(["one.", "two."])
    with refused(ConfigError):
        warn(["one.", "two."], strict=True)
    warn([], strict=True)


def test_train_warns_and_strict_refuses_before_anything_is_written(sfumato, tmp_path) -> None:
    wrong = ["--set", "diffusion.prediction_type=epsilon", "--out", str(tmp_path / "run")]
    refused = sfumato("train", "digits", "--strict", *wrong)
    assert refused.code == 2
    assert refused.err.startswith("error: ")
    assert "without --strict" in refused.err
    assert not (tmp_path / "run").exists()
    small = "training.images=32 data.resolution=8 model.block_out_channels=[8,16] sampling.steps=2"
    settings = [f"--set={setting}" for setting in [*small.split(), "model.levels=[plain,plain]"]]
    trained = sfumato("train", "digits", *wrong, *settings)
    assert trained.code == 0
    assert "warning: the schedule ends at a signal-to-noise ratio of 2.4e-09" in trained.err


def test_drawing_from_a_model_without_dropout_warns(sfumato, small_run, tmp_path) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    file = run / "experiment.yaml"
    file.write_text(file.read_text().replace("caption_dropout: 0.1", "caption_dropout: 0.0"))
    for command in (["sample", "A handwritten digit 7"], ["grid", "A digit", "--scales", "1,4"]):
        name, *rest = command
        out = tmp_path / ("grid.png" if name == "grid" else "pictures")
        drawn = sfumato(name, str(run), *rest, "--steps", "2", "--out", str(out))
        assert drawn.code == 0, drawn.err
        assert "caption_dropout=0 never saw" in drawn.err
    arguments = ["-w", "1", "--steps", "2", "--out", str(tmp_path / "alone")]
    alone = sfumato("sample", str(run), "A handwritten digit 7", *arguments)
    assert "warning" not in alone.err
