"""Speed: our training step and our sampling beside the same written plainly over diffusers."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from sfumato import __version__
from sfumato.base.environment import environment
from sfumato.base.errors import InputError
from sfumato.base.files import write_json
from sfumato.bench.plain_loops import pixel_codec, plain_sampling
from sfumato.config.schema import DiffusionExperiment
from sfumato.data.survey import settle
from sfumato.evaluation.metrics.intervals import Estimate, bootstrap_median
from sfumato.generation.loading import resolve_device
from sfumato.generation.model import Model, generators_from_seeds
from sfumato.generation.runs import model_of
from sfumato.methods.registry import prepare_run
from sfumato.models.codec import Codec
from sfumato.models.unet import build_unet
from sfumato.text.encoder import NULL
from sfumato.text.opening import load_text_encoder
from sfumato.training.hooks import LogHook
from sfumato.training.loop import Run, train

Clock = Callable[[], float]
"""Seconds since some moment; `time.process_time` leaves out what else a busy CPU does."""

LEAST_PAIRS = 7
"""Pairs of timings below which the median has no interval worth its name."""
TRAINING_BAR = 0.95
GUIDED_BAR = 0.97
ONE_CALL_BAR = 1.8
"""At w = 0 and w = 1 we make one network call a step; the plain loop always makes two."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Pairs of timings, taken in turn; `ratio` is plain over ours: 2 means twice as fast."""

    name: str
    ours_seconds: list[float]
    plain_seconds: list[float]
    ratio: Estimate
    bar: float
    images: int
    """Images that each timing trained on, or drew."""

    @property
    def reached(self) -> bool:
        return self.ratio.value >= self.bar


def compare(
    name: str,
    ours: Callable[[], object],
    plain: Callable[[], object],
    *,
    pairs: int,
    bar: float,
    images: int,
    device: torch.device,
    clock: Clock,
) -> Comparison:
    """Time both in turn, `pairs` times, after one call of each to warm up.

    The order changes from pair to pair, so that what drifts on the machine falls on both.
    `InputError` for fewer than 7 pairs.
    """
    if pairs < LEAST_PAIRS:
        raise InputError(
            f"{pairs} pairs of timings are too few.", hint=f"Give {LEAST_PAIRS} or more."
        )
    contenders = {"ours": ours, "plain": plain}
    seconds: dict[str, list[float]] = {key: [] for key in contenders}
    for pair in range(-1, pairs):
        for key in sorted(contenders, reverse=pair % 2 == 1):
            taken = timed(contenders[key], device, clock)
            if pair >= 0:
                seconds[key].append(taken)
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["plain"], strict=True)]
    return Comparison(
        name=name,
        ours_seconds=seconds["ours"],
        plain_seconds=seconds["plain"],
        ratio=bootstrap_median(ratios),
        bar=bar,
        images=images,
    )


def timed(work: Callable[[], object], device: torch.device, clock: Clock) -> float:
    """Seconds of one call, up to the end of what it gave the device to do."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    started = clock()
    work()
    wait()
    return clock() - started


def save_comparisons(comparisons: Sequence[Comparison], path: Path, **conditions: Any) -> None:
    """Every timing as JSON, with the machine and the `conditions` they were taken under."""
    record = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "sfumato": __version__,
        "environment": environment(),
        **conditions,
        "comparisons": [asdict(comparison) for comparison in comparisons],
    }
    write_json(path, record)


# Training -----------------------------------------------------------------------------------------


@contextmanager
def prepared_training(experiment: DiffusionExperiment, device: str) -> Iterator[Run]:
    """The run of an experiment in a folder that goes afterwards, with no hook but its log."""
    with TemporaryDirectory(prefix="sfumato-bench-") as folder:
        run = prepare_run(experiment, Path(folder) / "run", device=device)
        run.hooks = [hook for hook in run.hooks if isinstance(hook, LogHook)]
        yield run


def compare_training(
    run: Run,
    plain_step: Callable[[], object],
    *,
    pairs: int,
    steps: int,
    name: str = "training step",
    clock: Clock = time.perf_counter,
) -> Comparison:
    """`train()` of `run` with its log, `steps` steps at a time, against a step written plainly."""
    if steps < 1:
        raise InputError(f"{steps} steps are out of range.", hint="Give 1 or more.")
    images = steps * run.batches.batch_size

    def ours() -> None:
        run.total_images = run.images_seen + images
        train(run)

    def plain() -> None:
        for _ in range(steps):
            plain_step()

    return compare(
        name,
        ours,
        plain,
        pairs=pairs,
        bar=TRAINING_BAR,
        images=images,
        device=run.device,
        clock=clock,
    )


# Sampling -----------------------------------------------------------------------------------------


def untrained_model(
    experiment: DiffusionExperiment, *, device: str, codec: Codec | None = None
) -> Model:
    """A model whose network was never trained: as fast as a trained one. `codec`: that of an
    experiment in latents."""
    experiment = experiment.model_copy(update={"data": settle(experiment.data)})
    codec, where = codec or pixel_codec(experiment), resolve_device(device)
    channels, side = experiment.network_shape
    network = build_unet(experiment.model, resolution=side, channels=channels, seed=experiment.seed)
    encoder = load_text_encoder(experiment.text)
    encoder.model.to(where)
    return model_of(network.to(where), encoder, experiment, codec=codec)


def compare_sampling(
    model: Model,
    *,
    scales: Sequence[float],
    batch: int,
    pairs: int,
    clock: Clock = time.perf_counter,
) -> list[Comparison]:
    """`Model.denoise` in plain guidance against `plain_sampling`, one comparison a scale."""
    if batch < 1:
        raise InputError(f"A batch of {batch} is out of range.", hint="Give 1 or more.")
    known = [NULL] if model.data is None else model.examples()[0]
    prompts = [known[index % len(known)] for index in range(batch)]

    def comparison(scale: float) -> Comparison:
        def ours() -> Tensor:
            generators = generators_from_seeds(range(batch))
            chosen = model.with_(guidance=scale, form="cfg")
            return chosen.denoise(chosen.tokens(prompts), generators, alone=batch == 1).x0

        return compare(
            f"sampling, w = {scale:g}",
            ours,
            plain_sampling(model, prompts, scale=scale),
            pairs=pairs,
            bar=ONE_CALL_BAR if scale in (0, 1) else GUIDED_BAR,
            images=batch,
            device=model.device,
            clock=clock,
        )

    return [comparison(scale) for scale in scales]
