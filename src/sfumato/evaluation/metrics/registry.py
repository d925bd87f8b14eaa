"""What a metric is, and the registry of all of them.

A new metric is one module of this package with a module-level `Metric`:

    BRIGHTNESS = Metric(name="brightness", title="brightness", needs="pixels",
                        per_image=lambda images: (images.double() / 255).flatten(1).mean(dim=1))

It then appears in the card, the printed table, the page and `compare`.
"""

import math
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Literal

from torch import Tensor

from sfumato.evaluation.metrics.features import ImageFeatures
from sfumato.evaluation.metrics.intervals import Estimate, bootstrap_mean

Needs = Literal["pixels", "features", "classifier", "text", "logits", "training", "nothing"]
Place = Literal["table", "compare"]


@dataclass(frozen=True, kw_only=True)
class Score:
    """A metric of one set of images; `values` (N,): one number an image, whose mean is the estimate
    and whose deviation over sqrt(N) its standard error (the infinitesimal jackknife, Efron 1982,
    section 6), for paired tests. Booleans are tested by McNemar's test."""

    estimate: Estimate
    values: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One entry of the registry.

    `compute(generated, reference)` of the features of both sets gives None where it does not
    apply, and `ValueError` where there are too few images: a note says so. It is called

    - needs="features": with the features of each extractor in turn;
    - needs="classifier": with those of the classifier, which have `logits` and `labels`;
    - needs="logits": with those of each extractor whose network goes on to classes;
    - needs="text": with those of each extractor that embeds captions (`generated.text`);
    - needs="training": with those of one extractor; `reference.training` are the training images'.

    needs="pixels": `per_image` maps uint8 images (N, C, H, W) to (N,), and the mean is taken.

    needs="nothing": it is not computed of images.

    A key in a card is the name, with ".EXTRACTOR" for metrics of features.
    """

    name: str
    title: str
    needs: Needs
    compute: Callable[[ImageFeatures, ImageFeatures], Score | None] | None = None
    per_image: Callable[[Tensor], Tensor] | None = None
    better: Literal["higher", "lower", ""] = ""
    """"" where it is read beside the same number of real images."""
    percent: bool = False
    factor: float = 1.0
    """What the value is multiplied by in tables."""
    digits: int = 3
    """Digits after the point in tables."""
    interval: bool = True
    """Whether tables show half of the interval."""
    shown: tuple[Place, ...] = ("table", "compare")
    default: bool = True
    """Whether an evaluation computes it; else only what asks for it by name."""
    real: bool = False
    """Whether it is computed of the reference images themselves."""
    baseline: bool = False
    """Whether it is computed of real sets of the same size."""
    order: int = 1_000
    """Columns are sorted by it."""
    about: str = ""
    """Explains it below a table, in a clause."""

    def score(self, values: Tensor) -> Score:
        """The mean of one value an image, with a bootstrap interval."""
        return Score(estimate=bootstrap_mean(values), values=values)

    def format(self, value: float) -> str:
        """A value alone, with its unit."""
        if self.percent:
            return f"{100 * value:.1f} %"
        return f"{value:.4f}" if abs(value) < 1 else f"{value:.2f}"

    def format_estimate(self, found: Estimate | None) -> str:
        """A value with its interval in brackets; empty for None."""
        if found is None:
            return ""
        text = self.format(found.value)
        if found.low is None or found.high is None:
            return text
        return f"{text} ({self.format(found.low)}, {self.format(found.high)})"

    def cell(self, value: float, half: float | None) -> str:
        """The cell of a table: `0.123 ± 0.004` in the metric's factor."""
        if self.percent:
            return self.format(value)
        digits = significant_digits(self.factor * value, self.digits)
        text = f"{self.factor * value:.{digits}f}"
        if not self.interval or half is None:
            return text
        return f"{text} ± {self.factor * half:.{digits}f}"


def significant_digits(value: float, most: int) -> int:
    """Digits after the point: three that count are enough, two are needed."""
    if value and abs(value) < 10.0**-most:
        return 1 - math.floor(math.log10(abs(value)))
    return max(0, most - max(0, len(str(int(abs(value)))) - 1))


@cache
def all_metrics() -> dict[str, Metric]:
    """Every metric by name, in the order of columns: the `Metric`s in this package's modules."""
    package = import_module("sfumato.evaluation.metrics")
    found: dict[str, Metric] = {}
    for module in pkgutil.iter_modules(package.__path__):
        entries = vars(import_module(f"{package.__name__}.{module.name}")).values()
        found |= {entry.name: entry for entry in entries if isinstance(entry, Metric)}
    return {one.name: one for one in sorted(found.values(), key=lambda one: one.order)}


def title_of(key: str) -> str:
    """The title of a key: `Frechet (classifier)`."""
    name, _, extractor = key.partition(".")
    return all_metrics()[name].title + (f" ({extractor})" if extractor else "")


def metric_of(key: str) -> Metric:
    """The metric of a key such as "frechet.classifier"; `KeyError` for one that is not known."""
    return all_metrics()[key.partition(".")[0]]
