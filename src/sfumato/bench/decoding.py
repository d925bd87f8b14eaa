"""How fast images are decoded against Pillow alone, and gathered from prepared data."""

import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from sfumato.base.environment import processors
from sfumato.base.errors import InputError
from sfumato.bench.loaders import decode_part, decode_whole, decoding_pool
from sfumato.config.sections import DataConfig
from sfumato.data.decode import Target, decode, decode_chunks
from sfumato.data.loading import SampleOrder
from sfumato.data.opening import open_images
from sfumato.data.prepared import MappedImages
from sfumato.data.records import load_records, target_of

_ROUNDS = 5
_COMPARED = 100
_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class DecodingSpeed:
    """Medians over rounds taken in turn, in images a second.

    `ours`: reading and decoding on `cores` threads, as `prepare` does; `bare`: Pillow alone on as
    many processes, the encoded images in memory; `full`: the same without reduced scales. The rest
    is what reduced scales change against full decoding, in grey levels, and the PSNR in dB.
    """

    images: int
    cores: int
    ours: float
    bare: float
    full: float
    mean_difference: float
    max_difference: int
    psnr_db: float


def decoding_speed(config: DataConfig, *, most: int) -> DecodingSpeed:
    """Measure on the first `most` rows of a resolved `config`, which are encoded images."""
    raw, target = open_images(config), target_of(config)
    part = next(iter(raw.parts.values()))
    keep = np.arange(part.count) < most
    rows = [row.image for row in part.read(keep)]
    encoded = [row.read_bytes() if isinstance(row, Path) else row for row in rows]
    images = [image for image in encoded if isinstance(image, bytes)]
    if not images:
        raise InputError(f"{config.source} holds pixels: there is nothing to decode.")

    def ours() -> None:
        for _ in decode_chunks(part.read(keep), target=target, classes=0, needs_caption=False):
            pass

    cores = processors()
    with decoding_pool(images, cores) as pool:
        bare = partial(decode_part, target=target)
        stretches = [range(core, len(images), cores) for core in range(cores)]
        runs: dict[str, Callable[[], object]] = {
            "ours": ours,
            "bare": lambda: pool.map(partial(bare, decoder=_reduced), stretches),
            "full": lambda: pool.map(partial(bare, decoder=decode_whole), stretches),
        }
        seconds = _in_turn(runs)
    differences = [_difference(image, target) for image in images[:_COMPARED]]
    squares = float(np.mean([np.mean(np.square(each)) for each in differences]))
    return DecodingSpeed(
        images=len(images),
        cores=cores,
        ours=len(images) / seconds["ours"],
        bare=len(images) / seconds["bare"],
        full=len(images) / seconds["full"],
        mean_difference=float(np.mean([np.abs(each).mean() for each in differences])),
        max_difference=int(max(np.abs(each).max() for each in differences)),
        psnr_db=float(10 * np.log10(255**2 / squares)) if squares else float("inf"),
    )


def _reduced(image: bytes, target: Target) -> np.ndarray:
    """Decoded by Pillow alone, at reduced scale where it can."""
    opened = Image.open(io.BytesIO(image))
    opened.draft(None, (2 * target.resolution, 2 * target.resolution))
    size = (target.resolution, target.resolution)
    return np.asarray(opened.convert("RGB").resize(size, Image.Resampling.BILINEAR))


def _in_turn(runs: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of each, after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in range(_ROUNDS + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if round_number:
                seconds[name].append(time.perf_counter() - started)
    return {name: median(each) for name, each in seconds.items()}


def _difference(image: bytes, target: Target) -> np.ndarray:
    """Of `decode` from decoding every pixel first, (C, R, R)."""
    every = np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))
    return decode(image, target)[0].astype(np.int64) - decode(every, target)[0]


def gathering_speed(config: DataConfig) -> float:
    """Images a second that random batches of prepared data are gathered at, once all of it was
    read: the median over epochs."""
    images = load_records(config, "train").images
    if not isinstance(images, MappedImages):
        raise InputError(f"{config.source} is not prepared.", hint="See `sfumato prepare --help`.")
    order = SampleOrder(len(images), seed=0)
    batches = [order.indices(start, _BATCH) for start in range(0, max(len(images), 4096), _BATCH)]

    def gather() -> None:
        for batch in batches:
            images[batch]

    return _BATCH * len(batches) / _in_turn({"gather": gather})["gather"]
