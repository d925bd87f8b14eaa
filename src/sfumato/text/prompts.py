"""`PromptBank`: each distinct prompt is encoded once; a batch carries indices."""

import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sfumato.base.errors import SfumatoError
from sfumato.base.files import writing
from sfumato.text.encoder import TextEncoder

NULL = ""
"""The prompt that a dropped caption is replaced by: the encoded empty string."""

_CHUNK_PROMPTS = 1024


class TruncatedPromptWarning(UserWarning):
    """A prompt was cut to the encoder's token length."""


class PromptBank:
    """Encoded prompts as (P, L, D) float16: row 0 is the null prompt, then the others in order.

    Above `max_memory_bytes` they lie in a memory-mapped temporary file, so that 100,000 captions
    of 77 tokens take disk, not memory.
    """

    NULL_INDEX = 0

    def __init__(
        self,
        encoder: TextEncoder,
        prompts: Sequence[str],
        *,
        max_memory_bytes: int = 512 * 2**20,
        device: torch.device | None = None,
    ) -> None:
        distinct = [NULL, *(prompt for prompt in dict.fromkeys(prompts) if prompt != NULL)]
        self._rows = {prompt: row for row, prompt in enumerate(distinct)}
        self.encoder_identity = encoder.identity
        self._device = device or torch.device("cpu")
        shape = (len(distinct), encoder.max_tokens, encoder.dim)
        self.in_memory = int(np.prod(shape)) * 2 <= max_memory_bytes
        store = np.empty(shape, np.float16) if self.in_memory else _temporary_array(shape)
        cut: dict[str, str] = {}
        for start in range(0, len(distinct), _CHUNK_PROMPTS):
            part = distinct[start : start + _CHUNK_PROMPTS]
            cut.update(encoder.cut(part))
            store[start : start + len(part)] = encoder.encode(part).tokens.cpu().numpy()
        warn_of_cut_prompts(cut, encoder.max_tokens)
        self._tokens = torch.from_numpy(store)
        if self.in_memory:
            self._tokens = self._tokens.to(self._device)

    def __len__(self) -> int:
        return len(self._rows)

    def index(self, prompts: Sequence[str]) -> Tensor:
        """Rows (B,) int64 of prompts that the bank was built with."""
        missing = next((prompt for prompt in prompts if prompt not in self._rows), None)
        if missing is not None:
            raise SfumatoError(f"The prompt {missing!r} is not in the bank of encoded prompts.")
        return torch.tensor([self._rows[prompt] for prompt in prompts], device=self._device)

    def tokens(self, rows: Tensor) -> Tensor:
        """(B, L, D) float32 on the bank's device for `rows` (B,) int64."""
        return self._tokens[rows.to(self._tokens.device)].to(self._device).float()


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


def _temporary_array(shape: tuple[int, ...]) -> np.ndarray:
    """A float16 array in a temporary file without a name: it goes when the array does."""
    size = int(np.prod(shape)) * 2
    with tempfile.TemporaryFile(prefix="sfumato-prompts-") as file:
        with writing(Path(tempfile.gettempdir())):
            if hasattr(os, "posix_fallocate"):  # a full disk is told now, not by a crash later
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
        return np.memmap(file, dtype=np.float16, mode="r+", shape=shape)
