import json
from pathlib import Path

import pytest
import torch
import yaml

from sfumato.base.errors import ConfigError, InputError
from sfumato.base.files import TEMPORARY_PREFIX, write_json
from sfumato.base.section import settings_of
from sfumato.config.overrides import differences, flattened, override, preset_names
from sfumato.config.reference import commented_yaml, settings_reference
from sfumato.config.schema import (
    CHANGEABLE_ON_RESUME,
    SCHEMAS,
    ClassSet,
    ClipExperiment,
    DiffusionExperiment,
    load_experiment,
)
from sfumato.config.sections import DataConfig, TextConfig
from sfumato.diffusion.solvers.registry import Sampling
from sfumato.models.unet import build_unet
from sfumato.training.folder import claim_folder
from sfumato.training.optimizer import build_optimizer


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_valid_and_survives_yaml(name: str, tmp_path: Path) -> None:
    experiment = load_experiment(name)
    assert experiment.name == name
    assert experiment.about
    file = tmp_path / "mine.yaml"
    file.write_text(experiment.to_yaml())
    assert load_experiment(str(file)) == experiment


def test_mnist_is_the_listing_of_section_3_2() -> None:
    experiment = load_experiment("mnist")
    data, model, training = experiment.data, experiment.model, experiment.training
    assert (data.source, data.resolution, data.channels) == ("ylecun/mnist", 28, 1)
    assert (data.caption, data.value_range) == (("A handwritten digit {label}",), (0, 1))
    assert experiment.text == TextConfig(encoder="openai/clip-vit-base-patch32", max_tokens=8)
    network = build_unet(model, resolution=28, channels=1, seed=0)
    assert {
        "sample_size": 28,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (32, 64, 64, 32),
        "layers_per_block": 2,
        "cross_attention_dim": 512,
        "down_block_types": (
            "DownBlock2D",
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "DownBlock2D",
        ),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    }.items() <= dict(network.config).items()
    assert (training.batch_size, training.epochs, training.images) == (512, 20, None)
    assert training.checkpoint_epochs == (5, 10, 15, 20)
    assert (training.caption_dropout, training.loss_weight) == (0, "uniform")
    (ours,) = build_optimizer(training.optimizer, network).param_groups
    (theirs,) = torch.optim.AdamW(network.parameters(), lr=1e-3).param_groups
    for name in ("lr", "betas", "eps", "weight_decay", "amsgrad"):
        assert ours[name] == theirs[name]
    assert (training.optimizer.warmup_images, training.optimizer.decay) == (0, "constant")
    assert training.optimizer.max_grad_norm is None
    diffusion = experiment.diffusion
    assert (diffusion.beta_schedule, diffusion.num_train_timesteps) == ("squaredcos_cap_v2", 1000)
    assert diffusion.prediction_type == "epsilon"
    assert not diffusion.rescale_zero_terminal_snr
    assert (experiment.sampling.sampler, experiment.sampling.steps) == ("DDPM", 50)
    assert experiment.sampling.timestep_spacing == "leading"
    assert experiment.sampling.guidance_scale == 5


def test_mnist_table5_differs_in_what_table_5_states() -> None:
    found = differences(load_experiment("mnist"), load_experiment("mnist-table5"))
    del found["name"], found["about"]
    assert found == {
        "model.block_out_channels": ([32, 64, 64, 32], [96, 192, 192, 96]),
        "training.batch_size": (512, 256),
        "training.optimizer.lr": (1e-3, 1e-4),
    }


def test_cifar10_is_the_listing_of_section_3_3() -> None:
    experiment = load_experiment("cifar10")
    data, model, training = experiment.data, experiment.model, experiment.training
    assert (data.resolution, data.channels, data.value_range) == (32, 3, (-1, 1))
    assert data.caption == ("A photo of a {class_name}",)
    assert experiment.text.encoder == "openai/clip-vit-base-patch32"
    assert experiment.text.max_tokens == 77
    assert model.block_out_channels == (128, 256, 256, 512)
    assert model.levels == ("plain", "attention", "attention", "plain")
    assert (model.layers_per_block, model.cross_attention_dim) == (2, 512)
    assert (model.attention_head_dim, model.head_channels) == (32, None)
    assert (training.batch_size, training.epochs, training.caption_dropout) == (128, 50, 0.1)
    assert (training.optimizer.lr, training.optimizer.weight_decay) == (1e-4, 0.01)
    assert (training.optimizer.warmup_images, training.optimizer.decay) == (0, "constant")
    assert training.optimizer.max_grad_norm is None
    assert (training.averaging.halflife_images, training.loss_weight) == (0, "uniform")
    assert not training.mirrored
    diffusion = experiment.diffusion
    assert (diffusion.beta_schedule, diffusion.num_train_timesteps) == ("linear", 1000)
    assert (diffusion.beta_start, diffusion.beta_end) == (1e-4, 0.02)
    assert diffusion.prediction_type == "epsilon"
    assert (experiment.sampling.sampler, experiment.sampling.steps) == ("DDPM", 50)
    assert experiment.evaluation.guidance_scales == (0, 2, 5, 10)
    assert experiment.evaluation.count == 1000


def test_cifar10_45m_differs_in_the_channels_alone() -> None:
    found = differences(load_experiment("cifar10"), load_experiment("cifar10-45m"))
    del found["name"], found["about"]
    assert list(found) == ["model.block_out_channels"]


def test_wikiart_is_the_listing_of_section_3_4() -> None:
    experiment = load_experiment("wikiart")
    data, model, training = experiment.data, experiment.model, experiment.training
    assert (data.source, data.label_column) == ("huggan/wikiart", "style")
    assert (data.resolution, data.channels, data.value_range) == (128, 3, (-1, 1))
    assert data.fit == "squash"
    assert data.caption == ("A painting in the style of {style_name}",)
    assert experiment.text.encoder == "openai/clip-vit-base-patch32"
    assert experiment.text.max_tokens == 77
    assert model.block_out_channels == (128, 256, 512, 512, 1024)
    assert model.levels == ("plain", "attention", "attention", "attention", "plain")
    assert (model.layers_per_block, model.cross_attention_dim) == (2, 512)
    assert (model.attention_head_dim, model.head_channels) == (32, None)
    assert (model.norm_num_groups, model.dropout) == (32, 0)
    assert (training.batch_size, training.epochs, training.caption_dropout) == (64, 100, 0.1)
    assert (training.optimizer.lr, training.optimizer.weight_decay) == (1e-5, 0.01)
    assert (training.optimizer.warmup_images, training.optimizer.decay) == (0, "constant")
    assert training.optimizer.max_grad_norm is None
    assert (training.averaging.halflife_images, training.loss_weight) == (0, "uniform")
    assert training.checkpoint_epochs == tuple(range(10, 101, 10))
    assert not training.mirrored
    diffusion = experiment.diffusion
    assert (diffusion.beta_schedule, diffusion.num_train_timesteps) == ("linear", 1000)
    assert (diffusion.beta_start, diffusion.beta_end) == (1e-4, 0.02)
    assert diffusion.prediction_type == "epsilon"


def test_wikiarts_blocks_are_those_of_the_listing() -> None:
    """Down, CrossAttnDown x3, Down, and the mirror."""
    experiment = load_experiment("wikiart")
    with torch.device("meta"):
        unet = build_unet(experiment.model, resolution=128, channels=3, seed=0)
    kinds = [type(block).__name__ for block in (*unet.down_blocks, *unet.up_blocks)]
    assert kinds == [
        *("DownBlock2D", *["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
        *("UpBlock2D", *["CrossAttnUpBlock2D"] * 3, "UpBlock2D"),
    ]


def test_wikiart_150m_differs_in_the_channels_alone() -> None:
    found = differences(load_experiment("wikiart"), load_experiment("wikiart-150m"))
    del found["name"], found["about"]
    assert list(found) == ["model.block_out_channels"]


def test_wikiart_tiny_has_the_recipe_of_cifar10_tiny() -> None:
    found = differences(load_experiment("cifar10-tiny"), load_experiment("wikiart-tiny"))
    del found["name"], found["about"]
    assert {name for name in found if not name.startswith("data.")} == set()


def test_every_setting_is_documented() -> None:
    for schema in SCHEMAS.values():
        settings = settings_of(schema)
        assert [name for name, setting in settings.items() if not setting["description"]] == []
    undocumented = [name for name, one in settings_of(ClassSet).items() if not one["description"]]
    assert undocumented == []


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_with_comments_is_the_same_experiment(name: str, tmp_path: Path) -> None:
    file, experiment = tmp_path / "mine.yaml", load_experiment(name)
    file.write_text(commented_yaml(experiment))
    assert load_experiment(file) == experiment
    lines = file.read_text().splitlines()
    assert max(len(line) for line in lines) <= 100
    comments = " ".join(line.strip(" #") for line in lines if line.lstrip().startswith("#"))
    values = flattened(experiment.model_dump(mode="json"))
    for name, setting in settings_of(type(experiment)).items():
        if name.startswith("diffusion.") and name not in values:
            continue  # of another process
        assert " ".join(setting["description"].split("\n\n")[0].split()) in comments


def test_the_settings_reference_is_current() -> None:
    """`sfumato presets settings > docs/settings.md` renews it."""
    file = Path(__file__).parents[1] / "docs" / "settings.md"
    assert file.read_text("utf-8") == settings_reference()


def test_sections_are_overridden_without_an_experiment(refused) -> None:
    found = override({"data": DataConfig(), "sampling": Sampling()}, ["sampling.steps=7"])
    assert (found["data"], found["sampling"]) == (DataConfig(), Sampling(steps=7))
    with refused(ConfigError):
        override({"data": DataConfig()}, ["data.resolutoin=8"])


def test_an_experiment_of_another_method_is_refused(refused) -> None:
    assert load_experiment("clip", schema=ClipExperiment).method == "clip"
    with refused(ConfigError):
        load_experiment("clip", schema=DiffusionExperiment)


def test_overrides_reach_their_setting_with_their_type() -> None:
    experiment = load_experiment(
        "digits",
        ["training.optimizer.lr=1e-4", "data.value_range=[0, 1]", "training.epochs=2", "seed=7"],
    )
    assert experiment.training.optimizer.lr == 1e-4
    assert experiment.data.value_range == (0, 1)
    assert experiment.training.images is None
    assert experiment.training.total_images(897) == 1794
    assert experiment.seed == 7


@pytest.mark.parametrize(
    "override",
    [
        "training.batch_sise=32",
        "lr=1",
        "training.learning_rate=1",
        "training.optimiser.lr=1",
        "sampling.scheduler=DDIM",
        "sampling.colour=1",
        "bogus.thing=1",
        "training.batch_size=many",
        "training.batch_size",
        "training.batch_size=-1",
        "diffusion.prediction_type=noise",
        "model.norm_num_groups=7",
        "training=fast",
        "data.value_range=[1, 0]",
        "training.optimizer.lr=.inf",
        "zebra=1",
    ],
)
def test_a_wrong_setting_is_answered_with_what_was_expected(override: str, refused) -> None:
    with refused(ConfigError):
        load_experiment("digits", [override])


def test_all_problems_are_reported_at_once(refused) -> None:
    wrong = ["training.batch_size=x", "data.resolution=0", "seed=y", "training.batchsize=3"]
    with refused(ConfigError):
        load_experiment("digits", wrong)


def test_rules_between_settings_are_told_with_all_else(refused) -> None:
    single = ["training.batchsize=3", "training.optimizer.lr=-1", "model.head_channels=0"]
    rules = ["training.micro_batches=9000", "training.compile=graph", "sampling.steps=5000"]
    with refused(ConfigError):
        load_experiment("digits", [*single, *rules])


def test_a_rule_about_a_setting_that_is_wrong_itself_is_not_told(refused) -> None:
    with refused(ConfigError):
        load_experiment("digits", ["training.batch_size=-1", "training.micro_batches=9000"])


def test_every_setting_out_of_range_is_told_also_within_one_section(refused) -> None:
    out_of_range = [
        "training.images=0",
        "training.caption_dropout=1",
        "training.keep_checkpoints=-1",
        "training.checkpoint_epochs=[1,0]",
        "training.averaging.halflife_images=-5",
        "training.optimizer.lr=0",
        "training.optimizer.warmup_images=-1",
        "model.head_channels=0",
        "model.dropout=1.5",
        "diffusion.beta_end=1",
        "text.max_tokens=0",
        "sampling.guidance_scale=1001",
        "evaluation.quick_scales=[1,-1]",
        "evaluation.baseline_pairs=1",
    ]
    with refused(ConfigError):
        load_experiment("digits", out_of_range)


def test_an_unknown_preset_names_the_nearest(refused) -> None:
    with refused(ConfigError):
        load_experiment("digit")


@pytest.mark.parametrize(
    "text",
    ["name: [unclosed", "just words", "name: x\ndata:\n  sauce: digits\n", ""],
    ids=["unclosed", "words", "a mistyped setting", "empty"],
)
def test_unreadable_yaml(text: str, tmp_path: Path, refused) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with refused(ConfigError):
        load_experiment(str(file))


def test_yaml_that_is_not_text_or_not_there(tmp_path: Path, refused) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with refused(ConfigError):
        load_experiment(str(tmp_path / "mine.yaml"))
    with refused(InputError):
        load_experiment(str(tmp_path / "other.yaml"))


# The run folder -----------------------------------------------------------------------------------


def test_a_folder_of_another_experiment_is_refused_and_untouched(tmp_path: Path, refused) -> None:
    claim_folder(load_experiment("digits"), tmp_path)
    before = (tmp_path / "experiment.yaml").read_bytes()
    with refused(ConfigError):
        claim_folder(load_experiment("digits", ["training.batch_size=8"]), tmp_path)
    assert (tmp_path / "experiment.yaml").read_bytes() == before


def test_a_setting_newer_than_the_run_is_named_with_its_hint(tmp_path: Path, refused) -> None:
    claim_folder(load_experiment("digits"), tmp_path)
    file = tmp_path / "experiment.yaml"
    file.write_text(file.read_text().replace("  loading: auto\n", ""))
    here = load_experiment("digits", ["data.loading=memory"])
    with refused(ConfigError):
        claim_folder(here, tmp_path)


def test_a_folder_with_other_files_is_refused(tmp_path: Path, refused) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with refused(ConfigError):
        claim_folder(load_experiment("digits"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_settings_that_may_change_on_resume_do(tmp_path: Path) -> None:
    claim_folder(load_experiment("digits"), tmp_path)
    longer = load_experiment("digits", ["training.images=99", "sampling.steps=3", "about=mine"])
    claim_folder(longer, tmp_path)
    assert yaml.safe_load((tmp_path / "experiment.yaml").read_text())["training"]["images"] == 99


def test_the_table_of_changeable_settings_names_real_ones() -> None:
    assert set(CHANGEABLE_ON_RESUME) <= set(settings_of(DiffusionExperiment))


def test_the_documentation_lists_exactly_the_changeable_settings() -> None:
    text = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text("utf-8")
    _, _, after = text.partition(
        "| may change when a run goes on | because it is |\n| --- | --- |\n"
    )
    table = after.partition("\n\n")[0].splitlines()
    assert table == [f"| `{name}` | {why} |" for name, why in CHANGEABLE_ON_RESUME.items()]


def test_a_start_that_was_killed_before_its_first_file_is_no_foreign_folder(tmp_path) -> None:
    (tmp_path / f"{TEMPORARY_PREFIX}abc").write_text("name: dig")
    claim_folder(load_experiment("digits"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["experiment.yaml"]


def test_differences_are_named_by_setting() -> None:
    a, b = load_experiment("digits"), load_experiment("digits", ["training.optimizer.lr=1"])
    assert list(differences(a, b)) == ["training.optimizer.lr"]
    assert json.dumps(differences(a, b))


@pytest.mark.parametrize(
    "setting",
    ["seed=-1", "sampling.steps=-2", "sampling.steps=1001", "sampling.guidance_scale=-1"],
)
def test_what_would_fail_after_training_is_refused_before_it(setting: str, refused) -> None:
    """The message has the value that is wrong, not those of its whole section."""
    with refused(ConfigError):
        load_experiment("digits", [setting])


def test_a_run_is_not_shortened_to_before_its_checkpoint(tmp_path, refused) -> None:
    claim_folder(load_experiment("digits"), tmp_path)
    (tmp_path / "checkpoints" / "images-000033008").mkdir(parents=True)
    before = (tmp_path / "experiment.yaml").read_text("utf-8")
    with refused(ConfigError):
        claim_folder(load_experiment("digits", ["training.images=200"]), tmp_path)
    assert (tmp_path / "experiment.yaml").read_text("utf-8") == before
    claim_folder(load_experiment("digits", ["training.images=40000"]), tmp_path)


def test_nor_is_one_whose_length_is_in_epochs(tmp_path, refused) -> None:
    state = {"format": 1, "images_seen": 2000, "position": {"epoch": 2, "seed": 0, "samples": 206}}
    claim_folder(load_experiment("digits", ["training.epochs=4"]), tmp_path)
    (tmp_path / "checkpoints" / "images-000002000").mkdir(parents=True)
    write_json(tmp_path / "checkpoints" / "images-000002000" / "state.json", state)
    with refused(ConfigError):
        claim_folder(load_experiment("digits", ["training.epochs=2"]), tmp_path)
    claim_folder(load_experiment("digits", ["training.epochs=3"]), tmp_path)


def test_images_that_moved_are_told_how_to_go_on(tmp_path: Path, refused) -> None:
    first = load_experiment("digits", ["data.source=/there"])
    claim_folder(first, tmp_path / "run")
    with refused(ConfigError):
        claim_folder(load_experiment("digits", ["data.source=/elsewhere"]), tmp_path / "run")
