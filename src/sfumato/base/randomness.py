"""Randomness as a function of (seed, place, purpose); no global state is read or written."""

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derived_seed(*key: int | str) -> int:
    """A 63-bit seed that depends on every part of `key`, the same on every machine."""
    text = "/".join(str(part) for part in key)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator_for(*key: int | str) -> "torch.Generator":
    """A CPU generator seeded by `key`: the same key always gives the same draws."""
    import torch

    return torch.Generator("cpu").manual_seed(derived_seed(*key))
