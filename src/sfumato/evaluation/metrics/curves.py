"""Has a training loss come to rest?"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sfumato.evaluation.metrics.checks import checked_values
from sfumato.evaluation.metrics.intervals import Estimate, percentile_interval, resampled
from sfumato.evaluation.metrics.registry import Metric

FEWEST_IN_QUARTER = 5


@dataclass(frozen=True, kw_only=True)
class Plateau:
    """`fall`: how much lower the last quarter's mean is than the third's, as a share of that.

    `first_tenth`, `third_quarter`, `last_quarter`: means of the loss there.
    """

    fall: Estimate
    first_tenth: float
    third_quarter: float
    last_quarter: float


def plateau(
    losses: Sequence[float], *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Plateau:
    """The fall of a loss over the last half of its records, which are evenly spaced.

    1 - mean(last quarter) / mean(third quarter), with the percentile bootstrap of both quarters
    apart (records are means over different batches). `ValueError` for less than
    4 * `FEWEST_IN_QUARTER` records, or NaN.
    """
    values = checked_values(torch.tensor(losses, dtype=torch.float64), name="losses")
    quarter = len(values) // 4
    if quarter < FEWEST_IN_QUARTER:
        raise ValueError(
            f"{len(values)} records are too few to see a plateau: {4 * FEWEST_IN_QUARTER} or more"
        )
    third, last = values[-2 * quarter : -quarter], values[-quarter:]
    falls = [
        1 - last[b].mean(dim=1) / third[a].mean(dim=1)
        for a, b in zip(
            resampled(quarter, resamples=resamples, seed=seed),
            resampled(quarter, resamples=resamples, seed=seed + 1),
            strict=True,
        )
    ]
    low, high = percentile_interval(torch.cat(falls), confidence=confidence)
    return Plateau(
        fall=Estimate(
            value=float(1 - last.mean() / third.mean()),
            low=low,
            high=high,
            count=len(values),
        ),
        first_tenth=float(values[: max(1, len(values) // 10)].mean()),
        third_quarter=float(third.mean()),
        last_quarter=float(last.mean()),
    )


LOSS = Metric(name="loss", title="training loss", needs="nothing", percent=True, default=False)
