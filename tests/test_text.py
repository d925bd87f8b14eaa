import json
import shutil
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sfumato.base.errors import DamagedDataError, InputError, SfumatoError
from sfumato.base.hub import LOOKUP_SECONDS
from sfumato.bench.paintings.styles import STYLES
from sfumato.config.schema import load_experiment
from sfumato.config.sections import TextConfig
from sfumato.data.captions import captions_from_templates
from sfumato.text.encoder import TruncatedPromptWarning, warn_of_cut_prompts
from sfumato.text.opening import load_text_encoder
from sfumato.text.prompts import PromptBank
from tests.memory import run_alone
from tests.messages import IN_BRACKETS


@pytest.fixture(scope="module")
def encoder():
    return load_text_encoder(TextConfig(encoder="bundled", max_tokens=8))


CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.mark.parametrize(
    ("preset", "classes"),
    [
        ("digits", [str(digit) for digit in range(10)]),
        ("mnist-fast", [str(digit) for digit in range(10)]),
        ("cifar10-tiny", CIFAR10),
        ("wikiart-tiny", list(STYLES)),
    ],
)
def test_the_captions_of_a_preset_fit_its_tokens(preset: str, classes: list[str]) -> None:
    """Cut, a caption loses its class, which stands last."""
    experiment = load_experiment(preset, ["text.encoder=bundled"])
    encoder = load_text_encoder(experiment.text)
    for templates in (experiment.data.caption, experiment.data.held_out):
        assert encoder.cut(captions_from_templates(templates, classes)) == {}


def test_tokens_are_the_last_hidden_state_after_the_final_norm(encoder) -> None:
    prompts = ["A handwritten digit 3", ""]
    tokens = encoder.encode(prompts)
    assert tokens.shape == (2, 8, 512)
    batch = encoder.tokenizer(prompts, padding="max_length", max_length=8, return_tensors="pt")
    assert batch.attention_mask.tolist() == [[1] * 6 + [0] * 2, [1] * 2 + [0] * 6]
    ids = batch.input_ids  # the network sees all of them, padding too
    with torch.no_grad():
        output = encoder.model(input_ids=ids, output_hidden_states=True)
        normed = encoder.model.final_layer_norm(output.hidden_states[-1])
    torch.testing.assert_close(tokens.float(), normed, rtol=2e-3, atol=2e-3)


def test_the_encoder_is_frozen_and_the_same_every_time(encoder) -> None:
    assert not any(parameter.requires_grad for parameter in encoder.model.parameters())
    again = load_text_encoder(TextConfig(encoder="bundled", max_tokens=8))
    assert again.identity == encoder.identity
    assert encoder.identity.startswith("bundled sha256:")


def test_building_the_encoder_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    load_text_encoder(TextConfig(encoder="bundled", max_tokens=8))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_prompt_has_the_same_bits_whatever_is_encoded_with_it(encoder) -> None:
    prompts = [f"A handwritten digit {digit}" for digit in range(10)] * 2
    together = encoder.encode(prompts)
    alone = torch.cat([encoder.encode([prompt]) for prompt in prompts])
    assert torch.equal(together, alone)


def test_digits_differ_and_any_utf8_can_be_encoded(encoder) -> None:
    tokens = encoder.encode([f"A handwritten digit {digit}" for digit in range(10)])
    assert len({bytes(row.numpy()) for row in tokens}) == 10
    ids = encoder.tokenizer("größe 数字 🎨").input_ids
    assert ids[0] == 0
    assert ids[-1] == 1
    assert 1 not in ids[1:-1]  # the end token doubles as "unknown"; nothing fell into it


def test_a_folder_serves_as_encoder(encoder, tmp_path) -> None:
    encoder.model.save_pretrained(tmp_path)
    encoder.tokenizer.save_pretrained(tmp_path)
    other = load_text_encoder(TextConfig(encoder=str(tmp_path), max_tokens=8))
    prompts = ["A handwritten digit 7"]
    assert torch.equal(other.encode(prompts), encoder.encode(prompts))


# Not there, or not whole --------------------------------------------------------------------------


@pytest.fixture
def not_loaded(refused):
    """Loading is refused at once, and draws nothing."""

    def check(name: object, error: type[SfumatoError], theirs: str = "") -> None:
        before = torch.get_rng_state()
        started = time.monotonic()
        with refused(error, theirs):
            load_text_encoder(TextConfig(encoder=str(name), max_tokens=8))
        assert time.monotonic() - started < 4
        assert torch.equal(torch.get_rng_state(), before)

    return check


@pytest.fixture
def folder(encoder, tmp_path: Path) -> Path:
    encoder.model.save_pretrained(tmp_path / "clip")
    encoder.tokenizer.save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


@pytest.fixture
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache and a Hub where nobody answers; the cache's folder."""
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    return cache


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "~/no such", "runs/clip/clip"])
def test_a_folder_that_does_not_exist_is_not_asked_of_the_hub(
    name: str, monkeypatch, not_loaded
) -> None:
    monkeypatch.setattr(
        "huggingface_hub.HfApi.model_info", lambda *_, **__: pytest.fail("the Hub was asked")
    )
    not_loaded(name, InputError)


def test_a_mistyped_name_or_folder(
    tmp_path: Path, monkeypatch, no_hub: Path, refused, not_loaded
) -> None:
    with refused(InputError):
        load_text_encoder(TextConfig(encoder="bundeld"))
    (tmp_path / "runs").mkdir()
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    not_loaded("runs/clip", InputError)
    with refused(InputError):
        load_text_encoder(TextConfig(encoder=str(tmp_path / "config.json")))


@pytest.mark.parametrize("offline", [False, True])
def test_without_a_network_the_answer_is_quick(
    offline: bool, monkeypatch, no_hub: Path, not_loaded
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    not_loaded("openai/clip-vit-base-patch32", InputError, IN_BRACKETS)


@pytest.mark.parametrize("missing", ["tokenizer.json", "model.safetensors", "config.json"])
def test_a_folder_that_is_incomplete(folder: Path, missing: str, not_loaded) -> None:
    """Without its vocabulary transformers would make a tokenizer that knows no word."""
    (folder / missing).unlink()
    not_loaded(folder, InputError)


def test_an_empty_folder(tmp_path: Path, not_loaded) -> None:
    not_loaded(tmp_path, InputError)


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_file_cut_short(folder: Path, file: str, not_loaded) -> None:
    (folder / file).write_bytes((folder / file).read_bytes()[:-100])
    not_loaded(folder, DamagedDataError, IN_BRACKETS)


def test_a_pointer_of_git_lfs_is_named(folder: Path, not_loaded) -> None:
    (folder / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\nsize 5\n"
    )
    not_loaded(folder, DamagedDataError)


@pytest.mark.parametrize("how", ["missing", "of another shape"])
def test_weights_are_never_drawn_at_random(folder: Path, how: str, not_loaded) -> None:
    weights = load_file(folder / "model.safetensors")
    name = "encoder.layers.0.mlp.fc1.weight"
    value = weights.pop(name)
    if how != "missing":
        weights[name] = value[:-1].contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    not_loaded(folder, DamagedDataError)


def test_a_whole_clip_serves_with_its_text_half(encoder, folder: Path, capsys) -> None:
    """As openai/clip-vit-base-patch32 is: the image tower is left alone, without a word."""
    from transformers import CLIPConfig, CLIPModel

    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "image_size": 16}
    vision |= {"num_attention_heads": 2, "patch_size": 8}
    with torch.random.fork_rng(devices=[]):
        whole = CLIPModel(
            CLIPConfig(text_config=encoder.model.config.to_dict(), vision_config=vision)
        )
    text = encoder.model.state_dict()
    prefixed = {f"text_model.{name}": value for name, value in text.items()}
    assert not whole.load_state_dict(prefixed, strict=False).unexpected_keys
    whole.save_pretrained(folder)
    capsys.readouterr()
    other = load_text_encoder(TextConfig(encoder=str(folder), max_tokens=8))
    assert capsys.readouterr() == ("", "")
    prompts = ["A handwritten digit 7"]
    assert torch.equal(other.encode(prompts), encoder.encode(prompts))


def test_the_hub_is_asked_once(folder: Path, no_hub: Path, monkeypatch, not_loaded) -> None:
    """What is needed is fetched; from then on the cache answers, and nobody is asked."""
    others = ("pytorch_model.bin", "tf_model.h5", "README.md", "preprocessor_config.json")
    there = [*(path.name for path in folder.iterdir()), *others]
    home = no_hub / "models--owner--clip"
    fetched: list[str] = []

    def model_info(self: object, name: str, *, timeout: float) -> SimpleNamespace:
        assert (name, timeout) == ("owner/clip", LOOKUP_SECONDS)
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=file) for file in there])

    def download(name: str, file: str) -> str:
        fetched.append(file)
        (home / "refs").mkdir(parents=True, exist_ok=True)
        (home / "refs" / "main").write_text("0" * 40)
        place = home / "snapshots" / ("0" * 40) / file
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / file, place)
        return str(place)

    with monkeypatch.context() as patched:
        patched.setattr("huggingface_hub.HfApi.model_info", model_info)
        patched.setattr("huggingface_hub.hf_hub_download", download)
        first = load_text_encoder(TextConfig(encoder="owner/clip", max_tokens=8))
    assert sorted(fetched) == sorted(path.name for path in folder.iterdir())
    again = load_text_encoder(TextConfig(encoder="owner/clip", max_tokens=8))
    assert first.identity == again.identity
    assert first.identity.startswith("owner/clip sha256:")
    (home / "snapshots" / ("0" * 40) / "tokenizer.json").unlink()
    not_loaded("owner/clip", InputError, IN_BRACKETS)


def test_a_repository_of_another_kind(no_hub: Path, monkeypatch, not_loaded) -> None:
    monkeypatch.setattr(
        "huggingface_hub.HfApi.model_info",
        lambda *_, **__: SimpleNamespace(siblings=[SimpleNamespace(rfilename="README.md")]),
    )
    not_loaded("owner/words", InputError)


@pytest.mark.parametrize("max_tokens", [1, 78])
def test_token_length_out_of_range(max_tokens: int, refused) -> None:
    with refused(InputError):
        load_text_encoder(TextConfig(max_tokens=max_tokens))


# The bank -----------------------------------------------------------------------------------------


class CountingEncoder:
    name = identity = "counting"
    dim, max_tokens = 4, 3

    def __init__(self) -> None:
        self.encoded: list[str] = []

    def encode(self, prompts):
        self.encoded += prompts
        values = torch.tensor([[float(len(prompt))] for prompt in prompts])
        return values[:, :, None].expand(-1, 3, 4).half()

    def check(self, prompts):
        pass


def test_each_distinct_prompt_is_encoded_once_and_null_is_the_empty_string() -> None:
    encoder = CountingEncoder()
    bank = PromptBank(encoder, ["one", "three", "one", ""])
    assert encoder.encoded == ["", "one", "three"]
    assert bank.index(["three", "", "one"]).tolist() == [2, PromptBank.NULL_INDEX, 1]
    assert bank.tokens(bank.index(["three"])).dtype == torch.float32
    assert bank.tokens(torch.tensor([0, 2]))[:, 0, 0].tolist() == [0.0, 5.0]


def test_above_the_bound_the_bank_lies_in_a_file_and_serves_the_same() -> None:
    prompts = [f"prompt {'x' * (index % 50)} {index}" for index in range(3000)]
    inside = PromptBank(CountingEncoder(), prompts)
    outside = PromptBank(CountingEncoder(), prompts, max_memory_bytes=1000)
    assert inside.in_memory
    assert not outside.in_memory
    rows = torch.from_numpy(np.random.default_rng(0).integers(0, 3001, 500))
    assert torch.equal(inside.tokens(rows), outside.tokens(rows))


def test_a_cut_prompt_is_named_with_what_it_lost(encoder, warned) -> None:
    with warned(TruncatedPromptWarning):
        PromptBank(encoder, ["A handwritten digit 3 7 in a photo", "A handwritten digit 3"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PromptBank(encoder, ["A handwritten digit 3"])


def test_a_long_or_odd_prompt_does_not_flood_the_warning(warned) -> None:
    with warned(TruncatedPromptWarning) as caught:
        warn_of_cut_prompts({"word " * 500: "word " * 490, "a\x1b[31m\nb": "c"}, 8)
    message = str(caught[0].message)
    assert len(message) < 400
    assert message.isprintable()


@pytest.mark.soak
def test_100000_captions_of_77_tokens_within_a_gigabyte() -> None:
    """In a process of its own: its peak memory, torch and transformers included; minutes."""
    lines, peak_bytes = run_alone("""
import json, time
import torch
from sfumato.config.sections import TextConfig
from sfumato.text.opening import load_text_encoder
from sfumato.text.prompts import PromptBank

encoder = load_text_encoder(TextConfig(encoder="bundled", max_tokens=77))
captions = [f"a picture of the number {n}, drawn with a pen" for n in range(100_000)]
started = time.monotonic()
bank = PromptBank(encoder, captions)
built = time.monotonic() - started
rows = torch.randint(len(bank), (50, 64), generator=torch.Generator().manual_seed(0))
started = time.monotonic()
for batch in rows:
    served = bank.tokens(batch)
seconds = (time.monotonic() - started) / len(rows)
last = captions[int(rows[-1, -1]) - 1]
print(json.dumps({
    "equal": torch.equal(served[-1], encoder.encode([last])[0].float()),
    "rows": len(bank),
    "built_seconds": round(built),
    "batch_of_64_seconds": round(seconds, 4),
}))
""")
    found = json.loads(lines[-1])
    print(found, peak_bytes)
    assert found["rows"] == 100_001
    assert found["equal"]
    assert peak_bytes < 1e9


def test_a_missing_encoder_is_told_before_images_are_read(
    sfumato, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> Path:
        raise InputError(f"'{name}' could not be fetched.", hint="Three ways out.")

    def read(experiment: object) -> None:
        raise AssertionError("images were read")

    monkeypatch.setattr("sfumato.text.opening._from_hub", absent)
    monkeypatch.setattr("sfumato.cli.data.resolve_data", read)
    found = sfumato("train", "mnist", "--out", str(tmp_path / "run"))
    assert found.code == 2
    assert "could not be fetched" in found.err
    assert not (tmp_path / "run").exists()
