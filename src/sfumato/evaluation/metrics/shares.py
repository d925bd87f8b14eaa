"""Wilson's interval of a share, by arithmetic: no torch, so that a list of runs takes no second."""

from math import sqrt
from statistics import NormalDist


def wilson_limits(successes: int, count: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """The score interval of `successes` of `count` (Wilson 1927); `ValueError` unless
    0 <= successes <= count and count >= 1."""
    if not 0 <= successes <= count or count < 1:
        raise ValueError(f"{successes} of {count} is not a proportion: 0 <= k <= n, n >= 1")
    share, z2 = successes / count, NormalDist().inv_cdf((1 + confidence) / 2) ** 2
    centre = share + z2 / (2 * count)
    half = sqrt(z2 * (share * (1 - share) / count + z2 / (4 * count**2)))
    low, high = ((centre + side * half) / (1 + z2 / count) for side in (-1, 1))
    # Exact at the ends, where the two terms cancel but for rounding.
    return (0.0 if successes == 0 else low), (1.0 if successes == count else high)
