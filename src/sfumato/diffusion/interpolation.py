"""Between two captions and two noises."""

from collections.abc import Sequence

import torch
from torch import Tensor


def lerp(ends: Tensor, at: Sequence[float]) -> Tensor:
    """(1 - f) a + f b for each f of `at`: `ends` (2, ...) to (N, ...), in its dtype.

    At 0 and 1 the ends, bit for bit.
    """
    first, last = ends.float()
    return torch.stack([torch.lerp(first, last, f) for f in at]).to(ends.dtype)


def slerp(ends: Tensor, at: Sequence[float]) -> Tensor:
    """Along the great circle through both (Shoemake 1985): `ends` (2, ...) to (N, ...), in its
    dtype, as one vector each.

    Unlike a straight line it keeps the length that noise has: two of equal length stay so long.
    At 0 and 1 the ends, bit for bit; equal or opposite ends, which name no circle, are `lerp`ed.
    """
    first, last = ends.double()
    cosine = (first * last).sum() / (first.norm() * last.norm())
    angle = torch.arccos(cosine.clamp(-1, 1))
    if angle.sin() < 1e-6:
        return lerp(ends, at)
    between = [
        (((1 - f) * angle).sin() * first + (f * angle).sin() * last) / angle.sin() for f in at
    ]
    return torch.stack(between).to(ends.dtype)
