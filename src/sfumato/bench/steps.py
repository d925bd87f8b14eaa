"""Speed: our training step and our sampling beside the same written plainly over diffusers."""

import copy
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
from torch.nn import functional as F

from sfumato import __version__
from sfumato.base.environment import environment
from sfumato.base.errors import InputError
from sfumato.base.files import write_json
from sfumato.config.schema import DiffusionExperiment
from sfumato.data.records import load_records
from sfumato.data.survey import settle
from sfumato.diffusion.solvers.registry import sampler_of
from sfumato.diffusion.solvers.schedulers import build_scheduler
from sfumato.evaluation.metrics.intervals import Estimate, bootstrap_median
from sfumato.generation.loading import resolve_device
from sfumato.generation.model import Model, generators_from_seeds
from sfumato.generation.runs import model_of
from sfumato.methods.diffusion import with_bank_rows
from sfumato.methods.registry import prepare_run
from sfumato.models.codec import Codec, PixelCodec
from sfumato.models.unet import build_unet
from sfumato.text.encoder import NULL
from sfumato.text.opening import load_text_encoder
from sfumato.training.hooks import LogHook
from sfumato.training.loop import Run, train
from sfumato.training.objectives.diffusion import DiffusionObjective

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


def plain_training(experiment: DiffusionExperiment, run: Run) -> Callable[[], Tensor]:
    """A training step written plainly over diffusers, on a copy of the run's network.

    The same data, batch, network, arithmetic, optimizer, clipping and averaging; no log, no check
    that the loss is finite, no order of samples, no micro-batches. Returns the step, which
    returns its loss.
    """
    from diffusers.models.attention_processor import AttnProcessor2_0

    assert isinstance(run.objective, DiffusionObjective)
    training, optimizing = experiment.training, experiment.training.optimizer
    batch, device = training.batch_size, run.device
    bank = run.objective.bank
    records = with_bank_rows(load_records(experiment.data, "train"), bank)
    images = run.objective.codec.encode(records.images[:]).to(device)
    prompts = records.prompts[:, 0].to(device)
    tokens = bank.tokens(torch.arange(len(bank), device=device))
    unet = copy.deepcopy(run.objective.network)
    unet.set_attn_processor(AttnProcessor2_0())  # diffusers' own, not ours of training
    average = copy.deepcopy(unet).eval().requires_grad_(False)
    scheduler = build_scheduler("DDPM", experiment.diffusion)
    optimizer = torch.optim.AdamW(
        unet.parameters(),
        lr=optimizing.lr,
        betas=optimizing.betas,
        weight_decay=optimizing.weight_decay,
        fused=True,
    )
    generator = torch.Generator(device).manual_seed(0)

    def step() -> Tensor:
        chosen = torch.randint(len(images), (batch,), generator=generator, device=device)
        dropped = torch.rand(batch, generator=generator, device=device) < training.caption_dropout
        x0 = images[chosen]
        text = tokens[prompts[chosen].masked_fill(dropped, bank.NULL_INDEX)]
        noise = torch.randn(x0.shape, generator=generator, device=device)
        t = torch.randint(
            scheduler.config.num_train_timesteps, (batch,), generator=generator, device=device
        )
        noisy = scheduler.add_noise(x0, noise, t)
        targets = {"epsilon": noise, "sample": x0}
        target = targets.get(experiment.diffusion.prediction_type)
        if target is None:
            target = scheduler.get_velocity(x0, noise, t)
        with torch.autocast(device.type, torch.bfloat16, enabled=training.precision == "bfloat16"):
            output = unet(noisy, t, text).sample
        loss = F.mse_loss(output.float(), target)
        loss.backward()
        if optimizing.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(unet.parameters(), optimizing.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(unet.parameters()), 0.001)
        return loss

    return step


def example_training(experiment: DiffusionExperiment, run: Run) -> Callable[[], Tensor]:
    """The inner loop of diffusers' text-to-image example, by our reading, without its latents.

    Unlike `plain_training`: the captions are encoded in every step, the loss is read in every step,
    and the optimizer and the average are diffusers' and torch's defaults.
    """
    from diffusers.training_utils import EMAModel

    training, optimizing = experiment.training, experiment.training.optimizer
    device = run.device
    images, ids, text_model = _example_data(experiment, device)
    unet = build_unet(
        experiment.model,
        resolution=images.shape[-1],
        channels=images.shape[1],
        seed=experiment.seed,
    ).to(device)
    average = EMAModel(unet.parameters(), model_cls=type(unet), model_config=unet.config)
    average.to(device)
    scheduler = build_scheduler("DDPM", experiment.diffusion)
    optimizer = torch.optim.AdamW(
        unet.parameters(),
        lr=optimizing.lr,
        betas=optimizing.betas,
        weight_decay=optimizing.weight_decay,
    )

    def step() -> Tensor:
        chosen = torch.randint(len(images), (training.batch_size,), device=device)
        x0, tokens = images[chosen], text_model(ids[chosen], return_dict=False)[0]
        noise = torch.randn_like(x0)
        t = torch.randint(scheduler.config.num_train_timesteps, (len(x0),), device=device).long()
        noisy = scheduler.add_noise(x0, noise, t)
        target = noise
        if experiment.diffusion.prediction_type == "v_prediction":
            target = scheduler.get_velocity(x0, noise, t)
        with torch.autocast(device.type, torch.bfloat16, enabled=training.precision == "bfloat16"):
            output = unet(noisy, t, tokens, return_dict=False)[0]
        loss = F.mse_loss(output.float(), target.float(), reduction="mean")
        loss.item()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(unet.parameters())
        return loss

    return step


def _example_data(
    experiment: DiffusionExperiment, device: torch.device
) -> tuple[Tensor, Tensor, torch.nn.Module]:
    """All images as floats (N, C, H, W), the token ids of their captions (N, L), and the frozen
    text encoder, on `device`."""
    records = load_records(experiment.data, "train")
    encoder = load_text_encoder(experiment.text)
    ids = encoder.tokenizer(
        [records.captions[int(row)] for row in records.prompts[:, 0]],
        padding="max_length",
        truncation=True,
        max_length=encoder.max_tokens,
        return_tensors="pt",
    ).input_ids
    images = pixel_codec(experiment).encode(records.images[:])
    return images.to(device), ids.to(device), encoder.model.to(device).requires_grad_(False)


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


def pixel_codec(experiment: DiffusionExperiment) -> PixelCodec:
    """`InputError` for an experiment in latents, whose codec would first be fitted."""
    if experiment.codec.kind != "pixel":
        raise InputError(
            f"This measures models of pixels; codec.kind is {experiment.codec.kind}.",
            hint="Leave codec.kind out.",
        )
    return PixelCodec(experiment.data.value_range)


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


def plain_sampling(model: Model, prompts: Sequence[str], *, scale: float) -> Callable[[], Tensor]:
    """The paper's sampling loop over the model's network, scheduler and steps.

    The batch is doubled at every guidance scale, and guidance acts on the network's output. The
    prompts are encoded beforehand. Returns the loop, which returns its images (B, C, H, W).
    """
    unet, device, sampling = model.network.eval(), model.device, model.sampling
    scheduler = build_scheduler(
        sampling.sampler, model.process, timestep_spacing=sampling.timestep_spacing
    )
    sampler = sampler_of(sampling.sampler, model.process)
    text = model.text_encoder
    shape = (len(prompts), unet.config["in_channels"], *[unet.config["sample_size"]] * 2)
    ids = text.tokenizer(
        [NULL] * len(prompts) + list(prompts),
        padding="max_length",
        truncation=True,
        max_length=text.max_tokens,
        return_tensors="pt",
    ).input_ids
    with torch.no_grad():
        tokens = text.model(ids.to(device)).last_hidden_state

    @torch.no_grad()
    def draw() -> Tensor:
        generator = torch.Generator("cpu").manual_seed(0)
        noise = {"generator": generator} if sampler.draws_noise else {}
        scheduler.set_timesteps(sampling.steps)
        x_t = torch.randn(shape, generator=generator).to(device) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            doubled = scheduler.scale_model_input(torch.cat([x_t, x_t]), t)
            uncond, cond = unet(doubled, t, tokens).sample.chunk(2)
            output = uncond + scale * (cond - uncond)
            x_t = scheduler.step(output, t, x_t, **noise).prev_sample
        return x_t

    return draw
