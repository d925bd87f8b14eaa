"""A frozen text encoder of transformers behind one contract: from the Hub, a folder, or bundled."""

import json
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sfumato.base.errors import InputError, TruncatedPromptWarning, UnknownWordsWarning
from sfumato.base.weights import device_of, weights_digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

NULL = ""
"""The prompt that a dropped caption is replaced by: the encoded empty string."""
ENCODE_ROWS = 16
"""Prompts of one call; always this many, so that a prompt's bits do not depend on the others."""


MAX_REMEMBERED = 1024
"""Encoded prompts that an encoder remembers between calls."""
WITHOUT_MASK = ("clip", "clip_text_model")
"""Types of model that encode padding like text, as the paper's pipeline and Stable Diffusion do."""


class TextEncoder:
    """A text encoder of transformers and its tokenizer, frozen: CLIP, T5's encoder, BERT and kin.

    `InputError` for a `max_tokens` that it cannot take, or a tokenizer that it cannot work with.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerFast",
        *,
        name: str,
        max_tokens: int,
    ) -> None:
        if tokenizer.pad_token is None and tokenizer.eos_token is not None:
            tokenizer.pad_token = tokenizer.eos_token
        if not tokenizer.is_fast or tokenizer.pad_token is None:
            lacking = "padding token" if tokenizer.is_fast else "tokenizer.json"
            raise InputError(
                f"The tokenizer of the text encoder '{name}' has no {lacking}.",
                hint="Choose another encoder with text.encoder.",
            )
        positions = _positions(model, tokenizer)
        if not 2 <= max_tokens <= positions:
            raise InputError(
                f"text.max_tokens: {max_tokens} is out of range for the encoder '{name}'.",
                hint=f"It takes 2 to {positions} tokens.",
            )
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        self.dim: int = model.config.hidden_size
        self.max_tokens = max_tokens
        self.known_words: frozenset[str] | None = _known_words(model)
        self._masked = model.config.model_type not in WITHOUT_MASK
        self._encoded: dict[str, Tensor] = {}
        self._encoded_as: tuple[torch.dtype, torch.device] | None = None
        self._checked: set[str] = {NULL}

    @cached_property
    def identity(self) -> str:
        return f"{self.name} sha256:{fingerprint(self.model, self.tokenizer)[:16]}"

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """(B, L, D) float16 on the model's device: the last hidden state after the final norm.

        The U-Net gets all tokens without a mask, as in the paper and in Stable Diffusion. CLIP
        encodes padding like text. The others mask it, as they were trained, and their padded
        positions are zero: without a meaning of their own they are to say nothing.
        """
        tokens = []
        for start in range(0, len(prompts), ENCODE_ROWS):
            part = list(prompts[start : start + ENCODE_ROWS])
            filled = part + [""] * (ENCODE_ROWS - len(part))
            batch = self.tokenizer(
                filled,
                padding="max_length",
                truncation=True,
                max_length=self.max_tokens,
                return_tensors="pt",
            ).to(device_of(self.model))
            tokens.append(self._hidden(batch)[: len(part)].half())
        return torch.cat(tokens)

    def _hidden(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Last hidden state (16, L, D) of tokenized prompts."""
        ids = batch["input_ids"]
        if not self._masked:
            # Differs from a plain call: no attention mask goes in, so padded positions are encoded
            # as the paper's pipeline and Stable Diffusion encode them.
            return self.model(input_ids=ids).last_hidden_state
        mask = batch["attention_mask"].clone()
        # Without start and end marks the empty prompt has no token, and nothing to attend to.
        mask[mask.sum(1) == 0, 0] = 1
        hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return hidden.masked_fill(mask[..., None] == 0, 0)

    def tokens(self, prompts: Sequence[str]) -> Tensor:
        """(B, L, D) float32 on the CPU; a prompt is encoded once and remembered."""
        # Encoding in another dtype or on another device gives other numbers.
        encoded_as = (self.model.dtype, device_of(self.model))
        if self._encoded_as != encoded_as or len(self._encoded) > MAX_REMEMBERED:
            self._encoded, self._encoded_as = {}, encoded_as
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._encoded]
        if new:
            self.check(new)
            self._encoded.update(zip(new, self.encode(new).float().cpu(), strict=True))
        return torch.stack([self._encoded[prompt] for prompt in prompts])

    def check(self, prompts: Collection[str]) -> None:
        """Warn of prompts that are cut or have words that the encoder does not know: one warning of
        each kind for all of them, and none of a prompt that was checked before. `InputError` for
        one that is no text."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._checked]
        if new:
            refuse_surrogates(new)
            self._checked.update(new)
            warn_of_cut_prompts(self.cut(new), self.max_tokens)
            warn_of_unknown_words(self.unknown_words(new), self)

    def unknown_words(self, prompts: Sequence[str]) -> dict[str, list[str]]:
        """The words of each prompt that the encoder was not trained on, for the prompts that have
        any; empty where nobody knows which words those are."""
        known = self.known_words
        if known is None:
            return {}
        found = {
            prompt: [word for word in words_of(prompt) if word not in known] for prompt in prompts
        }
        return {prompt: words for prompt, words in found.items() if words}

    def cut(self, prompts: Sequence[str]) -> dict[str, str]:
        """The prompts that do not fit into `max_tokens`, each with the text that is lost."""
        batch = self.tokenizer(list(prompts), return_offsets_mapping=True, truncation=False)
        lost = {}
        for prompt, ids, offsets in zip(
            prompts, batch["input_ids"], batch["offset_mapping"], strict=True
        ):
            if len(ids) > self.max_tokens:
                lost[prompt] = prompt[offsets[self.max_tokens - self._end_marks][0] :]
        return lost

    @cached_property
    def _end_marks(self) -> int:
        """Tokens that follow the text: a cut prompt has as many fewer of its own."""
        marks = self.tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
        return len(marks) - 1 - max(place for place, mark in enumerate(marks) if not mark)


def words_of(text: str) -> list[str]:
    """The distinct words of a text, in lower case."""
    return list(dict.fromkeys(re.findall(r"[^\W_]+", text.casefold())))


def _known_words(model: "PreTrainedModel") -> frozenset[str] | None:
    words = getattr(model.config, "known_words", None)
    return None if words is None else frozenset(words)


def _positions(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast") -> int:
    """Most tokens of a prompt."""
    config = model.config
    positions = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    table = next(
        (m for name, m in model.named_modules() if name.endswith("position_embeddings")), None
    )
    # RoBERTa and kin count positions from the padding's number on.
    reserved = getattr(table, "padding_idx", None)
    positions -= 0 if reserved is None else reserved + 1
    return min(positions, tokenizer.model_max_length)


def refuse_surrogates(prompts: Sequence[str]) -> None:
    """`InputError` for bytes that were no text and came into a string as surrogates."""
    for prompt in prompts:
        if re.search("[\ud800-\udfff]", prompt):
            raise InputError(
                f"The prompt {shortened(prompt)} is no text.", hint="Write it in UTF-8."
            )


def warn_of_cut_prompts(cut: dict[str, str], max_tokens: int) -> None:
    """One warning that names the prompts that were cut and what each of them lost."""
    if not cut:
        return
    first = list(cut.items())[:3]
    shown = [f"{shortened(prompt)} lost {shortened(lost)}" for prompt, lost in first]
    more = f" and {len(cut) - 3} more" if len(cut) > 3 else ""
    warnings.warn(
        f"Cut to {max_tokens} tokens: {'; '.join(shown)}{more}. "
        "Shorten the prompt, or train with a larger text.max_tokens.",
        TruncatedPromptWarning,
        stacklevel=3,
    )


def warn_of_unknown_words(found: dict[str, list[str]], encoder: TextEncoder) -> None:
    """One warning that names the words and the prompts that have them."""
    if not found:
        return
    words = list(dict.fromkeys(word for words in found.values() for word in words))
    shown = ", ".join(map(shortened, words[:3]))
    more = f" and {len(words) - 3:,} other words" if len(words) > 3 else ""
    prompts = "a prompt" if len(found) == 1 else f"{len(found):,} prompts"
    examples = "; ".join(map(shortened, list(found)[:3]))
    warnings.warn(
        f"The text encoder '{encoder.name}' does not know {shown}{more} in {prompts}: {examples}. "
        f"It knows {encoder.model.config.known_subject}, in the words of the captions that it was "
        "trained on. Use those, or train with an encoder that knows more: text.encoder=minilm, "
        "text.encoder=openai/clip-vit-base-patch32, or your own of `sfumato train clip`.",
        UnknownWordsWarning,
        stacklevel=3,
    )


def shortened(text: str, most: int = 60) -> str:
    """`text` in quotes for a message: control characters spelled out, long ones shortened."""
    plain = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[: most + 1])
    return f"'{plain[: most - 1]}…'" if len(text) > most else f"'{plain}'"


def fingerprint(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast") -> str:
    """sha256 over the weights and the vocabulary: what an encoding depends on."""
    digest = weights_digest(model)
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    for part in ("normalizer", "pre_tokenizer", "model"):  # padding and truncation are the caller's
        digest.update(json.dumps(parts[part], sort_keys=True).encode())
    return digest.hexdigest()
