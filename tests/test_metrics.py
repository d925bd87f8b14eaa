import numpy as np
import pytest
import torch
from scipy.stats import binom, binomtest, bootstrap

from sfumato.evaluation.metrics.frechet import frechet_distance
from sfumato.evaluation.metrics.intervals import bootstrap_median, wilson
from sfumato.evaluation.metrics.moments import FeatureStatistics, feature_statistics
from sfumato.evaluation.metrics.pixels import saturated_shares


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (97, 100), (1, 3), (485, 500)])
def test_wilson_equals_scipy(k: int, n: int) -> None:
    theirs = binomtest(k, n).proportion_ci(0.95, method="wilson")
    ours = wilson(k, n)
    assert ours.low == pytest.approx(theirs.low, abs=1e-9)
    assert ours.high == pytest.approx(theirs.high, abs=1e-9)
    assert ours.value == k / n


@pytest.mark.parametrize(("k", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_wilson_refuses_what_is_no_proportion(k: int, n: int, refused) -> None:
    with refused(ValueError):
        wilson(k, n)


@pytest.mark.parametrize("count", [7, 8, 31])
def test_bootstrap_of_a_median_equals_scipy(count: int) -> None:
    values = np.random.default_rng(count).normal(size=count)
    theirs = bootstrap(
        (values,), np.median, n_resamples=50_000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    ours = bootstrap_median(values.tolist(), resamples=50_000)
    assert ours.value == np.median(values)
    assert ours.low == pytest.approx(theirs.low, abs=0.02)
    assert ours.high == pytest.approx(theirs.high, abs=0.02)


def test_bootstrap_of_a_median_equals_its_closed_form(refused) -> None:
    """Of 9 values, the k-th bounds a resample's median with P(Binomial(9, k / 9) >= 5)."""
    ranks = [float(rank) for rank in range(1, 10)]
    below = [binom.sf(4, 9, rank / 9) for rank in ranks]
    for confidence in (0.8, 0.95):
        tail = (1 - confidence) / 2
        ours = bootstrap_median(ranks, confidence=confidence)
        assert ours.low == next(r for r, p in zip(ranks, below, strict=True) if p >= tail)
        assert ours.high == next(r for r, p in zip(ranks, below, strict=True) if p >= 1 - tail)
    with refused(ValueError):
        bootstrap_median([])


def test_frechet_equals_the_closed_form_of_diagonal_gaussians() -> None:
    generator = torch.Generator().manual_seed(0)
    mean_a, mean_b = torch.randn(2, 16, generator=generator, dtype=torch.float64)
    var_a, var_b = torch.rand(2, 16, generator=generator, dtype=torch.float64) + 0.1
    closed = (mean_a - mean_b).square().sum() + (var_a.sqrt() - var_b.sqrt()).square().sum()
    distance = frechet_distance(
        FeatureStatistics(mean=mean_a, covariance=var_a.diag(), count=100),
        FeatureStatistics(mean=mean_b, covariance=var_b.diag(), count=100),
    )
    assert distance == pytest.approx(float(closed), rel=1e-10)


class Passthrough(torch.nn.Module):
    """torchmetrics' FID wants a module that makes features of images: these are the features."""

    num_features = 24

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def test_frechet_equals_torchmetrics_on_the_same_features() -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(24, 24, generator=generator, dtype=torch.float64)
    real = torch.randn(300, 24, generator=generator, dtype=torch.float64) @ mixing
    fake = torch.randn(200, 24, generator=generator, dtype=torch.float64) @ mixing * 1.3 + 0.5
    theirs = FrechetInceptionDistance(feature=Passthrough(), input_img_size=(24,)).set_dtype(
        torch.float64
    )
    theirs.update(real, real=True)
    theirs.update(fake, real=False)
    ours = frechet_distance(feature_statistics(fake), feature_statistics(real))
    assert ours == pytest.approx(float(theirs.compute()), rel=1e-6)


def test_frechet_of_few_rows_is_finite_and_zero_for_equal_sets() -> None:
    features = torch.randn(10, 64, generator=torch.Generator().manual_seed(2))
    statistics = feature_statistics(features)
    assert frechet_distance(statistics, statistics) == pytest.approx(0, abs=1e-6)
    other = feature_statistics(features.flip(0) + 1)
    assert frechet_distance(statistics, other) == pytest.approx(64, rel=1e-6)


def test_statistics_equal_numpy_and_refuse_nan(refused) -> None:
    features = torch.randn(50, 5, generator=torch.Generator().manual_seed(3))
    statistics = feature_statistics(features)
    expected = np.cov(features.double().numpy(), rowvar=False)
    np.testing.assert_allclose(statistics.covariance.numpy(), expected, rtol=1e-12)
    features[0, 0] = torch.nan
    with refused(ValueError):
        feature_statistics(features)


def test_saturated_share_counts_both_ends() -> None:
    images = torch.tensor([0, 1, 254, 255], dtype=torch.uint8).reshape(1, 1, 2, 2)
    assert saturated_shares(images).tolist() == [0.5]
