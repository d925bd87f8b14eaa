"""The frozen CLIP text encoder behind one contract: from the Hub, a folder, or bundled."""

import json
import warnings
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sfumato.base.errors import InputError, TruncatedPromptWarning
from sfumato.base.weights import weights_digest

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

NULL = ""
"""The prompt that a dropped caption is replaced by: the encoded empty string."""
ENCODE_ROWS = 16
"""Prompts of one call; always this many, so that a prompt's bits do not depend on the others."""


MAX_REMEMBERED = 1024
"""Encoded prompts that an encoder remembers between calls."""


class ClipTextEncoder:
    """transformers' `CLIPTextModel` and `CLIPTokenizer`, frozen."""

    def __init__(
        self, model: "CLIPTextModel", tokenizer: "CLIPTokenizer", *, name: str, max_tokens: int
    ) -> None:
        positions = model.config.max_position_embeddings
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
        self._encoded: dict[str, Tensor] = {}
        self._encoded_as: tuple[torch.dtype, torch.device] | None = None

    @cached_property
    def identity(self) -> str:
        return f"{self.name} sha256:{fingerprint(self.model, self.tokenizer)[:16]}"

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """(B, L, D) float16 on the model's device: the last hidden state after the final norm.

        The U-Net gets all tokens without a mask, as in the paper and in Stable Diffusion.
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
            )
            # Differs from a plain call: no attention mask goes in, so padded positions are encoded
            # as the paper's pipeline and Stable Diffusion encode them.
            ids = batch.input_ids.to(self.model.device)
            hidden = self.model(input_ids=ids).last_hidden_state
            tokens.append(hidden[: len(part)].half())
        return torch.cat(tokens)

    def tokens(self, prompts: Sequence[str]) -> Tensor:
        """(B, L, D) float32 on the CPU; a prompt is encoded once and remembered."""
        # Encoding in another dtype or on another device gives other numbers.
        encoded_as = (self.model.dtype, self.model.device)
        if self._encoded_as != encoded_as or len(self._encoded) > MAX_REMEMBERED:
            self._encoded, self._encoded_as = {}, encoded_as
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._encoded]
        if new:
            if cut := self.cut(new):
                warn_of_cut_prompts(cut, self.max_tokens)
            self._encoded.update(zip(new, self.encode(new).float().cpu(), strict=True))
        return torch.stack([self._encoded[prompt] for prompt in prompts])

    def cut(self, prompts: Sequence[str]) -> dict[str, str]:
        """The prompts that do not fit into `max_tokens`, each with the text that is lost."""
        batch = self.tokenizer(list(prompts), return_offsets_mapping=True, truncation=False)
        lost = {}
        for prompt, ids, offsets in zip(
            prompts, batch["input_ids"], batch["offset_mapping"], strict=True
        ):
            if len(ids) > self.max_tokens:
                # The last of the kept tokens is the end of the text, so one fewer is the prompt's.
                lost[prompt] = prompt[offsets[self.max_tokens - 1][0] :]
        return lost


def warn_of_cut_prompts(cut: dict[str, str], max_tokens: int) -> None:
    """One warning that names the prompts that were cut and what each of them lost."""
    if not cut:
        return
    shown = [f"{_short(prompt)} lost {_short(lost)}" for prompt, lost in list(cut.items())[:3]]
    more = f" and {len(cut) - 3} more" if len(cut) > 3 else ""
    warnings.warn(
        f"Cut to {max_tokens} tokens: {'; '.join(shown)}{more}. "
        "Shorten the prompt, or train with a larger text.max_tokens.",
        TruncatedPromptWarning,
        stacklevel=3,
    )


def _short(text: str, most: int = 60) -> str:
    """`text` in quotes for a message: control characters spelled out, long ones shortened."""
    plain = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[: most + 1])
    return f"'{plain[: most - 1]}…'" if len(text) > most else f"'{plain}'"


def fingerprint(model: "CLIPTextModel", tokenizer: "CLIPTokenizer") -> str:
    """sha256 over the weights and the vocabulary: what an encoding depends on."""
    digest = weights_digest(model)
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    for part in ("normalizer", "pre_tokenizer", "model"):  # padding and truncation are the caller's
        digest.update(json.dumps(parts[part], sort_keys=True).encode())
    return digest.hexdigest()
