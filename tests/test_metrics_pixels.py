"""Noise from pixels, differences of pairs, a loss at rest: closed forms and known values."""

from math import pi

import pytest
import torch

from sfumato.evaluation.metrics.curves import plateau
from sfumato.evaluation.metrics.diversity import diversity_difference, diversity_within_classes
from sfumato.evaluation.metrics.intervals import difference_of_shares, wilson
from sfumato.evaluation.metrics.paired import share_difference
from sfumato.evaluation.metrics.pixels import (
    border_deviation,
    border_rms,
    high_frequencies,
    high_frequency_shares,
)

SIDE = 28


def even(value: int, side: int = SIDE) -> torch.Tensor:
    return torch.full((1, 1, side, side), value, dtype=torch.uint8)


def checkerboard(low: int, high: int) -> torch.Tensor:
    place = torch.arange(SIDE)
    odd = (place[:, None] + place) % 2 == 1
    return torch.where(odd, high, low).to(torch.uint8)[None, None]


def wave(cycles: int) -> torch.Tensor:
    """A sinusoid along the rows with `cycles` periods in 28 pixels."""
    x = torch.arange(SIDE, dtype=torch.float64)
    row = 127 + 100 * torch.sin(2 * pi * cycles * x / SIDE + 0.3)
    return row.round().to(torch.uint8).expand(1, 1, SIDE, SIDE)


def test_border_of_even_images_and_of_what_lies_inside() -> None:
    assert float(border_rms(even(51))) == pytest.approx(0.2)
    assert float(border_deviation(even(51))) == pytest.approx(0, abs=1e-12)
    inside = even(0)
    inside[..., 4:-4, 4:-4] = 255
    assert float(border_rms(inside)) == 0
    assert float(border_rms(inside, 5)) > 0
    # Half the pixels white: RMS sqrt(1/2), half of it grey and half of it grain.
    board = checkerboard(0, 255)
    assert float(border_rms(board)) == pytest.approx(0.5**0.5)
    assert float(border_deviation(board)) == pytest.approx(0.5)


def test_border_of_an_image_does_not_depend_on_its_batch() -> None:
    both = torch.cat([even(51), checkerboard(0, 255)])
    assert border_rms(both).tolist() == [float(border_rms(image[None])) for image in both]
    colour = even(51).repeat(1, 3, 1, 1)
    assert float(border_rms(colour)) == pytest.approx(0.2)


@pytest.mark.parametrize("image", [even(0), even(200)])
def test_an_even_image_has_no_high_frequencies(image: torch.Tensor) -> None:
    assert float(high_frequency_shares(image)) == 0


def test_a_checkerboard_has_nothing_else_at_any_contrast() -> None:
    boards = torch.cat([checkerboard(0, 255), checkerboard(100, 110)])
    assert high_frequency_shares(boards).tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize(("cycles", "share"), [(1, 0), (6, 0), (7, 0), (8, 1), (13, 1)])
def test_a_wave_lies_on_its_side_of_half_nyquist(cycles: int, share: float) -> None:
    """Seven periods in 28 pixels are half Nyquist itself, which does not lie above."""
    assert float(high_frequency_shares(wave(cycles))) == pytest.approx(share, abs=2e-3)


def test_white_noise_has_the_share_of_the_frequencies() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (400, 1, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    shares = high_frequency_shares(noise)
    expected = int(high_frequencies(SIDE, SIDE).sum()) / (SIDE**2 - 1)
    assert float(shares.mean()) == pytest.approx(expected, abs=4 * float(shares.std()) / 20)
    assert expected == pytest.approx(1 - pi / 16, abs=0.02)


def test_stretching_an_image_leaves_its_share() -> None:
    image = wave(3) // 2 + checkerboard(0, 8)
    stretched = image.float().sub(image.min()).mul(255 / float(image.max() - image.min()))
    share = float(high_frequency_shares(stretched.round().to(torch.uint8)))
    assert share == pytest.approx(float(high_frequency_shares(image)), rel=0.02)


def test_other_images_are_refused(refused) -> None:
    with refused(ValueError):
        border_rms(torch.zeros(1, 1, 8, 8))
    with refused(ValueError):
        border_rms(even(0, 8), 4)
    with refused(ValueError):
        high_frequency_shares(torch.zeros(0, 1, 8, 8, dtype=torch.uint8))


# Differences --------------------------------------------------------------------------------------


def pairs(both: int, first: int, second: int, neither: int) -> tuple[torch.Tensor, torch.Tensor]:
    counts = torch.tensor([both, first, second, neither])
    kinds = torch.tensor([[1, 1], [1, 0], [0, 1], [0, 0]]).repeat_interleave(counts, dim=0).bool()
    return kinds[:, 0], kinds[:, 1]


def test_paired_shares_of_newcombe() -> None:
    """Without correlation the two Wilson intervals are squared and added; all right on both sides
    is no certainty."""
    found = share_difference(*pairs(100, 0, 0, 0))
    assert found.value == 0
    assert found.high == pytest.approx(1 - wilson(100, 100).low)
    assert found.low == -found.high
    independent = share_difference(*pairs(25, 25, 25, 25))
    alone = difference_of_shares(wilson(50, 100), wilson(50, 100))
    assert (independent.low, independent.high) == pytest.approx((alone.low, alone.high))
    # Pairs that go together tell more.
    related = share_difference(*pairs(45, 5, 5, 45))
    assert related.high - related.low < 0.6 * (alone.high - alone.low)
    one, other = share_difference(*pairs(60, 25, 5, 10)), share_difference(*pairs(60, 5, 25, 10))
    assert (one.value, one.low, one.high) == pytest.approx((-other.value, -other.high, -other.low))


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [((36, 12, 2, 0), 0.0569, 0.3404), ((54, 0, 0, 0), -0.0664, 0.0664)],
)
def test_paired_shares_equal_newcombes_examples(
    counts: tuple[int, int, int, int], low: float, high: float
) -> None:
    """Newcombe (1998), Statistics in Medicine 17:2635, method 10."""
    found = share_difference(*pairs(*counts))
    assert (found.low, found.high) == pytest.approx((low, high), abs=6e-5)


def test_difference_of_shares_equals_newcombes_example() -> None:
    """56/70 - 48/80 = 0.2 with 0.0524 to 0.3339: Newcombe (1998), Table II (a), method 10."""
    found = difference_of_shares(wilson(56, 70), wilson(48, 80))
    assert found.value == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_interval_of_a_difference_of_diversities_covers(refused) -> None:
    """95 % of intervals hold the true difference; a bootstrap of the rows would not."""
    labels = torch.arange(60) % 2
    held = 0
    first = second = torch.zeros(60)
    for seed in range(200):
        noise = torch.randn(2, 60, 8, generator=torch.Generator().manual_seed(seed)).double()
        first, second = (diversity_within_classes(rows, labels).values for rows in noise)
        found = diversity_difference(first, second, labels)
        held += found.low <= 0 <= found.high
    assert wilson(held, 200).high > 0.95
    assert held >= 180
    with refused(ValueError):
        diversity_difference(first, second[:40], labels)


def test_the_fall_of_a_loss(refused) -> None:
    noise = torch.randn(80, generator=torch.Generator().manual_seed(0)).mul(0.001)
    rest = plateau((0.1 + noise).tolist())
    assert rest.fall.low < 0 < rest.fall.high < 0.02
    falling = plateau((torch.linspace(1.0, 0.2, 80) + noise).tolist())
    # Means of the last two quarters of a line from 1 to 0.2.
    assert falling.fall.value == pytest.approx(1 - 0.3 / 0.5, abs=0.01)
    assert falling.first_tenth > 2 * falling.last_quarter
    with refused(ValueError):
        plateau([0.1] * 19)
