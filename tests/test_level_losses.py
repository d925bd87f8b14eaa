"""Losses at fixed noise levels."""

from dataclasses import replace

import pytest
import torch

from sfumato.data.records import load_records
from sfumato.evaluation.level_losses import QUANTILES, chosen, level_losses, levels_of
from sfumato.generation.model import Model


class Zero(torch.nn.Module):
    """A network that always answers 0: its loss is the mean square of the target."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x_t: torch.Tensor, *_: object, return_dict: bool) -> tuple[torch.Tensor]:
        return (torch.zeros_like(x_t),)


def test_the_loss_of_a_network_that_answers_zero(small_model: Model) -> None:
    """v = a eps - s x0 with eps ~ N(0, 1): a^2 + s^2 mean(x0^2) on average."""
    assert small_model.data is not None
    records = load_records(small_model.data, "test")
    rows = chosen(records, 150)
    process = small_model.process
    times = levels_of(process)
    found = level_losses(replace(small_model, network=Zero()), records, rows)
    power = small_model.codec.encode(records.images[rows]).square().mean().item()
    a, s = process.scales(times)
    if process.prediction_type == "epsilon":
        expected = torch.ones(len(times))
    else:
        assert process.prediction_type == "v_prediction"
        expected = a.square() + s.square() * power
    assert [one.value for one in found] == pytest.approx(expected.tolist(), rel=0.03)
    for one in found:
        low, high = one.interval
        assert low < one.value < high
        assert one.count == len(rows)


def test_levels_are_quantiles_of_the_law_of_training(small_model: Model) -> None:
    process = small_model.process
    shares = levels_of(process) / process.num_train_timesteps  # pyright: ignore
    torch.testing.assert_close(shares, torch.tensor(QUANTILES), atol=0.03, rtol=0)


def test_the_same_images_noise_and_values_each_time(small_model: Model) -> None:
    assert small_model.data is not None
    records = load_records(small_model.data, "train")
    rows = chosen(records, 70)
    assert len(set(rows.tolist())) == 70
    assert torch.equal(rows, chosen(records, 70))
    first, again = (level_losses(small_model, records, rows) for _ in range(2))
    assert first == again
    assert len(chosen(records, 10**6)) == len(records)
