"""Inception score, CLIP score, class accuracy, bootstrap means and paired tests."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, bootstrap
from sklearn.metrics import confusion_matrix as sklearn_confusion

from sfumato.evaluation.metrics.adherence import (
    class_accuracy,
    clip_score,
    clip_scores,
    confusion_matrix,
)
from sfumato.evaluation.metrics.inception_score import inception_score, inception_score_of_logits
from sfumato.evaluation.metrics.intervals import bootstrap_mean, resampled
from sfumato.evaluation.metrics.paired import mcnemar, paired_bootstrap
from tests.test_metrics import Passthrough
from tests.test_metrics_moments import draw


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("splits", [1, 5])
def test_inception_score_equals_torchmetrics(splits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchmetrics.image.inception import InceptionScore

    logits = draw(100, 24, 0, scale=2).double()
    theirs = InceptionScore(feature=Passthrough(), splits=splits)
    theirs.update(logits)
    generator, randperm = seeded(1), torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda n: randperm(n, generator=generator))
    mean, std = theirs.compute()
    monkeypatch.undo()
    ours = inception_score_of_logits(logits, generator=seeded(1), splits=splits)
    assert ours.value == pytest.approx(float(mean), rel=1e-9)
    if splits > 1:
        assert ours.std == pytest.approx(float(std), rel=1e-9)


def test_inception_score_at_its_ends() -> None:
    """Sure of K classes in equal parts: K. The same prediction for all, or no information: 1."""
    sure = torch.eye(10).repeat(20, 1)
    assert inception_score(sure, generator=seeded(0), splits=1).value == pytest.approx(10)
    same = torch.eye(10)[3].repeat(200, 1)
    assert inception_score(same, generator=seeded(0)).value == 1
    flat = torch.full((200, 10), 0.1)
    assert inception_score(flat, generator=seeded(0)).value == pytest.approx(1, abs=1e-12)


def test_inception_score_does_not_ask_how_images_are_ordered() -> None:
    """Class by class, contiguous splits would each see one class and score 1."""
    sure = torch.eye(10).repeat_interleave(50, dim=0)
    found = inception_score(sure, generator=seeded(0))
    assert found.value > 8
    assert found.whole == pytest.approx(10)
    shuffled = inception_score(sure[torch.randperm(500)], generator=seeded(0))
    assert shuffled.whole == pytest.approx(found.whole, rel=1e-12)


def test_inception_score_refuses_what_is_no_probability(refused) -> None:
    with refused(ValueError):
        inception_score(draw(20, 5, 0), generator=seeded(0))
    with refused(ValueError):
        inception_score_of_logits(draw(9, 5, 0), generator=seeded(0))
    broken = draw(20, 5, 0)
    broken[0] = torch.nan
    with refused(ValueError):
        inception_score_of_logits(broken, generator=seeded(0))


def test_clip_score_equals_a_loop() -> None:
    images, texts = draw(50, 16, 1), draw(50, 16, 2, shift=0.3)
    expected = []
    for a, b in zip(images.double().numpy(), texts.double().numpy(), strict=True):
        expected.append(100 * max(a @ b / np.linalg.norm(a) / np.linalg.norm(b), 0))
    np.testing.assert_allclose(clip_scores(images, texts).numpy(), expected, rtol=1e-12)
    found = clip_score(images, texts)
    assert found.value == pytest.approx(np.mean(expected))
    assert found.low < found.value < found.high
    assert clip_score(images, images).value == pytest.approx(100)
    assert clip_score(images[:1], -images[:1]).value == 0


def test_clip_score_refuses_what_are_no_pairs(refused) -> None:
    images = draw(5, 4, 3)
    with refused(ValueError):
        clip_score(images, images[:4])
    with refused(ValueError):
        clip_score(images, images[:, :3])
    with refused(ValueError):
        clip_score(images, torch.zeros(5, 4))
    with refused(ValueError):
        clip_score(images, images * torch.nan)


def test_class_accuracy_equals_sklearn_class_by_class() -> None:
    asked = torch.randint(4, (200,), generator=seeded(4))
    seen = torch.where(torch.rand(200, generator=seeded(5)) < 0.7, asked, 0)
    confusion = confusion_matrix(asked, seen, classes=5)
    expected = sklearn_confusion(asked.numpy(), seen.numpy(), labels=range(5))
    np.testing.assert_array_equal(confusion.numpy(), expected)
    parts = sum(
        confusion_matrix(a, b, classes=5)
        for a, b in zip(asked.split(33), seen.split(33), strict=True)
    )
    assert torch.equal(confusion, torch.as_tensor(parts))
    found = class_accuracy(confusion)
    assert found.overall.value == float((asked == seen).double().mean())
    assert found.classes[4] is None
    assert found.classes[0] is not None
    assert found.classes[0].value == 1


def test_class_accuracy_refuses_what_does_not_fit(refused) -> None:
    labels = torch.tensor([0, 1, 5])
    with refused(ValueError):
        confusion_matrix(labels, labels, classes=5)
    with refused(ValueError):
        confusion_matrix(labels, labels[:2], classes=6)
    with refused(ValueError):
        class_accuracy(torch.zeros(3, 3, dtype=torch.int64))


def test_bootstrap_of_a_mean_equals_scipy(refused) -> None:
    values = draw(40, 1, 6)[:, 0]
    theirs = bootstrap(
        (values.double().numpy(),), np.mean, n_resamples=20_000, method="percentile", rng=0
    ).confidence_interval
    ours = bootstrap_mean(values, resamples=20_000)
    assert ours.low == pytest.approx(theirs.low, abs=0.02)
    assert ours.high == pytest.approx(theirs.high, abs=0.02)
    assert ours == bootstrap_mean(values, resamples=20_000)
    assert bootstrap_mean(values[:1]).low == bootstrap_mean(values[:1]).high
    with refused(ValueError):
        bootstrap_mean(values[:0])
    with refused(ValueError):
        bootstrap_mean(values * torch.nan)


def test_a_bootstrap_of_many_values_is_drawn_in_parts() -> None:
    drawn = [part.shape for part in resampled(2_000_000, resamples=3, seed=0)]
    assert drawn == [(2, 2_000_000), (1, 2_000_000)]


@pytest.mark.parametrize(
    ("only_first", "only_second"), [(0, 0), (0, 1), (3, 9), (10, 10), (400, 480), (9000, 9300)]
)
def test_mcnemar_equals_the_exact_binomial(only_first: int, only_second: int) -> None:
    first = torch.tensor([True] * only_first + [False] * only_second + [True, False])
    second = torch.tensor([False] * only_first + [True] * only_second + [True, False])
    found = mcnemar(first, second)
    n = only_first + only_second
    expected = binomtest(only_first, n, 0.5).pvalue if n else 1.0
    assert found.p_value == pytest.approx(expected, rel=1e-6)
    assert (found.only_first, found.only_second) == (only_first, only_second)


def test_mcnemar_refuses_what_are_no_pairs(refused) -> None:
    right = torch.ones(4, dtype=torch.bool)
    with refused(ValueError):
        mcnemar(right, right[:3])
    with refused(ValueError):
        mcnemar(right, right.long())


def test_paired_bootstrap_sees_what_unpaired_ones_miss() -> None:
    """A difference of 0.1 under a spread of 5 that both share."""
    difficulty = draw(100, 1, 7, scale=5)[:, 0]
    better = difficulty + 0.1 + draw(100, 1, 8, scale=0.1)[:, 0]
    found = paired_bootstrap(better, difficulty)
    assert found.low < 0.1 < found.high
    assert found.high - found.low < 0.06
    assert found.p_value < 0.001
    assert bootstrap_mean(better).low < float(difficulty.mean()) < bootstrap_mean(better).high
    assert paired_bootstrap(difficulty, better).value == pytest.approx(-found.value)
    medians = paired_bootstrap(better, difficulty, statistic=lambda rows: rows.median(dim=1).values)
    assert medians.low < medians.value < medians.high


def test_paired_bootstrap_is_right_about_nothing(refused) -> None:
    same = draw(30, 1, 9)[:, 0]
    equal = paired_bootstrap(same, same)
    assert (equal.value, equal.low, equal.high, equal.p_value) == (0, 0, 0, 1)
    false_alarms = sum(
        paired_bootstrap(draw(40, 1, s)[:, 0], draw(40, 1, 500 + s)[:, 0], resamples=500).p_value
        < 0.05
        for s in range(200)
    )
    assert false_alarms <= 22
    with refused(ValueError):
        paired_bootstrap(same, same[:29])
    with refused(ValueError):
        paired_bootstrap(same, same * torch.nan)
