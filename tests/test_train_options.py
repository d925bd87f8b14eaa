"""`sfumato train` with plain options in place of --set."""

import contextlib
import io
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sfumato.base.errors import ConfigError, InputError, OtherSubjectWarning
from sfumato.cli.data import resolve_data
from sfumato.cli.options import TrainingOptions
from sfumato.config.schema import load_experiment
from sfumato.generation.loading import load
from sfumato.generation.subjects import warn_of_other_subjects
from tests.pictures import noise, write_image

OPTIONS = {
    "--images": ("64", "training.images", 64),
    "--epochs": ("0.5", "training.epochs", 0.5),
    "--batch-size": ("8", "training.batch_size", 8),
    "--lr": ("1e-05", "training.optimizer.lr", 1e-5),
    "--resolution": ("16", "data.resolution", 16),
    "--seed": (str(2**62 + 1), "seed", 2**62 + 1),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_is_short_for_a_setting(option: str) -> None:
    text, path, value = OPTIONS[option]
    name = option.removeprefix("--").replace("-", "_")
    given = TrainingOptions(**{name: value}).overrides([])
    assert load_experiment("digits", given) == load_experiment("digits", [f"{path}={text}"])
    if path == "seed":
        assert load_experiment("digits", given).seed == value


@pytest.mark.parametrize(
    ("preset", "length"), [("digits", {"epochs": 2.0}), ("mnist", {"images": 9})]
)
def test_one_length_replaces_that_of_a_preset(preset: str, length: dict) -> None:
    before = load_experiment(preset).training
    after = load_experiment(preset, TrainingOptions(**length).overrides([])).training
    (name, value), other = length.popitem(), {"epochs": "images", "images": "epochs"}
    assert getattr(before, name) is None
    assert (getattr(after, name), getattr(after, other[name])) == (value, None)


@pytest.mark.parametrize(
    ("given", "settings"),
    [
        ({"lr": 1e-4}, ["training.optimizer.lr=0.001"]),
        ({"seed": 0}, ["seed=1"]),
        ({"epochs": 2.0, "images": 100}, []),
        ({"epochs": 2.0}, ["training.images=100"]),
        ({"images": 100}, ["data.workers=0", "training.epochs=2"]),
    ],
)
def test_two_values_for_one_setting_are_refused(refused, given: dict, settings: list[str]) -> None:
    with refused(InputError):
        TrainingOptions(**given).overrides(settings)


@pytest.mark.parametrize(
    ("preset", "given"), [("digits", {"lr": -1.0, "batch_size": 0}), ("clip", {"resolution": 8})]
)
def test_a_value_that_does_not_fit_names_its_setting(refused, preset: str, given: dict) -> None:
    with refused(ConfigError):
        load_experiment(preset, TrainingOptions(**given).overrides([]))


def test_the_run_has_what_the_options_say(sfumato, tmp_path: Path) -> None:
    sizes = ["--batch-size", "8", "--images", "16", "--resolution", "8", "--seed", "3"]
    network = ["--set", "model.block_out_channels=[8,16]", "--set", "sampling.steps=2"]
    network += ["--set", "model.levels=[plain,plain]"]
    result = sfumato("train", "digits", *sizes, "--lr", "1e-5", *network, "--out", str(tmp_path))
    assert result.code == 0, result.err
    values = yaml.safe_load((tmp_path / "experiment.yaml").read_text("utf-8"))
    assert (values["seed"], values["data"]["resolution"]) == (3, 8)
    training = values["training"]
    assert (training["batch_size"], training["images"], training["epochs"]) == (8, 16, None)
    assert training["optimizer"]["lr"] == 1e-5


def test_a_contradiction_is_answered_without_torch() -> None:
    script = """
import sys
sys.argv = ["sfumato", "train", "digits", "--seed", "1", "--set", "seed=2"]
from sfumato.cli import main
try:
    main()
except SystemExit as leaving:
    print(leaving.code, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == ["2", "False"]
    assert done.stderr.startswith("error: --seed 1 and --set seed=2 set the same.")


def test_a_run_says_what_differs_from_the_preset_and_ends_with_a_whole_step(
    sfumato, tmp_path: Path
) -> None:
    quick = [
        "model.block_out_channels=[8,16]",
        "model.levels=[plain,attention]",
        "sampling.steps=2",
    ]
    options = ["--images", "20", "--batch-size", "16", "--resolution", "8", "--out", "run"]
    settings = [part for one in quick for part in ("--set", one)]
    result = sfumato("train", "small", "--data", "digits", *options, *settings, cwd=tmp_path)
    assert result.code == 0, result.err
    assert (
        "Changed: data.source=digits, training.images=20, training.batch_size=16, "
        f"data.resolution=8, {', '.join(quick)}\n"
    ) in result.out
    assert "32 of 32 images" in result.out
    assert "Finished at 32 images." in result.out
    model = load(tmp_path / "run", device="cpu")
    assert model.provenance["classes"] == [str(digit) for digit in range(10)]
    with pytest.warns(OtherSubjectWarning):
        warn_of_other_subjects(model, ["a frog"])


def test_several_captions_an_image_are_announced(sfumato, tmp_path: Path) -> None:
    for seed in range(6):
        write_image(
            tmp_path / "set" / f"{seed}.png",
            noise(seed),
            "\n".join(["a bird", "a wren", "it"][: 1 + seed % 3]),
        )
    experiment = load_experiment("small", [f"data.source={tmp_path / 'set'}", "data.test_share=0"])
    with contextlib.redirect_stdout(io.StringIO()) as out:
        resolve_data(experiment)
    assert "Images have up to 3 captions; a step draws one of them for each.\n" in out.getvalue()
