"""Models that come with sfumato: `sfumato bundle`, and `bundled:NAME` wherever a model is taken."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from sfumato.base.errors import ConfigError, DamagedDataError, InputError
from sfumato.base.files import read_json, sha256_of_file, write_json
from sfumato.config.schema import load_experiment
from sfumato.evaluation.bundling import add_cards, public_source, training_command, write_bundle
from sfumato.evaluation.card import Card, read_card
from sfumato.evaluation.metrics.intervals import Estimate
from sfumato.generation import bundle_names as names
from sfumato.generation import bundles as bundle_format
from sfumato.generation.bundle_names import HASHES, INDEX, beside, model_folder
from sfumato.generation.bundles import FIGURES, TEXT_FILES, UNET_WEIGHTS, open_bundle
from sfumato.generation.loading import load
from sfumato.generation.model import Model
from sfumato.generation.pipeline import TextToImagePipeline
from sfumato.text.bundled import BUNDLED_FOLDER

PROMPTS, SEEDS = ["A handwritten digit 7", "the digit 2"], [0, 1]
LARGEST_BYTES = 7_000_000


@pytest.fixture(scope="module")
def bundle(small_run: Path, sfumato, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `sfumato bundle` writes of the small run."""
    folder = tmp_path_factory.mktemp("bundles") / "digits"
    result = sfumato("bundle", str(small_run), "--out", str(folder))
    assert result.code == 0, result.err
    assert f"sfumato evaluate {folder}\n" in result.out
    return folder


@pytest.fixture
def copied(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copied"))


@pytest.fixture
def packaged(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The small bundle as if it had come with sfumato; its name."""
    package = tmp_path / "package"
    shutil.copytree(bundle, package / "eights")
    monkeypatch.setattr(names, "PACKAGE", package)
    return "bundled:eights"


def images_of(model: Model, **changes) -> torch.Tensor:
    """uint8 (2, C, H, W)."""
    return model.sample(PROMPTS, SEEDS, **changes).tensor


def alter(file: Path, place: int) -> None:
    """Change one bit of one byte."""
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(bytes(content))


# What is written ----------------------------------------------------------------------------------


def test_what_a_bundle_holds(bundle: Path, small_run: Path) -> None:
    """Every file is hashed, the text encoder is not among them, and no path of this machine is."""
    files = {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()}
    recorded = read_json(bundle / HASHES)
    assert files == {*recorded["files"], HASHES}
    assert set(recorded["text_encoder"]) == set(TEXT_FILES)
    assert not [name for name in files if "text" in name or "tokenizer" in name]
    for name in files - {UNET_WEIGHTS}:
        text = (bundle / name).read_text("utf-8")
        assert str(small_run) not in text
        assert str(Path.home()) not in text


def test_weights_are_the_averaged_ones_in_half_precision(bundle: Path, small_model: Model) -> None:
    model = open_bundle(bundle)
    assert next(model.network.parameters()).dtype == torch.float32
    average = small_model.network.state_dict()
    for name, value in model.network.state_dict().items():
        assert torch.equal(value, average[name].half().float()), name
    assert not any(parameter.requires_grad for parameter in model.network.parameters())


def test_it_samples_what_the_run_samples_but_for_the_rounding(
    bundle: Path, small_model: Model
) -> None:
    ours, theirs = images_of(load(bundle, device="cpu")), images_of(small_model)
    assert float((ours.double() - theirs.double()).abs().mean()) < 4


def test_provenance(bundle: Path, small_model: Model) -> None:
    found, of_run = load(bundle, device="cpu").provenance, small_model.provenance
    assert found["weights_sha256"] == sha256_of_file(bundle / UNET_WEIGHTS)
    assert found["rounded_from_sha256"] == of_run["weights_sha256"]
    for key in ("experiment", "seed", "images_seen", "text_encoder", "caption_dropout", "data"):
        assert found[key] == of_run[key]
    assert list(found["examples"].values()) == [str(digit) for digit in range(10)]


def test_the_same_run_gives_the_same_weights(bundle: Path, small_run: Path, tmp_path: Path) -> None:
    write_bundle(small_run, tmp_path / "again")
    again = (tmp_path / "again" / UNET_WEIGHTS).read_bytes()
    assert again == (bundle / UNET_WEIGHTS).read_bytes()


def test_opening_leaves_no_trace_in_the_global_generator(bundle: Path) -> None:
    before = torch.get_rng_state()
    open_bundle(bundle)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_command_of_training_trains_the_same(small_run: Path) -> None:
    experiment = load_experiment(str(small_run / "experiment.yaml"))
    program, verb, preset, *rest = shlex.split(training_command(experiment))
    assert (program, verb, preset) == ("sfumato", "train", "digits")
    again = load_experiment(preset, [word for word in rest if word != "--set"])
    same = {"data": experiment.data, "evaluation": experiment.evaluation}  # as found in the images
    assert again.model_copy(update=same) == experiment
    assert training_command(load_experiment("mnist-fast")) == "sfumato train mnist-fast"
    other = load_experiment("mnist-fast", ["data.source=me/digits"])
    assert training_command(other) == "sfumato train mnist-fast --data me/digits"


def test_data_are_named_as_others_find_them(tmp_path: Path, refused) -> None:
    assert public_source("digits", None) == "digits"
    assert public_source("ylecun/mnist", None) == "ylecun/mnist"
    assert public_source(str(tmp_path), "ylecun/mnist") == "ylecun/mnist"
    for source, given in ((str(tmp_path), None), ("digits", str(tmp_path)), ("data", None)):
        with refused(InputError):
            public_source(source, given)


def test_a_run_read_from_a_folder_has_the_public_name_alone(
    small_run: Path, tmp_path: Path, sfumato
) -> None:
    prepared, run = tmp_path / "my-secret-place", tmp_path / "run"
    assert sfumato("prepare", "digits", str(prepared), "--resolution", "8").code == 0
    shutil.copytree(small_run, run)
    text = (run / "experiment.yaml").read_text("utf-8")
    (run / "experiment.yaml").write_text(text.replace("source: digits", f"source: {prepared}"))
    refused = sfumato("bundle", str(run), "--out", str(tmp_path / "out"))
    assert refused.code == 2
    assert "--source OWNER/NAME" in refused.err
    note = ["--note", "A part of them."]
    done = sfumato(
        "bundle", str(run), "--out", str(tmp_path / "out"), "--source", "me/digits", *note
    )
    assert done.code == 0, done.err
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "Data: me/digits" in card
    assert "A part of them." in card
    assert "--data me/digits" in card
    for file in (tmp_path / "out").rglob("*"):
        assert file.is_dir() or b"my-secret-place" not in file.read_bytes(), file


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["BUNDLE", "--out", "new"], ["is not a run"]),
        (["no-such-run", "--out", "new"], ["does not exist"]),
        (["RUN", "--out", "BUNDLE"], ["exists", "new folder"]),
        (["RUN", "--card", "x"], ["is not a bundle", "--out"]),
        (["BUNDLE"], ["No evaluations are named", "--card FOLDER"]),
        (["BUNDLE", "--card", "x", "--source", "me/digits"], ["--source goes with a run"]),
        (["BUNDLE", "--card", "x"], ["x/card.json does not exist"]),
    ],
)
def test_what_bundle_refuses(
    sfumato, bundle: Path, small_run: Path, arguments, words, tmp_path: Path
) -> None:
    places = {"BUNDLE": str(bundle), "RUN": str(small_run)}
    result = sfumato("bundle", *(places.get(one, one) for one in arguments), cwd=tmp_path)
    assert result.code == 2, result.out
    for word in words:
        assert word in result.err, result.err
    assert not (tmp_path / "new").exists()


def test_other_text_encoders_and_autoguidance_are_refused(
    small_run: Path, tmp_path: Path, refused
) -> None:
    text = (small_run / "experiment.yaml").read_text("utf-8")
    for name, before, after in (
        ("encoder", "encoder: bundled", f"encoder: {BUNDLED_FOLDER}"),
        ("guidance", "guidance: cfg", "guidance: autoguidance"),
    ):
        run = tmp_path / name
        shutil.copytree(small_run, run)
        (run / "experiment.yaml").write_text(text.replace(before, after))
        with refused((InputError, ConfigError)):
            write_bundle(run, tmp_path / "out")


# Metrics ------------------------------------------------------------------------------------------


def evaluation(folder: Path, weights_sha256: str) -> Card:
    """A card with one row of invented metrics, written into `folder`."""
    settings = {
        "guidance_scale": 3.0,
        "guidance": "cfg",
        "sampler": "DDIM",
        "timestep_spacing": "trailing",
        "steps": 10,
        "seeds": [0, 999],
    }
    provenance = {
        "weights_sha256": weights_sha256,
        "data": {"held_out": ["{label} written by hand"]},
    }
    accuracy = Estimate(value=0.987, low=0.978, high=0.993, percent=True)
    real = Estimate(value=0.99, low=0.98, high=0.995, percent=True)
    card = Card.model_validate(
        {
            "subject": {
                "kind": "pipeline",
                "name": "digits",
                "provenance": provenance,
                "captions": ["{label} written by hand"],
                "labels": "balanced",
            },
            "reference": {
                "description": "real digits",
                "digest": "d",
                "count": 300,
                "training_description": "others",
            },
            "classifier": {"identity": "sha256:j", "description": "a ResNet", "test_count": 300},
            "extractors": [{"key": "classifier", "title": "Frechet"}],
            "rows": [
                {
                    "title": "w = 3",
                    "count": 1000,
                    "settings": settings,
                    "nfe": 20,
                    "metrics": {
                        "class_accuracy": accuracy,
                        "frechet.classifier": Estimate(value=1.23),
                    },
                }
            ],
            "real": {"title": "real", "count": 300, "metrics": {"class_accuracy": real}},
            "baselines": {
                "classifier": {
                    "count": 1000,
                    "reference_count": 300,
                    "pairs": 10,
                    "disjoint": "both",
                    "metrics": {"frechet": {"mean": 0.61, "std": 0.052}},
                }
            },
        }
    )
    return card.save(folder)


def test_metrics_are_of_the_weights_that_are_shipped(
    copied: Path, small_run: Path, sfumato, tmp_path: Path, refused
) -> None:
    other, own = tmp_path / "other", tmp_path / "own"
    provenance = load(copied, device="cpu").provenance
    evaluation(other, provenance["rounded_from_sha256"])
    before = (copied / INDEX).read_bytes()
    with refused(ConfigError):
        add_cards(copied, [other])
    evaluation(own, provenance["weights_sha256"])
    result = sfumato("bundle", str(copied), "--card", str(own))
    assert result.code == 0, result.err
    text = (copied / "README.md").read_text("utf-8")
    row = "| held out | 3 | 98.7 % | 97.8 - 99.3 % | 1.23 | 0.61 ± 0.052 | 1,000 | 0-999 | 20 |"
    assert row in text
    assert "right on 99.0 %" in text
    assert "`{label} written by hand`" in text
    assert read_json(copied / FIGURES)["evaluations"][0]["rows"][0]["frechet"]["value"] == 1.23
    assert (copied / INDEX).read_bytes() == before
    open_bundle(copied)  # hashed again
    # In one command, once it is measured: the same weights are rounded again.
    write_bundle(small_run, tmp_path / "copied-2", cards=[own / "card.json"])
    assert row in (tmp_path / "copied-2" / "README.md").read_text("utf-8")


@pytest.mark.slow
def test_from_a_run_to_measured_metrics(copied: Path, sfumato) -> None:
    """The three commands; what is measured lies beside the bundle, not in it."""
    beside = copied.with_name("copied-evaluation")
    options = ["--count", "20", "--scales", "3", "--set", "evaluation.extractors=[classifier]"]
    done = sfumato("evaluate", str(copied), *options, "--set", "sampling.steps=2")
    assert done.code == 0, done.err
    assert read_card(beside).subject.kind == "pipeline"
    done = sfumato("bundle", str(copied), "--card", str(beside))
    assert done.code == 0, done.err
    assert "| trained on | 3 |" in (copied / "README.md").read_text("utf-8")
    open_bundle(copied)


# Damage -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, -1])
@pytest.mark.parametrize(
    "name",
    [INDEX, "unet/config.json", UNET_WEIGHTS, FIGURES, "README.md"],
)
def test_a_byte_that_was_altered(name: str, place: int, copied: Path, refused) -> None:
    alter(copied / name, place)
    with refused(DamagedDataError):
        load(copied)
    (copied / name).unlink()
    with refused(DamagedDataError):
        TextToImagePipeline.from_pretrained(copied)


@pytest.mark.parametrize("name", TEXT_FILES)
def test_another_text_encoder(
    name: str, bundle: Path, tmp_path: Path, monkeypatch, refused
) -> None:
    clip = Path(shutil.copytree(BUNDLED_FOLDER, tmp_path / "clip"))
    monkeypatch.setattr(bundle_format, "BUNDLED_FOLDER", clip)
    open_bundle(bundle)
    alter(clip / name, 100)
    with refused(DamagedDataError):
        open_bundle(bundle)


def test_damaged_hashes(copied: Path, refused) -> None:
    recorded = read_json(copied / HASHES)
    text = (copied / HASHES).read_text("utf-8")
    for damaged in ("", "[]", text[:-20], json.dumps({**recorded, "files": {}})):
        (copied / HASHES).write_text(damaged)
        with refused(DamagedDataError):
            open_bundle(copied)
    (copied / HASHES).unlink()
    with refused(DamagedDataError):
        open_bundle(copied)


def test_on_the_command_line_it_is_one_message(copied: Path, sfumato, tmp_path: Path) -> None:
    alter(copied / UNET_WEIGHTS, 5000)
    result = sfumato("sample", str(copied), "7", cwd=tmp_path)
    assert result.code == 3
    assert result.err.startswith("error: ")
    assert "model.safetensors is damaged" in result.err
    assert len(result.err.splitlines()) == 2


def test_what_the_package_lacks_is_mended_by_installing_again(packaged: str, refused) -> None:
    alter(model_folder(packaged) / INDEX, 3)
    for model in (packaged, model_folder(packaged)):
        with refused(DamagedDataError):
            load(model)


def test_nothing_is_written_into_the_package(packaged: str, copied: Path, small_run: Path) -> None:
    for model in (packaged, model_folder(packaged)):
        assert beside(model, "evaluation") == Path("eights-evaluation")
    assert beside(copied, "evaluation") == copied.with_name("copied-evaluation")
    assert beside(small_run, "evaluation") == small_run / "evaluation"


# The name, wherever a model is taken --------------------------------------------------------------


def test_the_nearest_name_is_said(packaged: str, sfumato, tmp_path: Path, refused) -> None:
    for command in (
        ["sample", "bundled:eight", "7"],
        ["grid", "bundled:eight"],
        ["evaluate", "bundled:eight"],
        ["compare", packaged, "bundled:eight@3"],
        ["export", "bundled:eight", "--out", "new"],
        ["bench", "sample", "bundled:eight"],
        ["figures", "bundled:eight"],
    ):
        result = sfumato(*command, cwd=tmp_path)
        assert result.code == 2, command
        assert "No model named 'eight'" in result.err
        assert f"Did you mean '{packaged}'?" in result.err
    with refused(InputError):
        TextToImagePipeline.from_pretrained("bundled:eight")


@pytest.mark.slow
def test_it_samples_wherever_a_model_is_taken(
    packaged: str, bundle: Path, sfumato, tmp_path: Path
) -> None:
    """And what is made of it lies in the working directory."""
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    expected = images_of(load(bundle, device="cpu"), steps=2)
    assert torch.equal(images_of(load(packaged, device="cpu"), steps=2), expected)
    pipe = TextToImagePipeline.from_pretrained(packaged)
    images = pipe(PROMPTS, seeds=SEEDS, num_inference_steps=2, output_type="uint8").images
    assert torch.equal(images, expected)

    few = [
        "--count",
        "20",
        "--set",
        "evaluation.extractors=[classifier]",
        "--set",
        "sampling.steps=2",
    ]
    for command in (
        ["sample", packaged, "A handwritten digit 7", "--steps", "2"],
        ["grid", packaged, "--steps", "2", "--scales", "1"],
        ["evaluate", packaged, "--scales", "3", *few],
        ["compare", f"{packaged}@1", f"{packaged}@3", *few],
        ["export", packaged, "--out", "exported"],
        ["grid", "exported", "--steps", "2", "--scales", "1", "--out", "again.png"],
    ):
        result = sfumato(*command, cwd=cwd)
        assert result.code == 0, result.err
    assert (cwd / "grid.png").read_bytes() == (cwd / "again.png").read_bytes()
    made = {path.name.partition("-2")[0].partition("-3")[0] for path in cwd.iterdir()}
    assert made == {"samples", "grid.png", "again.png", "eights-evaluation", "comparison"} | {
        "exported"
    }
    package = model_folder(packaged)
    assert {p.name for p in package.iterdir()} == {p.name for p in bundle.iterdir()}


def test_captions_are_known_without_the_data(copied: Path, sfumato, tmp_path: Path) -> None:
    index = read_json(copied / INDEX)
    index["model"]["provenance"]["data"]["source"] = "nobody/nothing"
    write_json(copied / INDEX, index)
    bundle_format.write_hashes(copied)
    result = sfumato("grid", str(copied), "--scales", "1", "--steps", "2", cwd=tmp_path)
    assert result.code == 0, result.err


def test_what_is_of_runs_alone(packaged: str, sfumato, tmp_path: Path) -> None:
    result = sfumato("figures", packaged, cwd=tmp_path)
    assert result.code == 2
    assert "bundled model has no record of its training" in result.err
    assert not any(tmp_path.glob("*/figures"))


def test_arguments_of_diffusers(bundle: Path, refused) -> None:
    half = TextToImagePipeline.from_pretrained(bundle, torch_dtype=torch.bfloat16)
    assert half.unet.dtype == half.text_encoder.dtype == torch.bfloat16
    TextToImagePipeline.from_pretrained(bundle, low_cpu_mem_usage=False)
    with refused(InputError):
        TextToImagePipeline.from_pretrained(bundle, scheduler=None)


def test_names_are_found_without_torch() -> None:
    code = (
        "import sys, sfumato.generation.bundle_names as n; n.bundled_names();"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# The one that is shipped --------------------------------------------------------------------------


@pytest.fixture(params=["mnist", "mnist-1"])
def mnist(request: pytest.FixtureRequest) -> Path:
    return model_folder(f"bundled:{request.param}")


def test_mnist_is_small_and_says_where_it_comes_from(mnist: Path) -> None:
    files = [path for path in mnist.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".md", ".safetensors"}
    assert sum(path.stat().st_size for path in files) <= LARGEST_BYTES
    assert {p.relative_to(mnist).as_posix() for p in files} == {
        *read_json(mnist / HASHES)["files"],
        HASHES,
    }
    provenance = load(f"bundled:{mnist.name}", device="cpu").provenance
    assert provenance["data"]["source"] == "ylecun/mnist"
    assert provenance["images_seen"] > 0


def test_mnist_was_measured(mnist: Path) -> None:
    evaluations = read_json(mnist / FIGURES)["evaluations"]
    assert {one["held_out"] for one in evaluations} == {False, True}
    assert "Not measured" not in (mnist / "README.md").read_text("utf-8")
    assert f"sfumato sample bundled:{mnist.name} " in (mnist / "README.md").read_text(
        "utf-8"
    )  # the command works


def test_mnist_samples_digits(mnist: Path, sfumato, tmp_path: Path) -> None:
    """Ink on a dark ground; the same picture by the command, alone, and by the class."""
    assert sfumato("sample", f"bundled:{mnist.name}", PROMPTS[0], cwd=tmp_path).code == 0
    pipe = TextToImagePipeline.from_pretrained(f"bundled:{mnist.name}")
    images = pipe(PROMPTS, seeds=SEEDS, output_type="uint8").images
    assert images.shape == (2, 1, 28, 28)
    for image in images.double():
        assert float((image < 32).double().mean()) > 0.5
        assert float((image > 192).double().mean()) > 0.02
    (file,) = (tmp_path / "samples").glob("*.png")
    assert Image.open(file).tobytes() == images[0].numpy().tobytes()
