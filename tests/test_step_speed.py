"""A step is queued on its device: nothing in it makes the host wait."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sfumato.config.schema import load_experiment
from sfumato.config.sections import AveragingConfig
from sfumato.diffusion.process import VariancePreserving
from sfumato.methods.registry import prepare_run
from sfumato.models import ema
from sfumato.training.step import Ahead, StepMetrics

TINY = [
    "data.resolution=8",
    "model.block_out_channels=[8,16]",
    "model.levels=[plain,attention]",
    "training.batch_size=8",
    "training.images=64",
]
READS = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "unique"}
"""Operations whose result, or its shape, the host must wait for."""


class Asynchronous(TorchDispatchMode):
    """Raises on operations that would make the host wait for a GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in READS, f"{name} reads a value of the device"
        result = func(*args, **(kwargs or {}))
        if name in ("_to_copy", "copy_") and isinstance(args[0], torch.Tensor):
            assert args[0].device == result.device, "a copy between devices"
        return result


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["training.micro_batches=3", "training.mirrored=true"],
        ["training.loss_weight=min_snr", "training.optimizer.max_grad_norm=1"],
        ["model.dropout=0.1", "training.averaging.also_halflives_images=[100]"],
        ["training.precision=bfloat16", "training.caption_dropout=0"],
        ["diffusion.process=rectified_flow", "sampling.sampler=Heun"],
    ],
)
def test_a_step_reads_nothing(settings, tmp_path, monkeypatch) -> None:
    run = prepare_run(load_experiment("digits", [*TINY, *settings]), tmp_path, device="cpu")
    batch = run.batches.at(0)
    monkeypatch.setattr(ema, "_is_on_host", lambda value: False)  # as on a GPU
    with Asynchronous():
        found = run.objective.step(batch, run.context())
        metrics = StepMetrics(found, images_seen=0)
    assert metrics["loss"] > 0


def test_the_mode_of_this_file_sees_reads() -> None:
    with pytest.raises(AssertionError), Asynchronous():
        float(torch.ones(1) + 1)


def test_draws_made_ahead_are_the_same(tmp_path, monkeypatch) -> None:
    """As on a GPU: each step's draws are made in a thread during the step before."""
    run = prepare_run(load_experiment("digits", TINY), tmp_path, device="cpu")
    expected, made = run.objective.draws, []
    ahead = Ahead(lambda context: made.append(context) or expected.at(context))
    for images_seen in (0, 8, 16, 48, 56):  # 48: a run that was resumed elsewhere
        context = replace(run.context(), images_seen=images_seen)
        with monkeypatch.context() as patch:
            patch.setattr(Ahead, "_is_ahead", staticmethod(lambda device: True))
            draws = ahead.at(context)
        assert torch.equal(draws.eps, expected.at(context).eps)
        assert torch.equal(draws.t, expected.at(context).t)
    ahead._thread.shutdown()
    places = sorted(context.images_seen for context in made)
    assert places == [0, 8, 16, 24, 48, 56, 64]


def test_tables_of_a_process_are_made_once_a_device() -> None:
    process = VariancePreserving()
    t = torch.tensor([0, 999])
    first, again = process.snr(t), process.snr(t)
    assert torch.equal(first, again)
    assert torch.equal(first, process.alpha_bar[t] / (1 - process.alpha_bar[t]))
    assert process.scales(torch.tensor([3], device="meta"))[0].device.type == "meta"


@pytest.mark.parametrize("on_host", [True, False])
def test_averages_are_the_same_on_both_ways(tmp_path, monkeypatch, on_host: bool) -> None:
    """lerp where the host knows that the step was finite; else a sum that the device decides on."""
    run = prepare_run(load_experiment("digits", TINY), tmp_path, device="cpu")
    before = [value.double() for value in run.objective.average.module.state_dict().values()]
    monkeypatch.setattr(ema, "_is_on_host", lambda value: on_host)
    run.take_step()
    decay = ema.averaging_decay(run.objective.config.averaging, images_seen=8, batch_size=8)
    assert 0 < decay < 1
    for old, new, average in zip(
        before,
        run.objective.network.state_dict().values(),
        run.objective.average.module.state_dict().values(),
        strict=True,
    ):
        torch.testing.assert_close(average.double(), decay * old + (1 - decay) * new.double())


@pytest.mark.parametrize("on_host", [True, False])
def test_a_step_that_is_not_finite_changes_no_weight_no_moment_and_no_average(
    tmp_path, monkeypatch, on_host: bool
) -> None:
    """After steps that were: fused AdamW skips the step on the device, its count too."""
    monkeypatch.setattr(ema, "_is_on_host", lambda value: on_host)
    run = prepare_run(load_experiment("digits", TINY), tmp_path, device="cpu")
    run.take_step()
    parts = run.objective.parts()

    def tensors():
        weights = [*parts["unet"].state_dict().values(), *parts["average"].state_dict().values()]
        moments = parts["optimizer"].state_dict()["state"].values()
        return [v.clone() for v in [*weights, *(v for state in moments for v in state.values())]]

    before = tensors()
    run.objective.bank.tokens = lambda rows: torch.full((len(rows), 8, 512), torch.inf)
    run.objective.step(run.batches.at(8), run.context())
    assert all(torch.equal(a, b) for a, b in zip(before, tensors(), strict=True))


def test_averaged_buffers_of_a_step_that_is_not_finite_stay(monkeypatch) -> None:
    model = torch.nn.BatchNorm1d(3)
    average = ema.AveragedModel(model, AveragingConfig(halflife_images=0))
    monkeypatch.setattr(ema, "_is_on_host", lambda value: False)
    for finite, expected in ((True, 1.0), (False, 1.0), (True, 2.0)):
        model.running_mean.fill_(expected if finite else torch.nan)
        average.update(images_seen=8, batch_size=8, finite=torch.tensor(finite))
        assert average.module.running_mean.tolist() == [expected] * 3
