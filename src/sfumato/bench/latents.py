"""What latents save: seconds of training and of sampling an image, by the side of the images."""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from sfumato import __version__
from sfumato.base.environment import command, environment, now
from sfumato.base.errors import InputError
from sfumato.base.files import write_bytes, write_json
from sfumato.bench.stand_in import on_stand_in
from sfumato.bench.steps import Clock, prepared_training, timed, untrained_model
from sfumato.config.schema import DiffusionExperiment, VaeExperiment, load_experiment
from sfumato.config.sections import CodecConfig
from sfumato.generation.loading import resolve_device
from sfumato.generation.model import Model
from sfumato.models.autoencoder import build_vae
from sfumato.models.codec import VaeCodec
from sfumato.report.page import png_of

KINDS = ("pixels", "PCA", "VAE")
_CHANNELS = (24, 48, 96, 96)
"""Of the levels of the VAE, as in the preset `vae`, each half the side of the one before."""
_IMAGES = 64
_COLOURS = {"pixels": "#7a4b2a", "PCA": "#1f618d", "VAE": "#196f3d"}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one kind of latents at one side of the images, in px: seconds an image, by round.

    `training`: of steps that encode their images by `PCA`, also of `VAE`, which would train on
    prepared latents; `decoding` is a part of `sampling`."""

    kind: str
    resolution: int
    training: tuple[float, ...]
    sampling: tuple[float, ...]
    decoding: tuple[float, ...]


def measure_latents(
    experiment: DiffusionExperiment,
    *,
    resolutions: Sequence[int],
    factor: int = 4,
    channels: int = 4,
    batch: int = 8,
    rounds: int = 7,
    device: str = "auto",
    clock: Clock = time.perf_counter,
    log: Callable[[str], None] = lambda text: None,
) -> list[Cost]:
    """The network of `experiment` on noise, in pixels and in latents of `channels` numbers for
    `factor` x `factor` pixels: in turn within each round, after one round to warm up.

    `InputError` for a factor that no VAE has here, `ConfigError` for a side that it does not
    divide.
    """
    if factor not in (2, 4, 8):
        raise InputError(f"A factor of {factor} is out of range.", hint="Give 2, 4 or 8.")
    codec = CodecConfig(kind="linear", factor=factor, channels=channels)
    experiments = {}
    for resolution in resolutions:
        data = experiment.data.model_copy(update={"resolution": resolution, "channels": 3})
        pixels = experiment.model_copy(update={"data": data, "codec": CodecConfig()})
        latents = pixels.model_copy(update={"codec": codec})
        latents.network_shape  # noqa: B018, it is checked
        experiments[resolution] = (pixels, latents)
    found = []
    for resolution, (pixels, latents) in experiments.items():
        log(f"Images of {resolution} x {resolution} px ...")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the captions that stand in
            with _works(pixels, latents, batch, device) as works:
                seconds = _in_turn(works, rounds, resolve_device(device), clock)
        found += [_cost(kind, resolution, seconds, batch) for kind in KINDS]
    return found


def _cost(
    kind: str, resolution: int, seconds: Mapping[tuple[str, str], Sequence[float]], batch: int
) -> Cost:
    def each(what: str, of: str) -> tuple[float, ...]:
        return tuple(one / batch for one in seconds[what, of])

    return Cost(
        kind=kind,
        resolution=resolution,
        training=each("train", "pixels" if kind == "pixels" else "latents"),
        sampling=each("sample", kind),
        decoding=each("decode", kind),
    )


Works = Mapping[tuple[str, str], Callable[[], object]]


@contextmanager
def _works(
    pixels: DiffusionExperiment, latents: DiffusionExperiment, batch: int, device: str
) -> Iterator[Works]:
    """What is timed, by what it is and of which kind: each call is for `batch` images."""
    works: dict[tuple[str, str], Callable[[], object]] = {}
    with ExitStack() as stack:
        for name, one in (("pixels", pixels), ("latents", latents)):
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="sfumato-bench-")))
            own = one.training.model_copy(update={"batch_size": batch, "micro_batches": 1})
            ready = on_stand_in(one.model_copy(update={"training": own}), folder, images=_IMAGES)
            run: Any = stack.enter_context(prepared_training(ready, device))
            works["train", name] = run.take_step
            for kind, codec in _codecs(ready, run.objective.codec, run.device).items():
                model = untrained_model(ready, device=device, codec=codec)
                works["sample", kind] = _sampling(model, batch)
                works["decode", kind] = _decoding(model, batch)
        yield works


def _codecs(experiment: DiffusionExperiment, known: Any, device: torch.device) -> dict[str, Any]:
    """Those of the network's shape; the VAE is untrained and as fast as a trained one."""
    if experiment.codec.kind == "pixel":
        return {"pixels": known}
    codec = experiment.codec
    levels = list(_CHANNELS[: codec.factor.bit_length()])
    overrides = [
        f"network.block_out_channels={levels}",
        f"network.latent_channels={codec.channels}",
    ]
    network = load_experiment("vae", overrides, schema=VaeExperiment).network
    side = experiment.data.resolution
    assert side != "auto"
    vae = build_vae(network, channels=3, resolution=side, seed=0).eval().requires_grad_(False)
    return {"PCA": known, "VAE": VaeCodec(vae.to(device))}


def _sampling(model: Model, batch: int) -> Callable[[], object]:
    prompts = [model.examples()[0][0]] * batch
    return lambda: model.sample(prompts, range(batch))


def _decoding(model: Model, batch: int) -> Callable[[], object]:
    x0 = torch.randn(batch, *model.shape, generator=torch.Generator().manual_seed(0))
    return lambda: model.codec.decode(x0)


def _in_turn(
    works: Works, rounds: int, device: torch.device, clock: Clock
) -> dict[tuple[str, str], list[float]]:
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in works}
    for number in range(-1, rounds):
        for key in sorted(works, reverse=number % 2 == 1):
            taken = timed(works[key], device, clock)
            if number >= 0:
                seconds[key].append(taken)
    return seconds


def save_latents(costs: Sequence[Cost], path: Path, **conditions: object) -> None:
    """Every timing as JSON, and the chart beside it as PNG."""
    record = {
        "date": now(),
        "sfumato": __version__,
        "command": command(),
        "environment": environment(),
        **conditions,
        "costs": [asdict(one) for one in costs],
    }
    write_json(path, record)
    write_bytes(path.with_suffix(".png"), chart(costs))


def chart(costs: Sequence[Cost]) -> bytes:
    """PNG: seconds an image of training and of sampling over the side of the images."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    canvas = Figure(figsize=(8, 3.4), dpi=130, layout="constrained")
    panels = canvas.subplots(1, 2)
    sides = sorted({one.resolution for one in costs})
    for axes, name in zip(panels, ("training", "sampling"), strict=True):
        for kind in KINDS if name == "sampling" else KINDS[:2]:
            own = [one for one in costs if one.kind == kind]
            label = kind if name == "sampling" or kind == "pixels" else "latents"
            axes.plot(
                [one.resolution for one in own],
                [1000 * median(getattr(one, name)) for one in own],
                color=_COLOURS[kind],
                marker="o",
                ms=4,
                lw=1.3,
                label=label,
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(sides, [str(side) for side in sides])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("side of the images in pixels")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    panels[0].set_ylabel("milliseconds an image")
    return png_of(canvas)
