"""Text encoders of transformers beside CLIP, tiny and untrained, against direct calls of them."""

import json
import sys
import warnings
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from sfumato.base.errors import (
    ConfigError,
    InputError,
    SameCaptionsWarning,
    SfumatoWarning,
    TruncatedPromptWarning,
    UnknownWordsWarning,
)
from sfumato.base.files import read_json
from sfumato.config.schema import load_experiment
from sfumato.config.sections import TextConfig
from sfumato.data.captions import captions_from_templates
from sfumato.generation.loading import load
from sfumato.methods.registry import run_experiment
from sfumato.text.bundled import BUNDLED_FOLDER, WORDS_FILE, write_known_words
from sfumato.text.encoder import TextEncoder
from sfumato.text.opening import PACKAGES, load_text_encoder
from sfumato.text.prompts import PromptBank
from sfumato.text.sentences import frame_words
from tests.conftest import SMALL
from tests.test_export import without_sfumato
from tests.test_text import CIFAR10

WORDS = [
    "a",
    "red",
    "blue",
    "circle",
    "square",
    "two",
    "##s",
    "handwritten",
    "digit",
    *"0123456789",
]
MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<pad>", "<s>", "</s>", "<unk>"]
PROMPTS = ["a red circle", "", "two blue squares"]
TOKENS = 8


def _bert(tmp: Path) -> transformers.PreTrainedTokenizerBase:
    vocabulary = tmp / "vocab.txt"
    vocabulary.write_text("\n".join([*MARKS, *WORDS]))
    made = Tokenizer(models.WordPiece.from_file(str(vocabulary), unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    marks = [("[CLS]", MARKS.index("[CLS]")), ("[SEP]", MARKS.index("[SEP]"))]
    made.post_processor = processors.BertProcessing(marks[1], marks[0])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )


def _roberta(tmp: Path) -> transformers.PreTrainedTokenizerBase:
    """Padding is 1, as in RoBERTa: positions are counted from it."""
    names = ["<s>", "<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {name: number for number, name in enumerate(names)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    marks = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **marks)


def _t5(tmp: Path) -> transformers.PreTrainedTokenizerBase:
    pieces = [
        "<pad>",
        "</s>",
        "<unk>",
        *(f"▁{word}" for word in WORDS),
        *"abcdefghijklmnopqrstuvwxyz▁",
    ]
    scores = [(piece, -float(number)) for number, piece in enumerate(pieces)]
    made = Tokenizer(models.Unigram(scores, unk_id=2))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    marks = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **marks)


def _without_marks(tmp: Path) -> transformers.PreTrainedTokenizerBase:
    """The empty prompt has no token; there is no padding token."""
    made = Tokenizer(models.WordLevel({"<unk>": 0, "<end>": 1, "a": 2, "red": 3}, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = {"unk_token": "<unk>", "eos_token": "<end>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **marks)


SIZES = {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
MLP = {"intermediate_size": 32, "max_position_embeddings": 20}
KINDS = {
    "bert": (transformers.BertModel, transformers.BertConfig(**SIZES, **MLP), _bert),
    "distilbert": (
        transformers.DistilBertModel,
        transformers.DistilBertConfig(
            vocab_size=300, dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=20
        ),
        _bert,
    ),
    "roberta": (
        transformers.RobertaModel,
        transformers.RobertaConfig(**SIZES, **MLP, pad_token_id=1),
        _roberta,
    ),
    "t5": (
        transformers.T5EncoderModel,
        transformers.T5Config(
            vocab_size=300, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2
        ),
        _t5,
    ),
    "gpt2": (
        transformers.GPT2Model,
        transformers.GPT2Config(vocab_size=300, n_embd=16, n_layer=2, n_head=2, n_positions=20),
        _without_marks,
    ),
}


def saved(kind: str, folder: Path) -> Path:
    """An untrained encoder as the folder of a Hub repository."""
    build, config, tokenizer = KINDS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = build(config)
    model.save_pretrained(folder)
    tokenizer(folder).save_pretrained(folder)
    return folder


def loaded(folder: Path, max_tokens: int = TOKENS) -> TextEncoder:
    return load_text_encoder(TextConfig(encoder=str(folder), max_tokens=max_tokens))


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_a_direct_call_and_padding_is_zero(kind: str, tmp_path: Path) -> None:
    folder = saved(kind, tmp_path)
    before = torch.get_rng_state()
    encoder = loaded(folder)
    assert torch.equal(torch.get_rng_state(), before)
    assert encoder.dim == 16
    tokens = encoder.encode(PROMPTS)
    assert tokens.shape == (3, TOKENS, 16)
    assert tokens.dtype == torch.float16
    model = KINDS[kind][0].from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for prompt, row in zip(PROMPTS, tokens, strict=True):
        ids = tokenizer(prompt, max_length=TOKENS, truncation=True, return_tensors="pt").input_ids
        if not ids.numel():  # nothing to attend to: one position of padding stands for it
            ids = torch.tensor([[tokenizer.eos_token_id]])
        with torch.no_grad():
            alone = model(input_ids=ids.long()).last_hidden_state[0]
        torch.testing.assert_close(row[: len(alone)].float(), alone, rtol=2e-3, atol=2e-3)
        assert not row[len(alone) :].any()
    assert not torch.equal(tokens[0], tokens[2])
    assert loaded(folder).identity == encoder.identity


@pytest.mark.parametrize("kind", ["bert", pytest.param("t5", marks=pytest.mark.slow)])
def test_a_prompt_has_the_same_bits_alone(kind: str, tmp_path: Path) -> None:
    encoder = loaded(saved(kind, tmp_path))
    together = encoder.encode(PROMPTS * 7)
    alone = torch.cat([encoder.encode([prompt]) for prompt in PROMPTS * 7])
    assert torch.equal(together, alone)


def test_what_a_cut_prompt_lost(tmp_path: Path) -> None:
    """One mark follows the text of BERT and T5, none without marks: as many tokens are its own."""
    prompt = "a red circle a red square"
    assert loaded(saved("bert", tmp_path / "bert"), 5).cut([prompt]) == {prompt: "a red square"}
    assert loaded(saved("t5", tmp_path / "t5"), 5).cut([prompt])[prompt].strip() == "red square"
    assert loaded(saved("gpt2", tmp_path / "gpt2"), 5).cut([prompt]) == {prompt: "square"}


@pytest.mark.parametrize(("kind", "most"), [("bert", 20), ("roberta", 18), ("gpt2", 20)])
def test_the_most_tokens_of_an_encoder(kind: str, most: int, tmp_path: Path, refused) -> None:
    """RoBERTa's first position is the one after its padding's number."""
    folder = saved(kind, tmp_path)
    assert loaded(folder, most).encode(["a red " * 20]).shape == (1, most, 16)
    with refused(InputError):
        loaded(folder, most + 1)


def test_a_pooler_that_a_checkpoint_lacks_is_zero(tmp_path: Path) -> None:
    """It is on no way to the tokens; drawn at random, it would make an identity of its own."""
    folder = saved("bert", tmp_path)
    whole = loaded(folder)
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("pooler.")}
    assert len(kept) == len(weights) - 2
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    without = loaded(folder)
    assert torch.equal(without.encode(PROMPTS), whole.encode(PROMPTS))
    assert without.identity == loaded(folder).identity


def test_a_model_of_another_kind(tmp_path: Path, refused) -> None:
    folder = saved("bert", tmp_path)
    values = {"model_type": "vit", "hidden_size": 16, "num_attention_heads": 2}
    (folder / "config.json").write_text(json.dumps(values))
    with refused(InputError):
        loaded(folder)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_a_model_trained_on_it_samples_with_diffusers_alone(
    kind: str, tmp_path: Path, refused
) -> None:
    folder = saved(kind, tmp_path / "words")
    settings = [*SMALL, f"text.encoder={folder}", "training.images=200"]
    with refused(ConfigError):
        run_experiment(load_experiment("digits", settings), tmp_path / "refused")
    settings += ["model.cross_attention_dim=16"]
    run_experiment(load_experiment("digits", settings), tmp_path / "run", device="cpu")
    exported = tmp_path / "run" / "model"
    names = read_json(exported / "model_index.json")
    assert names["text_encoder"] == ["transformers", KINDS[kind][0].__name__]
    case = {"class": "", "scale": 3.0, "form": "cfg"}
    (theirs,) = without_sfumato(exported, [case], tmp_path)
    prompts = [f"A handwritten digit {digit}" for digit in range(3)]
    for place in (exported, tmp_path / "run"):
        ours = load(place, device="cpu").sample(prompts, [10, 11, 12], guidance=3, steps=5)
        assert torch.equal(ours.tensor, theirs)


# The encoder that a package carries ---------------------------------------------------------------


def test_minilm_lies_in_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the package: its folder is found, and its code is not run."""
    package = tmp_path / PACKAGES["minilm"]
    saved("bert", package / "model")
    (package / "__init__.py").write_text("raise RuntimeError('the package was run')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    encoder = load_text_encoder(TextConfig(encoder="minilm", max_tokens=TOKENS))
    assert encoder.identity.startswith("minilm sha256:")
    assert torch.equal(encoder.encode(PROMPTS), loaded(package / "model").encode(PROMPTS))


def test_minilm_without_the_package(monkeypatch: pytest.MonkeyPatch, refused) -> None:
    monkeypatch.setattr("sfumato.text.opening.find_spec", lambda name: None)
    with refused(InputError):
        load_text_encoder(TextConfig(encoder="minilm"))
    with refused(InputError):
        load_text_encoder(TextConfig(encoder="minilmm"))


def test_minilm_knows_what_sentences_mean() -> None:
    """The real one: similar sentences are near each other, by the mean of their tokens."""
    pytest.importorskip(PACKAGES["minilm"])
    encoder = load_text_encoder(TextConfig(encoder="minilm", max_tokens=16))
    assert encoder.dim == 384
    assert encoder.known_words is None
    sentences = ["a red circle", "a circle that is red", "two blue squares", "the stock market"]
    tokens = encoder.encode(sentences).float()
    means = torch.stack([row[row.any(1)].mean(0) for row in tokens])
    near = torch.nn.functional.cosine_similarity(means[:1], means[1:])
    assert near[0] > 0.8
    assert near[0] > near[1] > near[2]


# Words and captions that the encoder cannot tell --------------------------------------------------


@pytest.fixture
def bundled() -> TextEncoder:
    return load_text_encoder(TextConfig(encoder="bundled", max_tokens=16))


def test_the_words_of_the_bundled_clip_are_those_of_its_captions(tmp_path: Path) -> None:
    classes = {
        name: found["classes"]
        for name, found in read_json(BUNDLED_FOLDER / "figures.json")["figures"].items()
    }
    groups = load_experiment("clip").datasets
    assert groups.keys() == classes.keys()
    assert classes["mnist"] == [str(digit) for digit in range(10)]
    assert classes["cifar10"] == CIFAR10
    captions = [
        caption
        for name, group in groups.items()
        for caption in captions_from_templates(group.caption, classes[name])
    ]
    subject = f"the classes of {' and '.join(classes)}"
    write_known_words(tmp_path, [*captions, frame_words()], subject=subject)
    assert (tmp_path / WORDS_FILE).read_bytes() == (BUNDLED_FOLDER / WORDS_FILE).read_bytes()


def test_words_that_the_encoder_does_not_know(bundled: TextEncoder, warned) -> None:
    assert bundled.unknown_words(["A Handwritten digit, 3!", "jolly seven"]) == {
        "jolly seven": ["jolly"]
    }
    with warned(UnknownWordsWarning):
        bundled.tokens(["please draw the jolly numeral seven", "seven"])
    with warned(UnknownWordsWarning):
        bundled.check([f"a red circle number {number}" for number in range(10, 500)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bundled.tokens(["please draw the jolly numeral seven"])  # said once
        bundled.tokens(["a photo of the cat", "please draw the numeral seven", ""])


def test_an_encoder_trained_on_the_web_knows_all_words(tmp_path: Path) -> None:
    encoder = loaded(saved("bert", tmp_path))
    assert encoder.unknown_words(["please draw the numeral seven"]) == {}


def test_one_warning_for_many_prompts_while_sampling(small_model, warned) -> None:
    """Of all batches together; and an exported model knows the words too."""
    with warned(UnknownWordsWarning) as caught:
        small_model.sample(["jolly 1", "jolly 2", "jolly 3"], [1, 2, 3], batch_size=1, steps=1)
    assert [one.category for one in caught] == [UnknownWordsWarning]


def test_an_exported_model_knows_the_words(small_model, tmp_path: Path, warned) -> None:
    small_model.export(tmp_path / "model")
    exported = load(tmp_path / "model", device="cpu")
    with warned(UnknownWordsWarning):
        exported.sample("a jolly seven", steps=1)


def test_captions_that_become_the_same(bundled: TextEncoder, warned) -> None:
    captions = [f"{'a photo of the cat in the ' * 2}picture {n}" for n in range(6)]
    with warned(TruncatedPromptWarning), warned(SameCaptionsWarning):
        PromptBank(bundled, ["the cat", "The  Cat", "seven", *captions])
    with warnings.catch_warnings():
        warnings.simplefilter("error", SfumatoWarning)
        PromptBank(bundled, ["the cat", "The  Cat", "seven"])
