"""Each metric moves the right way when a model goes wrong in a known way.

Real features are eight clusters, one a class; a good model draws from the same clusters.
"""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from sfumato.evaluation.metrics.diversity import diversity_within_classes
from sfumato.evaluation.metrics.frechet import frechet_distance
from sfumato.evaluation.metrics.frechet_infinity import frechet_infinity
from sfumato.evaluation.metrics.inception_score import inception_score_of_logits
from sfumato.evaluation.metrics.kernel import kernel_distance
from sfumato.evaluation.metrics.manifold import density_coverage, precision_recall
from sfumato.evaluation.metrics.memorisation import memorisation
from sfumato.evaluation.metrics.moments import feature_statistics

CLASSES, DIM, COUNT = 8, 12, 320
CENTRES = 2 * torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(99))


def labels(seed: int) -> Tensor:
    """Drawn, not in turn: unbiased estimates are so for independent rows only."""
    return torch.randint(CLASSES, (COUNT,), generator=torch.Generator().manual_seed(seed))


def clusters(seed: int, classes: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return CENTRES[classes] + torch.randn(len(classes), DIM, generator=generator)


LABELS = labels(12)
TRAINING, TEST = clusters(0, labels(10)), clusters(1, labels(11))
GOOD = clusters(2, LABELS)


@dataclass(frozen=True, kw_only=True)
class Figures:
    frechet: float
    infinity: float
    kernel: float
    score: float
    precision: float
    recall: float
    density: float
    coverage: float
    diversity: float
    copied: float


def measured(features: Tensor) -> Figures:
    """All figures against the test rows; class logits are by the distance to the centres."""
    logits = -torch.cdist(features, CENTRES).square() / 2
    generator = torch.Generator().manual_seed(0)
    pair, balls = precision_recall(features, TEST), density_coverage(features, TEST)
    reference = feature_statistics(TEST)
    return Figures(
        frechet=frechet_distance(feature_statistics(features), reference),
        infinity=frechet_infinity(features, reference, generator=generator).value,
        kernel=kernel_distance(features, TEST).value,
        score=inception_score_of_logits(logits, generator=generator, splits=1).value,
        precision=pair.precision.value,
        recall=pair.recall.value,
        density=balls.density.value,
        coverage=balls.coverage.value,
        diversity=diversity_within_classes(features, LABELS).value,
        copied=memorisation(features, TRAINING, test=TEST).share.value,
    )


@pytest.fixture(scope="module")
def good() -> Figures:
    return measured(GOOD)


def test_a_good_model(good: Figures) -> None:
    assert good.precision > 0.75
    assert good.recall > 0.75
    assert good.coverage > 0.9
    assert good.density == pytest.approx(1, abs=0.15)
    assert good.score == pytest.approx(CLASSES, rel=0.03)
    kernel = kernel_distance(GOOD, TEST)
    assert kernel.low < 0 < kernel.high
    assert good.infinity < good.frechet
    assert good.copied == pytest.approx(0.05, abs=0.05)


def test_mode_collapse(good: Figures) -> None:
    """Each class is one image, hardly changed: good pictures, no variety."""
    noise = 0.05 * torch.randn(len(LABELS), DIM, generator=torch.Generator().manual_seed(3))
    bad = measured(CENTRES[LABELS] + noise)
    assert bad.precision >= good.precision
    assert bad.density > good.density
    assert bad.recall < 0.1 < good.recall
    assert bad.coverage < good.coverage
    assert bad.diversity < good.diversity / 5
    assert bad.frechet > good.frechet
    assert bad.infinity > good.infinity


def test_a_dropped_class(good: Figures) -> None:
    """Class 0 is asked for and class 1 is drawn."""
    bad = measured(clusters(2, LABELS.clamp(min=1)))
    assert bad.frechet > 2 * good.frechet
    assert bad.infinity > good.infinity
    assert bad.kernel > good.kernel + 0.1
    assert bad.score < good.score - 0.5
    assert bad.recall < good.recall - 0.08
    assert bad.coverage < good.coverage - 0.08
    assert bad.precision == pytest.approx(good.precision, abs=0.05)


def test_noise(good: Figures) -> None:
    noise = 3 * torch.randn(len(LABELS), DIM, generator=torch.Generator().manual_seed(4))
    bad = measured(GOOD + noise)
    assert bad.frechet > 2 * good.frechet
    assert bad.infinity > good.infinity
    assert bad.kernel > good.kernel
    assert bad.precision < good.precision - 0.3
    assert bad.density < good.density - 0.3
    assert bad.coverage < good.coverage - 0.3
    assert bad.score < good.score - 0.1
    assert bad.diversity > good.diversity
    assert bad.copied < good.copied + 0.01


def test_a_duplicated_set(good: Figures) -> None:
    """The training images handed back: good by every figure but the one that looks for it."""
    bad = measured(TRAINING)
    assert bad.copied == 1
    assert bad.frechet < 2 * good.frechet
    assert bad.precision == pytest.approx(good.precision, abs=0.08)
    assert bad.recall == pytest.approx(good.recall, abs=0.08)


def test_the_same_half_twice(good: Figures) -> None:
    """Each class repeats the first half of its images: less variety for the same number."""
    repeated = GOOD.clone()
    for label in range(CLASSES):
        rows = LABELS.eq(label).nonzero()[:, 0]
        half = len(rows) // 2
        repeated[rows[half : 2 * half]] = GOOD[rows[:half]]
    bad = measured(repeated)
    assert bad.recall < good.recall
    assert bad.coverage < good.coverage
    assert bad.diversity < good.diversity
    assert bad.precision == pytest.approx(good.precision, abs=0.05)
