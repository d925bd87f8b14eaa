"""`PromptBank`: each distinct prompt is encoded once; a batch carries indices."""

import hashlib
import math
import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sfumato.base.errors import SameCaptionsWarning, SfumatoError
from sfumato.base.files import writing
from sfumato.text.encoder import NULL, TextEncoder, shortened

_CHUNK_PROMPTS = 128


class PromptBank:
    """Encoded prompts as (P, L, D) float16: row 0 is the null prompt, then the others in order.

    Above `max_memory_bytes` they lie in a temporary file from which a batch reads its rows, so that
    100,000 captions of 77 tokens take disk, not memory.
    """

    NULL_INDEX = 0

    def __init__(
        self,
        encoder: TextEncoder,
        prompts: Sequence[str],
        *,
        max_memory_bytes: int = 256 * 2**20,
        device: torch.device | None = None,
    ) -> None:
        distinct = [NULL, *(prompt for prompt in dict.fromkeys(prompts) if prompt != NULL)]
        self._rows = {prompt: row for row, prompt in enumerate(distinct)}
        self.encoder_identity = encoder.identity
        self._device = device or torch.device("cpu")
        shape = (len(distinct), encoder.max_tokens, encoder.dim)
        self.in_memory = math.prod(shape) * 2 <= max_memory_bytes
        store = _Memory(shape, self._device) if self.in_memory else _File(shape)
        same: dict[bytes, list[str]] = {}
        for start in range(0, len(distinct), _CHUNK_PROMPTS):
            part = distinct[start : start + _CHUNK_PROMPTS]
            tokens = encoder.encode(part).cpu().contiguous()
            store.put(start, tokens)
            for prompt, row in zip(part, tokens.numpy(), strict=True):
                same.setdefault(hashlib.blake2b(row, digest_size=16).digest(), []).append(prompt)
        encoder.check(distinct)
        warn_of_same_captions(list(same.values()), encoder.max_tokens)
        self._store = store

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
        return self._store.get(rows).to(self._device).float()


def warn_of_same_captions(groups: Sequence[Sequence[str]], max_tokens: int) -> None:
    """One warning of captions that have the same encoding; those of one group have. What differs
    in capitals and spaces only is the same caption."""
    written = [{" ".join(prompt.casefold().split()): prompt for prompt in one} for one in groups]
    same = [list(prompts.values()) for prompts in written if len(prompts) > 1]
    if not same:
        return
    shown = "; ".join(" = ".join(map(_ending, one[:2])) for one in same[:3])
    more = f"; and {len(same) - 3:,} more groups" if len(same) > 3 else ""
    warnings.warn(
        f"{sum(map(len, same)):,} captions are only {len(same):,} to the network, since their "
        f"first {max_tokens} tokens are the same to the text encoder: {shown}{more}. Set a larger "
        "text.max_tokens where what tells them apart is cut off, or change the captions.",
        SameCaptionsWarning,
        stacklevel=3,
    )


def _ending(prompt: str, most: int = 60) -> str:
    """A caption for a message; of a long one the end, which is what was cut off."""
    return shortened(prompt if len(prompt) <= most else f"…{prompt[1 - most :]}")


class _Memory:
    """Rows (P, L, D) float16 on a device."""

    def __init__(self, shape: tuple[int, int, int], device: torch.device) -> None:
        self._tokens = torch.empty(shape, dtype=torch.float16, device=device)

    def put(self, start: int, tokens: Tensor) -> None:
        self._tokens[start : start + len(tokens)] = tokens.to(self._tokens)

    def get(self, rows: Tensor) -> Tensor:
        return self._tokens[rows]


class _File:
    """Rows (P, L, D) float16 in a temporary file without a name: it goes when this object does.

    Read and written by position rather than mapped: mapped pages count as the process's memory,
    and a batch needs only a few of them.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self._row_shape = shape[1:]
        self._row_bytes = math.prod(self._row_shape) * 2
        # Buffering would read a block for every row.
        self._file = tempfile.TemporaryFile(prefix="sfumato-prompts-", buffering=0)  # noqa: SIM115
        size = shape[0] * self._row_bytes
        with writing(Path(tempfile.gettempdir())):
            if hasattr(os, "posix_fallocate"):  # a full disk is reported now, not at a later row
                os.posix_fallocate(self._file.fileno(), 0, size)
            else:
                self._file.truncate(size)

    def put(self, start: int, tokens: Tensor) -> None:
        with writing(Path(tempfile.gettempdir())):
            self._file.seek(start * self._row_bytes)
            content = memoryview(tokens.cpu().contiguous().numpy()).cast("B")
            while content:  # an unbuffered write may take a part
                content = content[self._file.write(content) :]

    def get(self, rows: Tensor) -> Tensor:
        gathered = torch.empty((len(rows), *self._row_shape), dtype=torch.float16)
        for row, target in zip(rows.tolist(), gathered.numpy(), strict=True):
            self._file.seek(row * self._row_bytes)
            self._file.readinto(memoryview(target).cast("B"))
        return gathered
