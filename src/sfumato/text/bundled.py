"""The encoder that comes with sfumato: a small CLIP text tower, seeded and UNTRAINED.

It turns different captions into different tokens, which is all that ten fixed captions need; it
knows nothing about the meaning of words. The tokenizer is a byte-level BPE made by
`train_tokenizer` on the captions of the paper's three data sets and shipped as a file.
"""

from collections.abc import Sequence
from importlib.resources import as_file, files
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from sfumato.base.randomness import derived_seed

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

SCALES = {"token_embedding": 1.0, "position_embedding": 0.5}
"""Untrained layers mix at random; wide token embeddings keep the words apart through them."""

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
WIDTH, LAYERS, HEADS, MLP, POSITIONS = 512, 2, 8, 1024, 77

CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
WIKIART = (
    "Abstract Expressionism, Action Painting, Analytical Cubism, Art Nouveau Modern, Baroque, "
    "Color Field Painting, Contemporary Realism, Cubism, Early Renaissance, Expressionism, "
    "Fauvism, High Renaissance, Impressionism, Mannerism Late Renaissance, Minimalism, "
    "Naive Art Primitivism, New Realism, Northern Renaissance, Pointillism, Pop Art, "
    "Post Impressionism, Realism, Rococo, Romanticism, Symbolism, Synthetic Cubism, Ukiyo-e"
)
CORPUS = [
    *(f"A handwritten digit {digit}" for digit in range(10)),
    *(f"A photo of a {name}" for name in CIFAR10.split()),
    *(f"A painting in the style of {style}" for style in WIKIART.split(", ")),
]


def train_tokenizer(corpus: Sequence[str], *, vocab_size: int) -> "CLIPTokenizer":
    """A CLIP tokenizer whose merges are learnt on `corpus`.

    All 256 byte symbols and their end-of-word forms are in the vocabulary, so that any UTF-8
    string can be encoded; the start token is 0, the end token (and padding) is 1.
    """
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    byte_symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = [BOS, EOS, *byte_symbols, *(symbol + "</w>" for symbol in byte_symbols)]
    words: dict[tuple[str, ...], int] = {}
    splitter = CLIPTokenizer().backend_tokenizer
    for text in corpus:
        normal = splitter.normalizer.normalize_str(text)
        for word, _ in splitter.pre_tokenizer.pre_tokenize_str(normal):
            symbols = (*word[:-1], word[-1] + "</w>")
            words[symbols] = words.get(symbols, 0) + 1
    merges: list[tuple[str, str]] = []
    while len(vocabulary) < vocab_size:
        pairs: dict[tuple[str, str], int] = {}
        for symbols, count in words.items():
            for pair in pairwise(symbols):
                pairs[pair] = pairs.get(pair, 0) + count
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))  # ties by name: the same everywhere
        merges.append(best)
        vocabulary.append("".join(best))
        words = {_merged(symbols, best): count for symbols, count in words.items()}
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(dict.fromkeys(vocabulary))},
        merges=merges,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        unk_token=EOS,
        model_max_length=POSITIONS,
    )


def _merged(symbols: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    merged: list[str] = []
    for symbol in symbols:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return tuple(merged)


def bundled_clip(*, seed: int = 0) -> tuple["CLIPTextModel", "CLIPTokenizer"]:
    """The seeded, untrained CLIP text tower and its tokenizer."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    with as_file(files("sfumato.text") / "tokenizer") as folder:
        tokenizer = CLIPTokenizer.from_pretrained(str(folder))
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=MLP,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=POSITIONS,
        projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):  # the constructor draws weights that are replaced
        model = CLIPTextModel(config)
    # NumPy's PCG64 keeps its streams across versions, so the tower is the same for everybody.
    generator = np.random.Generator(np.random.PCG64(derived_seed(seed, "bundled-clip")))
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.ndim == 1:
                parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
            else:
                values = generator.standard_normal(parameter.shape, dtype=np.float32)
                scale = SCALES.get(name.rsplit(".", 2)[-2], parameter.shape[1] ** -0.5)
                parameter.copy_(torch.from_numpy(values * np.float32(scale)))
    return model, tokenizer
