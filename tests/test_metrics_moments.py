"""Streamed moments, the Frechet distance at its edges, and its extrapolation."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from sfumato.evaluation.metrics.frechet import frechet_distance, frechet_sampling_error, frechet_to
from sfumato.evaluation.metrics.frechet_infinity import frechet_infinity, frechet_infinity_of_both
from sfumato.evaluation.metrics.moments import (
    FeatureMoments,
    FeatureStatistics,
    covariance_root,
    feature_statistics,
)


def draw(count: int, dim: int, seed: int, *, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, generator=generator) * scale + shift


def streamed(features: Tensor, batch: int) -> FeatureStatistics:
    moments = FeatureMoments(features.shape[1], block_rows=32)
    for rows in features.split(batch):
        moments.update(rows)
    return moments.statistics()


@pytest.mark.parametrize("batch", [1, 7, 32, 33, 500])
def test_any_batch_size_gives_the_same_bits(batch: int) -> None:
    features = draw(150, 6, 0, shift=1e4)
    once, parts = streamed(features, 150), streamed(features, batch)
    assert torch.equal(once.mean, parts.mean)
    assert torch.equal(once.covariance, parts.covariance)
    expected = np.cov(features.double().numpy(), rowvar=False)
    np.testing.assert_allclose(parts.covariance.numpy(), expected, rtol=1e-9, atol=1e-10)


def test_a_stopped_stream_goes_on_with_the_same_bits(refused) -> None:
    features = draw(150, 6, 1)
    first = FeatureMoments(6, block_rows=32)
    first.update(features[:71])
    second = FeatureMoments(6, block_rows=32)
    second.load_state_dict(first.state_dict())
    first.update(features[71:])
    second.update(features[71:])
    assert torch.equal(first.statistics().covariance, second.statistics().covariance)
    assert first.count == second.count == 150
    with refused(ValueError):
        FeatureMoments(7).load_state_dict(first.state_dict())


def test_asking_between_batches_changes_nothing() -> None:
    features = draw(100, 4, 2)
    moments = FeatureMoments(4, block_rows=32)
    for rows in features.split(9):
        moments.update(rows)
        if moments.count > 1:
            moments.statistics()
    assert torch.equal(moments.statistics().covariance, streamed(features, 100).covariance)


@pytest.mark.parametrize("cut", [0, 1, 40, 149, 150])
def test_parts_of_two_processes_merge(cut: int) -> None:
    features = draw(150, 6, 3, shift=100)
    left, right = FeatureMoments(6, block_rows=32), FeatureMoments(6, block_rows=16)
    left.update(features[:cut])
    right.update(features[cut:])
    left.merge(right)
    whole = streamed(features, 150)
    assert left.count == 150
    assert right.count == 150 - cut
    torch.testing.assert_close(left.statistics().mean, whole.mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        left.statistics().covariance, whole.covariance, rtol=1e-9, atol=1e-10
    )


def test_moments_refuse_bad_batches_and_keep_what_they_had(refused) -> None:
    moments = FeatureMoments(3)
    with refused(ValueError):
        moments.statistics()
    moments.update(torch.ones(1, 3))
    broken = torch.ones(4, 3)
    broken[2, 1] = torch.inf
    with refused(ValueError):
        moments.update(broken)
    with refused(ValueError):
        moments.update(torch.ones(4, 2))
    with refused(ValueError):
        moments.update(torch.ones(3))
    assert moments.count == 1


def test_frechet_equals_scipy_on_full_and_on_few_rows() -> None:
    """sqrtm of the product is the textbook form; few rows against it with 1e-12 on the diagonal."""
    for rows, dim, tolerance in ((300, 12, 1e-9), (8, 20, 1e-4)):
        a = feature_statistics(draw(rows, dim, 4, scale=1.3))
        b = feature_statistics(draw(rows + 50, dim, 5, shift=0.4))
        eye = 1e-12 * np.eye(dim)
        root = np.real(sqrtm((a.covariance.numpy() + eye) @ (b.covariance.numpy() + eye)))
        theirs = (
            float((a.mean - b.mean).square().sum())
            + float(a.covariance.trace() + b.covariance.trace())
            - 2 * float(np.trace(root))
        )
        assert frechet_distance(a, b) == pytest.approx(theirs, rel=tolerance)
        assert frechet_distance(b, a) == frechet_distance(a, b)


@pytest.mark.parametrize("rows", [2, 10, 63, 64, 65, 500])
def test_frechet_of_equal_sets_is_zero_to_rounding(rows: int) -> None:
    features = draw(rows, 64, 6) * torch.logspace(-3, 1, 64)
    statistics = feature_statistics(features)
    shuffled = feature_statistics(features.flip(0))
    bound = 1e-7 * float(statistics.covariance.trace())
    assert 0 <= frechet_distance(statistics, statistics) <= bound
    assert 0 <= frechet_distance(statistics, shuffled) <= bound


def test_few_rows_against_many_are_exact_from_either_side() -> None:
    """The 54 eigenvalues that must be 0 are left out: their roots would add about 1e-7."""
    few, many = feature_statistics(draw(10, 64, 6)), feature_statistics(draw(900, 64, 7))
    by_many = frechet_to(few, many, root=covariance_root(many))
    by_few = frechet_to(many, few, root=covariance_root(few))
    assert covariance_root(few).shape == (64, 9)
    assert by_many == pytest.approx(by_few, rel=1e-12)


def test_frechet_with_constant_features(refused) -> None:
    a, b = draw(50, 5, 7), draw(60, 5, 8)
    closed = frechet_distance(feature_statistics(a[:, 1:]), feature_statistics(b[:, 1:]))
    a[:, 0], b[:, 0] = 3.0, 5.0
    one = frechet_distance(feature_statistics(a), feature_statistics(b))
    assert one == pytest.approx(closed + 4, rel=1e-9)
    still = feature_statistics(torch.ones(10, 5))
    assert frechet_distance(still, feature_statistics(torch.zeros(9, 5))) == pytest.approx(5)
    assert frechet_distance(still, still) == 0
    with refused(ValueError):
        frechet_distance(still, feature_statistics(torch.ones(10, 4)))


def test_statistics_made_by_hand_are_checked(refused) -> None:
    """max(0, NaN) is 0 in Python: a NaN in a saved mean would read as a perfect model."""
    mean, covariance = torch.zeros(3).double(), torch.eye(3).double()
    with refused(ValueError):
        FeatureStatistics(mean=mean * torch.nan, covariance=covariance, count=9)
    with refused(ValueError):
        FeatureStatistics(mean=mean, covariance=covariance, count=1)
    with refused(ValueError):
        FeatureStatistics(mean=mean, covariance=covariance[:, :2], count=9)


def isotropic(dim: int) -> FeatureStatistics:
    return FeatureStatistics(
        mean=torch.zeros(dim, dtype=torch.float64),
        covariance=torch.eye(dim, dtype=torch.float64),
        count=10**9,
    )


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.3, 1.2)])
def test_extrapolation_finds_the_true_distance_that_the_plain_one_misses(
    shift: float, scale: float
) -> None:
    """Gaussians of known distance; the interval holds it in about 95 of 100 draws."""
    dim, held, extrapolated, plain = 16, 0, [], []
    truth = dim * shift**2 + dim * (scale - 1) ** 2
    for seed in range(60):
        features = draw(600, dim, seed, shift=shift, scale=scale)
        found = frechet_infinity(
            features, isotropic(dim), generator=torch.Generator().manual_seed(seed)
        )
        held += found.low <= truth <= found.high
        extrapolated.append(found.value)
        plain.append(found.distances[0])
    error = np.std(extrapolated) / np.sqrt(60)
    assert abs(np.mean(extrapolated) - truth) < 3 * error + 0.01
    assert np.mean(plain) - truth > 0.12
    assert held >= 53


def test_extrapolation_of_both_takes_out_the_bias_of_a_small_reference() -> None:
    truth, held, one_sided, both = 16 * 0.3**2 + 16 * 0.2**2, 0, [], []
    for seed in range(60):
        features = draw(600, 16, seed, shift=0.3, scale=1.2)
        reference, generator = draw(300, 16, 1000 + seed), torch.Generator().manual_seed(seed)
        statistics = feature_statistics(reference)
        one_sided.append(frechet_infinity(features, statistics, generator=generator).value)
        found = frechet_infinity_of_both(features, reference, generator=generator)
        held += found.low <= truth <= found.high
        both.append(found.value)
    error = np.std(both) / np.sqrt(60)
    assert np.mean(one_sided) - truth > 0.2
    assert abs(np.mean(both) - truth) < 3 * error + 0.01
    assert held >= 53


def test_extrapolation_is_of_the_generator_and_names_what_it_needs(refused) -> None:
    features, reference = draw(101, 8, 9), feature_statistics(draw(300, 8, 10))
    first, again, other = (
        frechet_infinity(features, reference, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first.value != other.value
    assert first.sizes == (101, 50, 33, 25, 20)
    plain = frechet_distance(feature_statistics(features), reference)
    assert first.distances[0] == pytest.approx(plain, rel=1e-9)
    assert list(first.distances) == sorted(first.distances)
    generator = torch.Generator()
    with refused(ValueError):
        frechet_infinity(features[:9], reference, generator=generator)
    with refused(ValueError):
        frechet_infinity(features, reference, generator=generator, parts=2)
    few = frechet_infinity(features[:10], reference, generator=generator)
    assert np.isfinite([few.value, few.low, few.high]).all()


def test_sampling_error_is_the_spread_over_draws() -> None:
    distances, errors = [], []
    for seed in range(200):
        features = draw(400, 6, seed, shift=0.5, scale=1.3)
        distances.append(frechet_distance(feature_statistics(features), isotropic(6)))
        errors.append(frechet_sampling_error(features, isotropic(6)))
    assert np.mean(errors) == pytest.approx(np.std(distances), rel=0.15)
