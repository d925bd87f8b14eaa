"""Classifiers of class accuracy: splits, training, those of others, untrained ones."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from sfumato.base.errors import ConfigError, DamagedDataError, InputError
from sfumato.base.hub import LOOKUP_SECONDS
from sfumato.base.images import to_float
from sfumato.config.overrides import build
from sfumato.config.schema import ClassifierExperiment, ClassifierTrainingConfig, load_experiment
from sfumato.config.sections import ClassifierConfig, DataConfig
from sfumato.data.loading import Batch
from sfumato.data.records import load_records
from sfumato.evaluation.classifier import RESULT, ImageClassifier, load_classifier, match_classes
from sfumato.evaluation.classifier_training import FILE_NAME, classifier_run
from sfumato.evaluation.extractors.registry import available_extractors
from sfumato.evaluation.metrics.calibration import fit_temperature, negative_log_likelihood
from sfumato.evaluation.untrained import over_seeds, untrained_accuracies
from sfumato.methods.registry import run_experiment
from sfumato.models.classifier import Classifier, build_classifier
from sfumato.training.checkpoint import Checkpoints
from sfumato.training.hooks import BaseHook
from sfumato.training.objectives.classifier import ClassifierObjective
from sfumato.training.step import StepContext, random_affine, random_changes, random_shifts, warped
from tests.messages import IN_BRACKETS
from tests.pictures import noise, write_image


def digits(**changes) -> DataConfig:
    values = {"source": "digits", "resolution": 8, "channels": 1, "caption": "digit {label}"}
    return DataConfig(**{**values, **changes})


# Splits -------------------------------------------------------------------------------------------


def test_the_test_images_are_split_into_tuning_and_reference() -> None:
    data = digits(tuning_share=0.6)
    tuning, reference = load_records(data, "tuning"), load_records(data, "reference")
    assert (len(tuning), len(reference)) == (180, 120)
    both = torch.cat([tuning.images, reference.images]).flatten(1).numpy()
    test = load_records(data, "test").images.flatten(1).numpy()
    assert sorted(map(bytes, both)) == sorted(map(bytes, test))
    assert "reference split (120 of 1,797)" in reference.description
    assert "split seed 0" in reference.description
    other = load_records(digits(tuning_share=0.6, split_seed=1), "tuning")
    assert not torch.equal(other.images, tuning.images)


def test_without_a_share_the_reference_is_the_test_split_and_nothing_else_changes(refused) -> None:
    assert load_records(digits(), "reference") is load_records(digits(), "test")
    with refused(InputError):
        load_records(digits(), "tuning")
    for split in ("train", "classifier", "test"):
        before = load_records(digits(), split).images
        assert torch.equal(load_records(digits(tuning_share=0.5), split).images, before)
    with refused(ValidationError):
        digits(tuning_share=1.0)


@pytest.fixture(scope="module")
def shades(tmp_path_factory) -> Path:
    """Ten dark and ten light pictures, without a test part of their own."""
    folder = tmp_path_factory.mktemp("shades")
    for index in range(10):
        write_image(folder / "dark" / f"{index}.png", noise(index, (8, 8)) // 4)
        write_image(folder / "light" / f"{index}.png", 255 - noise(50 + index, (8, 8)) // 4)
    return folder


def test_held_out_images_are_split_too(shades: Path, refused) -> None:
    data = DataConfig(source=str(shades), test_share=0.5, tuning_share=0.3)
    parts = [load_records(data, split) for split in ("train", "tuning", "reference")]
    assert all(map(len, parts))
    assert sum(map(len, parts)) == 20
    images = {bytes(image) for part in parts for image in part.images.flatten(1).numpy()}
    assert len(images) == 20
    with refused(InputError):
        load_records(data.model_copy(update={"test_share": 1e-6}), "reference")


# The network and its training ---------------------------------------------------------------------


def test_a_stage_halves_the_image_and_doubles_the_channels() -> None:
    network = Classifier(ClassifierConfig(width=4, blocks=(1, 2, 1)), channels=3, classes=5)
    shapes = []
    for layer in network.body:
        layer.register_forward_hook(lambda module, given, out: shapes.append(tuple(out.shape)))
    assert network(torch.zeros(2, 3, 20, 20)).shape == (2, 5)
    assert shapes[3:7] == [(2, 4, 20, 20), (2, 8, 10, 10), (2, 8, 10, 10), (2, 16, 5, 5)]
    assert network.feature_dim == 16


def test_weights_stay_contiguous_whatever_the_images_are() -> None:
    """A layout of weights is not in a checkpoint: moments would be paired with other weights."""
    network = build_classifier(channels=3, classes=2, seed=0)
    network(torch.rand(2, 3, 8, 8)).sum().backward()
    assert all(p.is_contiguous() and p.grad.is_contiguous() for p in network.parameters())


@pytest.mark.parametrize("experiment", ["classifier", "clip"])
def test_hints_name_the_preset_of_the_method(experiment: str, refused) -> None:
    with refused(ConfigError):
        load_experiment(experiment, ["zebra=1"])


@pytest.mark.parametrize("wrong", [{"width": 0}, {"blocks": []}, {"blocks": [1, 0]}], ids=str)
def test_a_network_of_nothing_is_refused(wrong, refused) -> None:
    with refused(ValidationError):
        ClassifierConfig.model_validate(wrong)


def test_a_batch_of_one_is_refused(refused) -> None:
    with refused(ValidationError):
        ClassifierTrainingConfig(batch_size=1)


def test_images_are_mirrored_where_it_is_said() -> None:
    context = StepContext(
        seed=0, images_seen=0, total_images=1, batch_size=200, device=torch.device("cpu")
    )
    plain = random_changes(context, size=0.1, mirrored=torch.tensor(False))
    assert torch.equal(plain, random_affine(200, context.generator("augmentation")))
    allowed = torch.arange(200) < 100
    changed = random_changes(context, size=0.1, mirrored=allowed)
    flipped = (changed != plain).flatten(1).any(1)
    assert torch.equal(changed[flipped, :, 0], -plain[flipped, :, 0])
    assert not flipped[100:].any()
    assert 30 <= int(flipped.sum()) <= 70
    images = torch.rand(200, 1, 6, 6)
    mirrored = warped(images, random_changes(context, size=0.0, mirrored=allowed))
    torch.testing.assert_close(mirrored[flipped], images[flipped].flip(3))
    torch.testing.assert_close(mirrored[~flipped], images[~flipped])


def test_images_are_shifted_by_whole_pixels() -> None:
    """As cutting out of the image whose edges are repeated, for each of the shifts."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (200, 3, 6, 8), dtype=torch.uint8)
    labels = torch.zeros(200, dtype=torch.long)
    batch = Batch(images=images, labels=labels, prompts=labels)
    context = StepContext(
        seed=0, images_seen=0, total_images=1, batch_size=200, device=torch.device("cpu")
    )
    network = build_classifier(channels=3, classes=2, seed=0)
    config = ClassifierTrainingConfig(affine=0, shift=2)
    changed = ClassifierObjective(network, config)._changed(batch, context)
    shifts = (random_shifts(context, 2, (6, 8)) * torch.tensor([8, 6]) / 2).int()
    assert {tuple(row.tolist()) for row in shifts} == {
        (x, y) for x in range(-2, 3) for y in range(-2, 3)
    }
    padded = F.pad(to_float(images, (-1.0, 1.0)), (2, 2, 2, 2), mode="replicate")
    for image, source, (x, y) in zip(changed, padded, shifts.tolist(), strict=True):
        torch.testing.assert_close(image, source[:, 2 + y : 8 + y, 2 + x : 10 + x])


def test_images_are_not_shifted_out_of_sight(tmp_path: Path, refused) -> None:
    with refused(ConfigError):
        classifier_run(
            digits(),
            tmp_path,
            network=ClassifierConfig(),
            training=ClassifierTrainingConfig(shift=8),
            seed=0,
            device=torch.device("cpu"),
        )


def test_the_temperature_is_the_one_that_made_the_labels() -> None:
    """Labels as often as softmax says: logits that are three times too large get T = 3."""
    shares = torch.tensor([[6, 3, 1], [2, 2, 6]])
    logits = (shares / 10).log().repeat_interleave(10, 0)
    labels = torch.cat([torch.arange(3).repeat_interleave(row) for row in shares])
    assert fit_temperature(3 * logits, labels) == pytest.approx(3.0, rel=1e-6)
    assert fit_temperature(logits / 4, labels) == pytest.approx(0.25, rel=1e-6)
    entropy = -float((shares / 10 * (shares / 10).log()).sum(1).mean())
    assert negative_log_likelihood(3 * logits, labels, temperature=3.0) == pytest.approx(entropy)
    right = F.one_hot(torch.arange(3)).float()
    assert 0.01 <= (lowest := fit_temperature(right, torch.arange(3))) < 0.05
    assert negative_log_likelihood(right, torch.arange(3), temperature=lowest) < 1e-12


# A run --------------------------------------------------------------------------------------------

SETTINGS = {
    "name": "tiny",
    "method": "classifier",
    "data": digits(tuning_share=0.5).model_dump(),
    "network": {"width": 8, "blocks": [1, 1]},
    "training": {
        "epochs": 12,
        "batch_size": 32,
        "log_every_images": 640,
        "checkpoint_every_images": 1280,
        "averaging": {"halflife_images": 500},
    },
}


def tiny() -> ClassifierExperiment:
    return build(ClassifierExperiment, json.loads(json.dumps(SETTINGS)), source="test")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("classifier") / "run"
    assert run_experiment(tiny(), folder, device="cpu").finished
    return folder


def test_a_result_says_what_it_is_worth(finished: Path) -> None:
    """Everything in classifier.json is computed again from the weights."""
    about = json.loads((finished / RESULT / FILE_NAME).read_text())
    tuning = about["tuning"]["weights"]
    best = min(tuning, key=lambda name: tuning[name]["negative_log_likelihood"])
    assert about["weights"] == best
    part = "classifier" if best == "last" else "average"
    weights = load_file(finished / RESULT / "classifier.safetensors")
    checkpoint = Checkpoints(finished / "checkpoints").latest()
    for name, value in load_file(checkpoint.verify(part)).items():
        assert torch.equal(weights[name], value)
    network = Classifier(ClassifierConfig(width=8, blocks=(1, 1)), channels=1, classes=10).eval()
    network.load_state_dict(weights)
    reference = load_records(tiny().data, "reference")
    with torch.no_grad():
        logits = network(to_float(reference.images, (-1.0, 1.0)))
    confusion = torch.zeros(10, 10, dtype=torch.int64)
    for asked, seen in zip(reference.labels, logits.argmax(1), strict=True):
        confusion[asked, seen] += 1
    assert about["confusion"] == confusion.tolist()
    assert about["test_accuracy"]["value"] == int(confusion.diagonal().sum()) / 150 > 0.9
    assert about["test_accuracy"]["low"] < about["test_accuracy"]["value"]
    classifier = load_classifier(tiny().data, str(finished))
    assert classifier.test_accuracy.value == about["test_accuracy"]["value"]
    torch.testing.assert_close(
        classifier.probabilities(reference.images), (logits / about["temperature"]).softmax(1)
    )


def test_stopped_and_started_again_equals_unbroken(finished: Path, tmp_path: Path, refused) -> None:
    class Stop(BaseHook):
        def after_step(self, run, metrics) -> None:
            run.stop_requested = run.images_seen == 3200

    run = run_experiment(tiny(), tmp_path / "run", hooks=[Stop()])
    assert not run.finished
    assert not (tmp_path / "run" / RESULT).exists()
    with refused(InputError):
        load_classifier(tiny().data, str(tmp_path / "run"))
    assert run_experiment(tiny(), tmp_path / "run").finished
    for name in ("metrics.jsonl", f"{RESULT}/{FILE_NAME}", f"{RESULT}/classifier.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (finished / name).read_bytes()
    ours, theirs = (
        Checkpoints(folder / "checkpoints").latest() for folder in (tmp_path / "run", finished)
    )
    for part in ("classifier", "average", "optimizer"):
        assert ours.sha256(part) == theirs.sha256(part)


def test_a_finished_run_without_its_result_makes_it_again(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / RESULT)
    run_experiment(tiny(), tmp_path / "run")
    again = (tmp_path / "run" / RESULT / FILE_NAME).read_bytes()
    assert again == (finished / RESULT / FILE_NAME).read_bytes()


def test_a_classifier_is_measured_on_what_it_was_not_tuned_on(finished: Path) -> None:
    """Of the same images its own split counts, whatever the model's data section says."""
    own = load_classifier(tiny().data, str(finished))
    asked = load_classifier(digits(), str(finished / RESULT))
    assert asked.test_accuracy == own.test_accuracy
    assert asked.identity == own.identity
    assert own.identity.startswith("run sha256:")
    assert asked.test_accuracy.count == 150


def test_a_classifier_of_other_images_is_refused(finished: Path, shades: Path, refused) -> None:
    with refused(InputError):
        load_classifier(digits(resolution=16), str(finished))
    with refused(InputError):
        load_classifier(digits(channels=3), str(finished))
    with refused(InputError):
        load_classifier(DataConfig(source=str(shades), resolution=8), str(finished))


def test_a_damaged_classifier_is_named(finished: Path, tmp_path: Path, refused) -> None:
    shutil.copytree(finished / RESULT, tmp_path / "copied")
    file = tmp_path / "copied" / "classifier.safetensors"
    weights = load_file(file)
    weights["head.bias"] += 1
    save_file(weights, file)
    with refused(DamagedDataError):
        load_classifier(tiny().data, str(tmp_path / "copied"))
    file.unlink()
    with refused(DamagedDataError):
        load_classifier(tiny().data, str(tmp_path / "copied"))


def test_train_takes_the_data_set_as_a_second_argument(sfumato, tmp_path: Path) -> None:
    settings = [
        *("--set", "data.resolution=8", "--set", "training.epochs=2"),
        *("--set", "network.width=4", "--set", "network.blocks=[1]"),
    ]
    out = str(tmp_path / "run")
    result = sfumato("train", "classifier", "digits", *settings, "--out", out)
    assert result.code == 0, result.err
    assert "Training on 600 of them at 8x8, greyscale." in result.out
    assert "% of 300 real images correct" in result.out
    again = sfumato("train", "classifier", "--data", "digits", *settings, "--out", out)
    assert "Already trained: 1,216 images." in again.out
    both = sfumato("train", "classifier", "digits", "--data", "digits")
    assert both.code == 2
    assert "given twice: 'digits' and --data 'digits'" in both.err


def test_images_without_classes_have_no_classifier(
    shades: Path, sfumato, tmp_path: Path, refused
) -> None:
    with refused(InputError):
        load_classifier(DataConfig(source=str(shades / "dark"), caption=("a photo",)))
    arguments = ("train", "classifier", str(shades / "dark"), "--set", "data.caption=a photo")
    result = sfumato(*arguments, "--out", "run", cwd=tmp_path)
    assert result.code == 2
    assert "has no classes" in result.err
    assert not (tmp_path / "run").exists()


def test_the_preset_is_what_a_classifier_of_the_cache_is_trained_by(refused) -> None:
    experiment = load_experiment("classifier")
    assert isinstance(experiment, ClassifierExperiment)
    assert experiment.training == ClassifierTrainingConfig()
    assert experiment.network == ClassifierConfig()
    with refused(ConfigError):
        load_experiment("classifier", ["network.block=2"])


# All kinds ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(cache: Path) -> ImageClassifier:
    said: list[str] = []
    first = load_classifier(digits(), log=said.append)
    again = load_classifier(digits(), log=said.append)
    assert len(said) <= 1  # none where another test has it in the cache
    assert again.identity == first.identity
    return first


def test_the_classifier_of_digits_reads_them(trained: ImageClassifier, refused) -> None:
    assert trained.test_accuracy.count == 300
    assert trained.test_accuracy.value >= 0.97
    test = load_records(digits(), "test")
    labels, features = trained.predict(test.images), trained(test.images)
    assert int((labels == test.labels).sum()) == trained.test_accuracy.successes
    assert features.shape == (300, trained.dim)
    (found,) = available_extractors(("classifier",), classifier=trained)
    assert torch.equal(found.extractor(test.images), features)
    probabilities = trained.probabilities(test.images)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(300))
    assert torch.equal(probabilities.argmax(1), labels)
    with refused(InputError):
        trained(test.images.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_untrained_classifiers_guess(trained: ImageClassifier, refused) -> None:
    test = load_records(digits(), "test")
    accuracies = untrained_accuracies(digits(), test.images, test.labels)
    assert len(accuracies) == 20
    found = over_seeds(accuracies, classes=10)
    assert found.details["chance"] == 0.1
    # 20 heads' own spread is some 4 points each, so a point in the mean.
    assert abs(found.value - 0.1) < 0.03
    assert found.high < 0.3 < trained.test_accuracy.value
    third = load_classifier(digits(), "untrained:2")
    assert third.test_accuracy == accuracies[2]
    assert load_classifier(digits(), "untrained").test_accuracy == accuracies[0]
    assert third.identity.startswith("untrained:2 sha256:")
    assert third.identity != load_classifier(digits(), "untrained:3").identity.replace(":3", ":2")
    with refused(InputError):
        load_classifier(digits(), "untrained:x")


def test_loading_leaves_the_global_generator_alone(
    finished: Path, trained: ImageClassifier
) -> None:
    before = torch.get_rng_state()
    load_classifier(digits(), "untrained:1")
    load_classifier(digits(), str(finished))
    load_classifier(digits())
    assert torch.equal(torch.get_rng_state(), before)


# Of transformers ----------------------------------------------------------------------------------

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def save_stand_in(folder: Path, kind: str, labels: list[str], **config) -> Path:
    """A tiny image classifier with random weights, as transformers saves one."""
    import transformers as tf

    names = dict(enumerate(labels))
    ids = {name: index for index, name in names.items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "vit":
            settings = tf.ViTConfig(
                hidden_size=24,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=32,
                image_size=16,
                patch_size=8,
                id2label=names,
                label2id=ids,
                **config,
            )
            model = tf.ViTForImageClassification(settings)
            processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16}}
            processor["size"]["width"] = 16
        else:
            settings = tf.ResNetConfig(
                embedding_size=8,
                hidden_sizes=[8, 12],
                depths=[1, 1],
                layer_type="basic",
                id2label=names,
                label2id=ids,
                **config,
            )
            model = tf.ResNetForImageClassification(settings)
            processor = {
                "image_processor_type": "ConvNextImageProcessor",
                "size": {"shortest_edge": 28},
                "crop_pct": 0.875,
            }
    model.save_pretrained(folder)
    colour = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    (folder / "preprocessor_config.json").write_text(json.dumps({**processor, **colour}))
    return folder


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_a_classifier_of_transformers_classifies(kind: str, tmp_path: Path) -> None:
    """Against the model called by hand; its eleven labels lie in another order than our ten."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    labels = ["nothing", *reversed(WORDS)]
    folder = save_stand_in(tmp_path / kind, kind, labels)
    classifier = load_classifier(digits(), str(folder))
    images = load_records(digits(), "test").images
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    pixels = processor(
        [image.expand(3, -1, -1).numpy() for image in images],
        input_data_format="channels_first",
        return_tensors="pt",
    )
    with torch.no_grad():
        logits = model(**pixels).logits.flip(1)[:, :10]
    predicted, features = classifier.predict(images), classifier(images)
    assert features.shape == (300, 24 if kind == "vit" else 12)
    torch.testing.assert_close(classifier.probabilities(images), logits.softmax(1))
    assert (predicted == logits.argmax(1)).double().mean() > 0.99
    right = int((predicted == load_records(digits(), "test").labels).sum())
    assert (classifier.test_accuracy.successes, classifier.test_accuracy.count) == (right, 300)
    assert classifier.identity.startswith(f"{kind} sha256:")
    assert classifier.description.endswith("of 11 classes, by transformers, asked for 10 of them")
    assert "its own processor" in classifier.name


def test_classes_are_matched_by_their_words(refused) -> None:
    labels = ["7 - seven", "Ice_Cream", "tabby, tabby cat"]
    assert match_classes(labels, ["tabby cat", "7", "ice cream"], whose="It") == [2, 0, 1]
    with refused(InputError):
        match_classes(["LABEL_0", "LABEL_1"], ["cat", "dog"], whose="It")
    with refused(InputError):
        match_classes(["cat, dog"], ["cat", "dog"], whose="It")


def test_a_classifier_that_cannot_be_used_is_named(tmp_path: Path, refused) -> None:
    from transformers import ViTConfig, ViTModel

    other = save_stand_in(tmp_path / "other", "vit", ["cat", "dog"])
    with refused(InputError):
        load_classifier(digits(), str(other))
    (other / "preprocessor_config.json").unlink()
    with refused(DamagedDataError, theirs=IN_BRACKETS):
        load_classifier(digits(), str(other))
    grey = save_stand_in(tmp_path / "grey", "vit", WORDS, num_channels=1)
    with refused(InputError, theirs=IN_BRACKETS):
        load_classifier(digits(), str(grey))
    headless = save_stand_in(tmp_path / "headless", "vit", WORDS)
    ViTModel(
        ViTConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    ).save_pretrained(headless)
    with refused(DamagedDataError):
        load_classifier(digits(), str(headless))
    with refused(InputError):
        load_classifier(digits(), "./nowhere")


def test_a_classifier_that_is_neither_a_folder_nor_on_the_hub_is_said_to_be_neither(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, refused
) -> None:
    monkeypatch.chdir(tmp_path)  # with a folder runs/ a path inside it would be meant
    asked: list[float] = []

    def model_info(api: object, name: str, timeout: float) -> None:
        asked.append(timeout)
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    with refused(InputError):
        load_classifier(digits(), "runs/jugde")
    assert asked == [LOOKUP_SECONDS]  # once


def test_pickled_weights_are_not_read(tmp_path: Path, refused) -> None:
    folder = save_stand_in(tmp_path / "pickled", "vit", WORDS)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with refused(DamagedDataError, theirs=IN_BRACKETS):
        load_classifier(digits(), str(folder))


# Real images --------------------------------------------------------------------------------------


@pytest.mark.soak
def test_a_classifier_reads_mnist(shared_data: Path, tmp_path: Path) -> None:
    experiment = load_experiment(
        "classifier",
        [f"data.source={json.dumps(str(shared_data / 'mnist'))}", "data.tuning_share=0.6"],
    )
    run_experiment(experiment, tmp_path / "run", device="cpu")
    about = json.loads((tmp_path / "run" / RESULT / FILE_NAME).read_text())
    assert about["test_accuracy"]["count"] == 4_000
    assert about["test_accuracy"]["value"] >= 0.99
    assert math.isfinite(about["temperature"])
