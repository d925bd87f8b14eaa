"""Bradley-Terry strengths of models, and how far people agree."""

import numpy as np

from sfumato.interactive.survey.bootstrap import Array

PRIOR = 10.0
"""Standard deviation of the normal prior of a log strength: a model that lost every comparison has
a finite strength; otherwise it changes the third digit at most."""
_STEPS = 50


def bradley_terry(wins: Array) -> Array:
    """Log strengths (..., K), their mean 0, from wins (..., K, K): `wins[..., a, b]` times a was
    chosen over b; a tie is half a win of each.

    Bradley and Terry 1952: P(a over b) = 1 / (1 + exp(s_b - s_a)), by Newton's steps.
    """
    played = wins + wins.swapaxes(-1, -2)
    models = wins.shape[-1]
    strength = np.zeros(wins.shape[:-1])
    unit = np.eye(models)
    for _ in range(_STEPS):
        expected = 1 / (1 + np.exp(strength[..., None, :] - strength[..., :, None]))
        slope = (wins - played * expected).sum(-1) - strength / PRIOR**2
        curve = played * expected * (1 - expected)
        hessian = unit * (curve.sum(-1) + 1 / PRIOR**2)[..., None] - curve * (1 - unit)
        step = np.linalg.solve(hessian, slope[..., None])[..., 0].clip(-2, 2)
        strength = strength + step
        if np.abs(step).max(initial=0) < 1e-10:
            break
    return strength - strength.mean(-1, keepdims=True)


def is_connected(wins: Array) -> bool:
    """Whether strengths have a finite best estimate from wins (K, K) without a prior: no models
    are there that the others never win against (Ford 1957)."""
    from scipy.sparse.csgraph import connected_components

    return connected_components(wins > 0, directed=True, connection="strong")[0] == 1


def wins_of(totals: Array, counts: Array, pairs: list[tuple[int, int]]) -> Array:
    """Wins (..., K, K) from totals and counts (..., G) of `pairs`: a value of 1 is a win of the
    first model of the pair."""
    models = 1 + max(max(pair) for pair in pairs)
    wins = np.zeros((*totals.shape[:-1], models, models))
    for place, (first, second) in enumerate(pairs):
        wins[..., first, second] = totals[..., place]
        wins[..., second, first] = counts[..., place] - totals[..., place]
    return wins


def krippendorff_alpha(unit: Array, value: Array) -> float:
    """Krippendorff's alpha of `value` (N,) that people gave to `unit` (N,), with the squared
    difference as its metric: for two values it is the nominal alpha. 1: all agree, 0: by chance.

    Krippendorff 2011, "Computing Krippendorff's alpha-reliability". Units with one value are left
    out. NaN where nothing can disagree.
    """
    _, place = np.unique(unit, return_inverse=True)
    counts = np.bincount(place)
    kept = counts[place] > 1
    place, value = place[kept], np.asarray(value, dtype=np.float64)[kept]
    total = len(value)
    if total < 2:
        return float("nan")
    expected = 2 * value.var() * total / (total - 1)
    sums = np.bincount(place, value, minlength=len(counts))
    squares = np.bincount(place, value**2, minlength=len(counts))
    several = counts > 1
    # Of all ordered pairs within a unit the squared differences, each unit weighted 1 / (m - 1).
    within = 2 * (counts * squares - sums**2)[several] / (counts[several] - 1)
    observed = within.sum() / total
    return float(1 - observed / expected) if expected > 0 else float("nan")


def alpha_interval(
    unit: Array, value: Array, *, resamples: int = 500, rng: np.random.Generator
) -> tuple[float, float]:
    """The 95 % percentile interval of alpha over units drawn anew."""
    units, place = np.unique(unit, return_inverse=True)
    order = np.argsort(place, kind="stable")
    bounds = np.searchsorted(place[order], np.arange(len(units) + 1))
    found = []
    for _ in range(resamples):
        drawn = rng.integers(len(units), size=len(units))
        sizes = bounds[drawn + 1] - bounds[drawn]
        starts = np.repeat(bounds[drawn] - np.concatenate([[0], np.cumsum(sizes)[:-1]]), sizes)
        rows = order[starts + np.arange(sizes.sum())]
        found.append(krippendorff_alpha(np.repeat(np.arange(len(units)), sizes), value[rows]))
    low, high = np.nanquantile(found, [0.025, 0.975]) if np.isfinite(found).any() else (np.nan,) * 2
    return float(low), float(high)
