"""Yardsticks: real images moved, noised and blurred by a known amount."""

import pytest
import torch

from sfumato.evaluation.metrics.pixels import PERTURBATIONS, blurred, shifted, with_noise

IMAGES = torch.randint(0, 256, (4, 2, 12, 12), generator=torch.Generator().manual_seed(0)).to(
    torch.uint8
)


def test_half_a_pixel_is_the_mean_of_two_neighbours_and_a_whole_one_their_place() -> None:
    half = shifted(IMAGES).double()
    mean = (IMAGES.double()[..., 1:] + IMAGES.double()[..., :-1]) / 2
    assert (half[..., 1:] - mean).abs().max() <= 0.5
    assert torch.equal(shifted(IMAGES, pixels=1)[..., 1:], IMAGES[..., :-1])
    assert torch.equal(shifted(IMAGES, pixels=0), IMAGES)


def test_noise_has_the_deviation_that_was_asked_for() -> None:
    grey = torch.full((8, 1, 64, 64), 128, dtype=torch.uint8)
    noise = with_noise(grey, deviation=0.05).double() - 128
    assert float(noise.std()) == pytest.approx(255 * 0.05, rel=0.02)
    assert torch.equal(with_noise(grey), with_noise(grey))


def test_a_blurred_point_is_a_gaussian() -> None:
    point = torch.zeros(1, 1, 21, 21, dtype=torch.uint8)
    point[..., 10, 10] = 255
    places = torch.arange(21).double() - 10
    line = torch.exp(-places.square() / (2 * 1.5**2)) / (1.5 * (2 * torch.pi) ** 0.5)
    expected = 255 * line[:, None] * line[None, :]
    assert (blurred(point)[0, 0].double() - expected).abs().max() <= 1
    flat = torch.full((1, 3, 9, 9), 77, dtype=torch.uint8)
    assert torch.equal(blurred(flat), flat)


def test_every_perturbation_keeps_form_and_type() -> None:
    for perturbation in PERTURBATIONS.values():
        altered = perturbation.apply(IMAGES)
        assert altered.shape == IMAGES.shape
        assert altered.dtype == torch.uint8
