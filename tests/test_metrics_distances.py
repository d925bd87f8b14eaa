"""Kernel distance, manifolds, memorisation and diversity against second implementations."""

import numpy as np
import pytest
import torch
from sklearn.metrics import pairwise_distances
from torch import Tensor

from sfumato.evaluation.metrics import distances
from sfumato.evaluation.metrics.distances import nearest_rows, neighbour_radii
from sfumato.evaluation.metrics.diversity import diversity_within_classes
from sfumato.evaluation.metrics.kernel import kernel_distance, kernel_distance_subsets
from sfumato.evaluation.metrics.manifold import density_coverage, precision_recall
from sfumato.evaluation.metrics.memorisation import memorisation
from tests.test_metrics import Passthrough
from tests.test_metrics_moments import draw


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=[(1024, 4096), (7, 5)], ids=["one tile", "many tiles"])
def tile_shape(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        distances.tiles,
        "__kwdefaults__",
        dict(zip(("rows", "columns"), request.param, strict=True)),
    )


def naive_kernel_distance(x: Tensor, y: Tensor) -> float:
    def kernel(a: Tensor, b: Tensor) -> float:
        return (float(a.double() @ b.double()) / x.shape[1] + 1) ** 3

    n, m = len(x), len(y)
    own = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    other = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return own + other - 2 * sum(kernel(a, b) for a in x for b in y) / (n * m)


@pytest.mark.usefixtures("tile_shape")
def test_kernel_distance_equals_a_double_loop() -> None:
    x, y = draw(31, 9, 0), draw(23, 9, 1, shift=0.5)
    assert kernel_distance(x, y).value == pytest.approx(naive_kernel_distance(x, y), rel=1e-10)


def test_subset_kernel_distance_equals_torchmetrics(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchmetrics.image.kid import KernelInceptionDistance

    real, fake = draw(120, 24, 2).double(), draw(90, 24, 3, shift=0.2).double()
    theirs = KernelInceptionDistance(feature=Passthrough(), subsets=20, subset_size=40).set_dtype(
        torch.float64
    )
    theirs.update(real, real=True)
    theirs.update(fake, real=False)
    generator, randperm = seeded(5), torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda n: randperm(n, generator=generator))
    mean, std = theirs.compute()
    monkeypatch.undo()
    ours = kernel_distance_subsets(fake, real, generator=seeded(5), subsets=20, subset_size=40)
    assert ours.value == pytest.approx(float(mean), rel=1e-9)
    assert ours.std == pytest.approx(float(std), rel=1e-9)


def test_subsets_that_are_the_whole_set_still_have_an_interval() -> None:
    x, y = draw(60, 8, 4), draw(60, 8, 5, shift=0.4)
    whole = kernel_distance(x, y)
    subsets = kernel_distance_subsets(x, y, generator=seeded(0), subsets=5, subset_size=60)
    assert subsets.value == pytest.approx(whole.value, rel=1e-9)
    assert subsets.std == pytest.approx(0, abs=1e-12)
    assert subsets.low == pytest.approx(whole.low, rel=1e-6)


@pytest.mark.parametrize("shift", [0.0, 0.2])
def test_kernel_distance_is_unbiased_and_its_interval_holds(shift: float) -> None:
    truth = kernel_distance(draw(8000, 8, 6, shift=shift), draw(8000, 8, 7)).value if shift else 0
    found = [
        kernel_distance(draw(80, 8, 100 + s, shift=shift), draw(60, 8, 900 + s)) for s in range(100)
    ]
    values = [one.value for one in found]
    assert abs(np.mean(values) - truth) < 3 * np.std(values) / 10 + 0.005
    assert sum(one.low <= truth <= one.high for one in found) >= 88


def naive_manifolds(fake: Tensor, real: Tensor, k: int) -> tuple[float, float, float, float]:
    """Straight from the papers' equations, by scikit-learn's distances and sorting."""
    a, b = fake.double().numpy(), real.double().numpy()
    across = pairwise_distances(a, b)
    reach_a = np.sort(pairwise_distances(a), axis=1)[:, k]
    reach_b = np.sort(pairwise_distances(b), axis=1)[:, k]
    inside = across <= reach_b[None, :]
    precision = np.mean([inside[i].any() for i in range(len(a))])
    recall = np.mean([(across[:, j] <= reach_a).any() for j in range(len(b))])
    coverage = np.mean([inside[:, j].any() for j in range(len(b))])
    return float(precision), float(recall), float(inside.sum() / (k * len(a))), float(coverage)


@pytest.mark.usefixtures("tile_shape")
@pytest.mark.parametrize("k", [1, 3, 5])
def test_manifolds_equal_the_papers_equations(k: int) -> None:
    fake, real = draw(53, 4, 8, shift=0.7), draw(71, 4, 9)
    precision, recall, density, coverage = naive_manifolds(fake, real, k)
    ours = precision_recall(fake, real, neighbours=k)
    assert 0 < precision < 1
    assert (ours.precision.value, ours.recall.value) == pytest.approx((precision, recall))
    theirs = density_coverage(fake, real, neighbours=k)
    assert theirs.density.value == pytest.approx(density)
    assert theirs.coverage.value == pytest.approx(coverage)
    assert theirs.density.low < density < theirs.density.high
    assert ours.precision.low < precision < ours.precision.high


@pytest.mark.parametrize("offset", [0.0, 3e4])
@pytest.mark.parametrize("twice", [False, True])
def test_manifolds_of_equal_sets(offset: float, twice: bool) -> None:
    """Every row lies in its own ball, even where its copy makes the ball a point."""
    real = draw(40, 6, 10) + offset
    real = torch.cat([real, real]) if twice else real
    both = precision_recall(real.flip(0), real, neighbours=1)
    assert both.precision.value == both.recall.value == 1
    variety = density_coverage(real.flip(0), real, neighbours=1)
    assert variety.coverage.value == 1
    assert variety.density.value == 2  # itself and, on the ball's edge, its neighbour: (k + 1) / k


@pytest.mark.usefixtures("tile_shape")
def test_nearest_rows_and_radii_equal_sklearn() -> None:
    a, b = draw(37, 5, 11, shift=50), draw(29, 5, 12, shift=50)
    table = pairwise_distances(a.double().numpy(), b.double().numpy())
    near = nearest_rows(a, b)
    np.testing.assert_array_equal(near.indices.numpy(), table.argmin(axis=1))
    np.testing.assert_allclose(near.distances.numpy(), table.min(axis=1), rtol=1e-9)
    radii = neighbour_radii(b, neighbours=4).sqrt()
    own = np.sort(pairwise_distances(b.double().numpy()), axis=1)[:, 4]
    np.testing.assert_allclose(radii.numpy(), own, rtol=1e-9)


def test_a_large_mean_does_not_drown_small_distances() -> None:
    a, b = draw(30, 5, 27).double() + 1e7, draw(30, 5, 28).double() + 1e7
    table = pairwise_distances((a - 1e7).numpy(), (b - 1e7).numpy())
    np.testing.assert_allclose(nearest_rows(a, b).distances.numpy(), table.min(axis=1), rtol=1e-6)


def test_copies_of_training_images_are_found_and_named(refused) -> None:
    training, test, generated = draw(300, 8, 13), draw(100, 8, 14), draw(60, 8, 15)
    honest = memorisation(generated, training, test=test)
    assert honest.share.low <= 0.05 <= honest.share.high
    generated[[4, 9]] = training[[123, 7]]
    copied = memorisation(generated, training, test=test)
    assert copied.share.successes - honest.share.successes == 2
    assert sorted(copied.order[:2].tolist()) == [4, 9]
    assert copied.indices[[4, 9]].tolist() == [123, 7]
    assert copied.distances[[4, 9]].tolist() == [0, 0]
    itself = memorisation(test, training, test=test, quantile=0.29)
    assert itself.share.successes == 29
    doubled = torch.cat([training[:10], test])  # of a test part that has training images
    assert memorisation(generated, training, test=doubled).threshold == copied.threshold
    with refused(ValueError):
        memorisation(generated, training, test=test[:19])
    with refused(ValueError):
        memorisation(generated, training, test=test, quantile=1.0)


@pytest.mark.usefixtures("tile_shape")
def test_diversity_equals_the_mean_of_all_pairs(refused) -> None:
    features, labels = draw(60, 5, 16), torch.arange(60) % 3
    features[labels == 2] *= 2
    found = diversity_within_classes(features, labels)
    for label in range(3):
        rows = features[labels == label].double().numpy()
        pairs = pairwise_distances(rows)[np.triu_indices(len(rows), 1)]
        assert found.classes[label] == pytest.approx(pairs.mean(), rel=1e-10)
    assert found.value == pytest.approx(sum(found.classes.values()) / 3)
    assert found.counts == {0: 20, 1: 20, 2: 20}
    with refused(ValueError):
        diversity_within_classes(features[:4], labels[:4])
    with refused(ValueError):
        diversity_within_classes(features, labels[:5])


def test_the_interval_of_diversity_holds() -> None:
    truth = diversity_within_classes(draw(3000, 4, 17), torch.zeros(3000).long()).value
    found = [
        diversity_within_classes(draw(80, 4, 50 + s), torch.arange(80) % 2) for s in range(100)
    ]
    assert sum(one.low <= truth <= one.high for one in found) >= 87


PAIRS = {
    "kernel": kernel_distance,
    "subsets": lambda a, b: kernel_distance_subsets(
        a, b, generator=seeded(0), subsets=3, subset_size=8
    ),
    "precision": precision_recall,
    "density": density_coverage,
    "memorisation": lambda a, b: memorisation(a, b, test=draw(20, 6, 21)),
}


@pytest.mark.parametrize("metric", PAIRS.values(), ids=PAIRS)
def test_bad_features_are_named(metric, refused) -> None:
    good, broken = draw(20, 6, 18), draw(20, 6, 19)
    broken[3, 2] = torch.nan
    for pair in ((good, broken), (broken, good)):
        with refused(ValueError):
            metric(*pair)
    with refused(ValueError):
        metric(good[:, :5], good)
    with refused(ValueError):
        metric(good[:0], good)
    with refused(ValueError):
        metric(good, good[0])


def test_too_few_rows_are_counted(refused) -> None:
    rows = draw(5, 3, 20)
    with refused(ValueError):
        kernel_distance(rows[:1], rows)
    with refused(ValueError):
        kernel_distance_subsets(torch.cat([rows, rows]), rows, generator=seeded(0), subset_size=6)
    with refused(ValueError):
        precision_recall(rows, rows[:3])
    with refused(ValueError):
        density_coverage(rows, rows)
    with refused(ValueError):
        neighbour_radii(rows, neighbours=0)


def test_few_rows_of_many_features_and_a_constant_one_stay_finite() -> None:
    a, b = draw(6, 64, 22), draw(7, 64, 23)
    a[:, 3] = b[:, 3] = 1000.0
    finite = [kernel_distance(a, b).value, kernel_distance(a, a).low]
    finite += [density_coverage(a[:1], b).density.value, precision_recall(a, b).recall.value]
    finite += [memorisation(a, b, test=draw(20, 64, 24)).threshold]
    assert np.isfinite(finite).all()


def test_order_changes_nothing() -> None:
    a, b = draw(50, 6, 25, shift=0.3), draw(40, 6, 26)
    shuffled = a[torch.randperm(50, generator=seeded(0))]
    assert kernel_distance(a, b).value == pytest.approx(kernel_distance(shuffled, b).value)
    assert precision_recall(a, b) == precision_recall(shuffled, b)
    first, second = density_coverage(a, b), density_coverage(shuffled, b)
    assert first.coverage == second.coverage
    assert first.density.value == pytest.approx(second.density.value, rel=1e-12)
