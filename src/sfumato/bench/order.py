"""What the order of the images does to training: one network, four orders, everything else equal.

The paper read file after file and found training "not noticeably affected". Here every order sees
the same noise, timesteps and dropped captions at the same step; only which images they meet
differs. The loss is that of held-out images at fixed noise.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import stdev

import numpy as np
import torch
from torch import Tensor

from sfumato import __version__
from sfumato.base.environment import environment, now
from sfumato.base.errors import InputError
from sfumato.base.files import write_json
from sfumato.base.randomness import derived_seed, generator_for
from sfumato.bench.plain_loops import discrete_process
from sfumato.config.schema import DiffusionExperiment
from sfumato.data.loading import DeviceBatches, SampleOrder
from sfumato.data.records import Records, load_records
from sfumato.data.streaming.order import StreamOrder
from sfumato.data.streaming.stream import StreamedRecords, open_stream
from sfumato.evaluation.metrics.paired import PairedDifference, paired_bootstrap
from sfumato.methods.diffusion import with_bank_rows
from sfumato.methods.registry import prepare_run
from sfumato.training.hooks import stopping_on_signals
from sfumato.training.loop import Hook, Run, train
from sfumato.training.objectives.diffusion import DiffusionObjective

RANDOM = "random"
_NOISE_LEVELS = 8
"""Noise levels that each held-out image is measured at, one from each eighth of them."""
_ROWS = 64


class FileOrder(SampleOrder):
    """The paper's (section 3.4.3): `files` in a new order each epoch, shuffled inside; (n,) sample
    numbers of each."""

    def __init__(self, files: Sequence[np.ndarray], *, seed: int) -> None:
        super().__init__(sum(map(len, files)), seed=seed)
        self._files = files

    def _permutation(self, epoch: int) -> Tensor:
        rng = np.random.default_rng(derived_seed(self.seed, "file by file", epoch))
        files = [self._files[place] for place in rng.permutation(len(self._files))]
        return torch.from_numpy(np.concatenate([rng.permutation(file) for file in files]))


class StoredOrder(SampleOrder):
    """No shuffling at all: the files' own order, every epoch."""

    def _permutation(self, epoch: int) -> Tensor:
        return torch.arange(self.count)


def file_by_file(records: StreamedRecords, seed: int) -> FileOrder:
    """The order of the paper's loader over the files of `records`."""
    of_group = [str(group.file) for group in records.groups]
    of_sample = np.repeat(np.unique(of_group, return_inverse=True)[1], records.sizes)
    files = [np.flatnonzero(of_sample == file) for file in range(len(set(of_group)))]
    return FileOrder(files, seed=seed)


ORDERS: dict[str, Callable[[StreamedRecords, int], SampleOrder | StreamOrder]] = {
    RANDOM: lambda records, seed: SampleOrder(len(records), seed=seed),
    "stream": lambda records, seed: StreamOrder(records.sizes, seed=seed),
    "file by file (the paper)": file_by_file,
    "as stored": lambda records, seed: StoredOrder(len(records), seed=seed),
}
"""Orders by name: a new one is an entry."""


@dataclass(frozen=True, kw_only=True)
class Ordered:
    """One order: `losses` (N,) of held-out images, mean over the seeds; `by_seed`: mean of each
    run; `apart`: how much more than in random order, over pairs of images; None for that itself."""

    name: str
    losses: Tensor
    by_seed: Mapping[int, float]
    apart: PairedDifference | None

    @property
    def mean(self) -> float:
        return float(self.losses.mean())

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds; None of one seed."""
        return stdev(self.by_seed.values()) if len(self.by_seed) > 1 else None


def compare_orders(
    experiment: DiffusionExperiment,
    folder: Path,
    *,
    seeds: Sequence[int],
    device: str = "auto",
    log: Callable[[str], None] = lambda sentence: None,
    progress: Callable[[], Hook] | None = None,
) -> list[Ordered] | None:
    """Train every order and seed in `folder`, measure, and write `order.json`.

    Killed, the same arguments go on; None where it was asked to stop. `experiment.data` is
    resolved and names Parquet files; raises as `open_stream`, `prepare_run` and `discrete_process`.
    """
    discrete_process(experiment.diffusion)
    streamed = open_stream(experiment.data, "train")
    held = load_records(experiment.data, "train")
    if len(held) != len(streamed):
        raise InputError(
            f"{experiment.data.source} has {len(streamed) - len(held):,} damaged images.",
            hint="Take the damaged rows out of the files.",
        )
    losses: dict[str, dict[int, Tensor]] = {name: {} for name in ORDERS}
    for seed in seeds:
        for name, order in ORDERS.items():
            log(f"{name}, seed {seed}")
            own = experiment.model_copy(update={"seed": seed})
            place = folder / f"{name.partition(' (')[0].replace(' ', '-')}-{seed}"
            run = prepare_run(own, place, device=device, hooks=[progress()] if progress else [])
            assert isinstance(run.objective, DiffusionObjective)
            assert isinstance(run.batches, DeviceBatches)
            run.batches.order = order(streamed, seed)
            if not run.finished:
                with stopping_on_signals(run):
                    train(run)
            if not run.finished:
                return None
            losses[name][seed] = held_out_losses(run.objective, own, run)
    found = ordered(losses)
    _write(found, folder, experiment)
    return found


def ordered(losses: Mapping[str, Mapping[int, Tensor]]) -> list[Ordered]:
    """From the losses (N,) of each order and seed."""
    means = {name: torch.stack(list(own.values())).mean(0) for name, own in losses.items()}
    return [
        Ordered(
            name=name,
            losses=means[name],
            by_seed={seed: float(values.mean()) for seed, values in own.items()},
            apart=None if name == RANDOM else paired_bootstrap(means[name], means[RANDOM]),
        )
        for name, own in losses.items()
    ]


@torch.no_grad()
def held_out_losses(
    objective: DiffusionObjective, experiment: DiffusionExperiment, run: Run
) -> Tensor:
    """(N,) float64: each test image's loss by the averaged network, at noise that is the same for
    every run."""
    records: Records = with_bank_rows(load_records(experiment.data, "test"), objective.bank)
    levels = discrete_process(experiment.diffusion).num_train_timesteps
    generator = generator_for("held-out loss")
    total = torch.zeros(len(records), dtype=torch.float64)
    for level in range(_NOISE_LEVELS):
        low, high = level * levels // _NOISE_LEVELS, (level + 1) * levels // _NOISE_LEVELS
        t = torch.randint(low, high, (len(records),), generator=generator)
        eps = torch.randn(records.images.shape, generator=generator)
        for start in range(0, len(records), _ROWS):
            part = slice(start, start + _ROWS)
            x0 = objective.codec.encode(records.images[part])
            found = objective.loss(
                x0.to(run.device),
                eps[part].to(run.device),
                t[part].to(run.device),
                records.prompts[part, 0].to(run.device),
                network=objective.average.module,
            )
            total[part] += found.double().cpu()
    return total / _NOISE_LEVELS


def _write(found: Sequence[Ordered], folder: Path, experiment: DiffusionExperiment) -> None:
    write_json(
        folder / "order.json",
        {
            "data": experiment.data.source,
            "images": experiment.training.images,
            "held_out_images": len(found[0].losses),
            "orders": {
                one.name: {
                    "loss": one.mean,
                    "by_seed": {str(seed): loss for seed, loss in one.by_seed.items()},
                    "more_than_random": None
                    if one.apart is None
                    else [one.apart.value, one.apart.low, one.apart.high],
                }
                for one in found
            },
            "environment": environment(),
            "sfumato": __version__,
            "date": now(),
        },
    )


def table_rows(found: Sequence[Ordered]) -> list[list[str]]:
    """Header and a row for each order."""
    rows = [["order", "held-out loss", "over seeds", "more than random, 95 % interval"]]
    for one in found:
        apart = one.apart
        more = "" if apart is None else f"{apart.value:+.4f} ({apart.low:+.4f}, {apart.high:+.4f})"
        spread = "" if one.spread is None else f"± {one.spread:.4f}"
        rows.append([one.name, f"{one.mean:.4f}", spread, more])
    return rows
