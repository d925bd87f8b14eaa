"""The small CLIP: its loss, its training on digits alone, and the encoder that comes of it."""

import json
import math

import pytest
import torch
import torch.nn.functional as F

from sfumato.base.errors import ConfigError
from sfumato.base.files import sha256_of_file
from sfumato.config.schema import ClipExperiment, load_experiment
from sfumato.config.sections import DataConfig, TextConfig, TowersConfig
from sfumato.data.records import load_records
from sfumato.methods.clip import RESULT, load_class_data
from sfumato.methods.registry import run_experiment
from sfumato.text.bundled import BUNDLED_FOLDER
from sfumato.text.opening import load_text_encoder
from sfumato.text.tokenizer import train_tokenizer, vocabulary_corpus
from sfumato.text.towers import build_towers, contrastive_loss, load_towers, tokenize
from sfumato.training.objectives.clip import with_distractors

TINY = {
    "name": "tiny",
    "method": "clip",
    "towers": {
        "text_width": 64,
        "text_layers": 1,
        "text_heads": 2,
        "text_mlp": 64,
        "image_widths": [8, 16, 16, 32],
        "embedding": 16,
    },
    "vocabulary": 700,
    "datasets": {
        "digits": {
            "sources": ["digits"],
            "mirrored": False,
            "caption": ["A handwritten digit {label}", "the number {word}"],
            "held_out": ["a handwritten digit {word}"],
        }
    },
    "training": {
        "batch_size": 64,
        "images": 8960,
        "optimizer": {"lr": 3e-3, "warmup_images": 320, "decay": "cosine", "max_grad_norm": 1},
        "checkpoint_every_images": 2048,
        "log_every_images": 64,
    },
}


def tiny(**training) -> ClipExperiment:
    return ClipExperiment.model_validate({**TINY, "training": {**TINY["training"], **training}})


# The loss -----------------------------------------------------------------------------------------


def unit(count: int, *, seed: int) -> torch.Tensor:
    values = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))
    return F.normalize(values.double(), dim=1)


def test_one_pair_a_class_is_clips_own_loss() -> None:
    images, texts, labels = unit(5, seed=0), unit(5, seed=1), torch.arange(5)
    logits = 7 * images @ texts.T
    expected = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    found = contrastive_loss(images, texts, labels, labels, torch.tensor(7.0))
    torch.testing.assert_close(found, expected)


def test_several_pairs_a_class_share_the_target() -> None:
    """Against the sum of Khosla et al. 2020, Eq. 2, written out for each anchor."""
    images, texts = unit(6, seed=2), unit(4, seed=3)
    image_labels, text_labels = torch.tensor([0, 0, 1, 1, 1, 2]), torch.tensor([0, 1, 1, 2])

    def one_side(anchors, others, own, theirs) -> float:
        total = 0.0
        for anchor, label in zip(anchors, own, strict=True):
            scores = [3.0 * float(anchor @ other) for other in others]
            log_sum = math.log(sum(math.exp(score) for score in scores))
            pairs = [s for s, other in zip(scores, theirs, strict=True) if other == label]
            total += -sum(score - log_sum for score in pairs) / len(pairs)
        return total / len(anchors)

    expected = (
        one_side(images, texts, image_labels, text_labels)
        + one_side(texts, images, text_labels, image_labels)
    ) / 2
    found = contrastive_loss(images, texts, image_labels, text_labels, torch.tensor(3.0))
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_captions_without_an_image_only_push() -> None:
    images, texts = unit(3, seed=4), unit(5, seed=5)
    loss = contrastive_loss(
        images, texts, torch.tensor([0, 1, 1]), torch.arange(5), torch.tensor(2.0)
    )
    assert bool(torch.isfinite(loss))


def test_distractors_stand_between_a_captions_own_words() -> None:
    ids = torch.tensor([[0, 5, 6, 7, 1, 1], [0, 8, 1, 1, 1, 1]]).repeat(500, 1)
    generator = torch.Generator().manual_seed(0)
    unrelated = torch.tensor([20, 21, 22])
    found = with_distractors(ids, unrelated, most=3, end_id=1, generator=generator)
    assert found.shape == (1000, 9)
    counts = []
    for before, after in zip(ids.tolist(), found.tolist(), strict=True):
        own = [token for token in after if token < 20]
        assert own == before + [1] * (9 - 6 - (9 - len(own)))
        end = after.index(1)
        assert after[0] == 0
        assert all(token == 1 for token in after[end:])
        counts.append(9 - len(own))
    shares = torch.tensor(counts).bincount(minlength=4) / 1000
    # Half have none by choice, and a quarter of the other half by the draw.
    assert (shares - torch.tensor([0.625, 0.125, 0.125, 0.125])).abs().max() < 0.05
    assert torch.equal(with_distractors(ids, unrelated, most=0, end_id=1, generator=generator), ids)


# The tokenizer and the text tower -----------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(vocabulary_corpus(["A handwritten digit 7"]), vocab_size=1280)


def test_every_byte_is_a_token_and_nothing_is_unknown(tokenizer) -> None:
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 1)
    strings = ["größe 数字 🎨", "\x00\x7f\u200b", "".join(map(chr, range(1, 256))), "ﷺ" * 5]
    for text in strings:
        ids = tokenizer(text).input_ids
        assert ids[0] == 0
        assert ids[-1] == 1
        assert 1 not in ids[1:-1]  # the end token doubles as "unknown"; nothing fell into it
    assert len(tokenizer("a red apple on the table").input_ids) == 8  # one token a common word


def test_the_pooled_state_is_read_at_the_end_token(tokenizer) -> None:
    """transformers pools position 0 by default, and takes an old path for an end token 2."""
    towers = build_towers(TowersConfig(text_layers=1), tokenizer, seed=0).eval()
    ids = tokenize(tokenizer, ["A handwritten digit 7", "7"], positions=77)
    with torch.no_grad():
        output = towers.text(input_ids=ids)
    ends = (ids == 1).int().argmax(1)
    assert ends.tolist() == [5, 2]
    states = output.last_hidden_state[torch.arange(2), ends]
    assert torch.equal(output.pooler_output, states)


# A run --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip") / "run"
    run_experiment(tiny(), folder)
    return folder


@pytest.mark.slow
def test_held_out_captions_name_real_digits(finished) -> None:
    """Ten passes over 897 digits; chance is 10 %."""
    figures = json.loads((finished / RESULT / "figures.json").read_text())
    assert figures["figures"]["digits"]["accuracy"] > 0.8
    assert figures["figures"]["digits"]["images"] == 300
    card = (finished / RESULT / "README.md").read_text()
    assert "a handwritten digit {word}" in card
    assert "seed 0" in card


def test_the_result_is_rounded_and_is_what_was_measured(finished) -> None:
    towers, tokenizer = load_towers(finished / RESULT)
    for value in towers.state_dict().values():
        if value.is_floating_point():
            assert torch.equal(value, value.half().float())
    data = load_class_data(tiny(), "test")
    ids = tokenize(tokenizer, [f"a handwritten digit {w}" for w in WORDS], positions=77)
    right = (towers.classify(towers.embed_uint8(data.images), ids) == data.labels).double().mean()
    figures = json.loads((finished / RESULT / "figures.json").read_text())
    assert float(right) == pytest.approx(figures["figures"]["digits"]["accuracy"])


WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def test_its_folder_serves_as_text_encoder(finished) -> None:
    encoder = load_text_encoder(TextConfig(encoder=str(finished / RESULT), max_tokens=8))
    assert encoder.dim == 64
    tokens = encoder.encode(["A handwritten digit 3", "the number three"])
    assert tokens.shape == (2, 8, 64)


@pytest.mark.slow
def test_stopped_and_started_again_equals_unbroken(finished, tmp_path) -> None:
    from sfumato.training.checkpoint import Checkpoints
    from sfumato.training.hooks import BaseHook

    class Stop(BaseHook):
        def after_step(self, run, metrics) -> None:
            run.stop_requested = run.images_seen == 2560

    run_experiment(tiny(), tmp_path / "run", hooks=[Stop()])
    assert run_experiment(tiny(), tmp_path / "run").finished
    ours = Checkpoints(tmp_path / "run" / "checkpoints").latest()
    theirs = Checkpoints(finished / "checkpoints").latest()
    assert ours.images_seen == theirs.images_seen == 8960
    for part in ("towers", "optimizer"):
        assert ours.sha256(part) == theirs.sha256(part)
    log = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert log == (finished / "metrics.jsonl").read_text()


def test_settings_of_a_mapping_can_be_changed_and_are_checked(refused) -> None:
    experiment = load_experiment("clip", ["datasets.mnist.sources=[digits]", "training.images=100"])
    assert experiment.datasets["mnist"].sources == ("digits",)
    with refused(ConfigError):
        load_experiment("clip", ["datasets.mnist.source=[digits]"])
    with refused(ConfigError):
        load_experiment_with_method("clop")


def load_experiment_with_method(method: str):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mine.yaml"
        file.write_text(f"name: mine\nmethod: {method}\n")
        return load_experiment(str(file))


def test_a_model_refuses_an_encoder_that_is_not_the_one_it_was_trained_with(
    finished, tmp_path, refused
) -> None:
    """By the hash of the weights, whatever the folder is called: in drawing and in training on."""
    import shutil

    from safetensors.torch import load_file, save_file

    from sfumato.config.schema import load_experiment
    from sfumato.generation.loading import load
    from sfumato.methods.registry import run_experiment
    from tests.conftest import SMALL

    encoder = tmp_path / "encoder"
    shutil.copytree(finished / RESULT, encoder)
    settings = [*SMALL, f"text.encoder={encoder}", "model.cross_attention_dim=64"]
    run_experiment(load_experiment("digits", [*settings, "training.images=32"]), tmp_path / "run")
    load(tmp_path / "run", device="cpu")
    weights = load_file(encoder / "model.safetensors")
    name = next(iter(weights))
    weights[name] = weights[name] * 1.01
    save_file(weights, encoder / "model.safetensors", metadata={"format": "pt"})
    with refused(ConfigError):
        load(tmp_path / "run", device="cpu")
    with refused(ConfigError):
        run_experiment(
            load_experiment("digits", [*settings, "training.images=64"]), tmp_path / "run"
        )


def test_the_bundled_clip_is_within_its_bounds() -> None:
    """12 MB, float16, and the accuracy that its card states: by real test images elsewhere."""
    folder = BUNDLED_FOLDER
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 12_000_000
    about = json.loads((folder / "figures.json").read_text())
    assert about["figures"]["mnist"]["accuracy"] >= 0.97
    assert about["figures"]["cifar10"]["accuracy"] >= 0.55
    for name, digest in about["sha256"].items():
        assert sha256_of_file(folder / name) == digest
    card = (folder / "README.md").read_text()
    for figures in about["figures"].values():
        assert f"{100 * figures['accuracy']:.1f} %" in card


@pytest.mark.parametrize("name", ["mnist", pytest.param("cifar10", marks=pytest.mark.slow)])
def test_the_bundled_clip_names_real_test_images(name: str, shared_data) -> None:
    """The first 1,000 test images by captions that were never trained on."""
    experiment = load_experiment("clip")
    group = experiment.datasets[name]
    towers, tokenizer = load_towers(BUNDLED_FOLDER)
    config = DataConfig(
        source=str(shared_data / name), resolution=32, channels=3, caption=group.held_out[:1]
    )
    test = load_records(config, "test")
    ids = tokenize(tokenizer, test.class_captions, positions=77)
    right = towers.classify(towers.embed_uint8(test.images[:1000]), ids) == test.labels[:1000]
    accuracy = float(right.double().mean())
    stated = json.loads((BUNDLED_FOLDER / "figures.json").read_text())["figures"][name]
    assert accuracy == pytest.approx(stated["by_template"][group.held_out[0]], abs=0.05)
