"""How training gets its images: a registry of ways to hold or read them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from sfumato.config.sections import DataConfig
from sfumato.data.loading import DeviceBatches
from sfumato.data.records import Annotations, load_records, open_images, rows_of, target_of
from sfumato.data.streaming.stream import StreamBatches, open_stream, worker_count
from sfumato.data.survey import resolve
from sfumato.data.table import GroupedPart

MOST_IN_MEMORY_BYTES = 2 * 2**30
"""Decoded images above which `data.loading=auto` streams."""

OnRows = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Loader:
    """`open(config, on_rows)` gives the training split; `batches` draws from what it gave."""

    open: Callable[[DataConfig, OnRows | None], Any]
    batches: Callable[..., DeviceBatches | StreamBatches]


def _from_memory(records: Any, config: DataConfig, **settings: Any) -> DeviceBatches:
    return DeviceBatches(records, **settings)


def _from_stream(records: Any, config: DataConfig, **settings: Any) -> StreamBatches:
    return StreamBatches(records, workers=worker_count(config), **settings)


LOADERS = {
    "memory": Loader(
        open=lambda config, on_rows: load_records(config, "train", on_rows=on_rows),
        batches=_from_memory,
    ),
    "stream": Loader(
        open=lambda config, on_rows: open_stream(config, "train"),
        batches=_from_stream,
    ),
}
"""By the names of `data.loading`."""


def resolve_loading(config: DataConfig) -> DataConfig:
    """A resolved `config` whose `loading` is concrete, by the size of the decoded images."""
    if config.loading != "auto":
        return config
    part, _, _ = rows_of(open_images(config), config, "train")
    target = target_of(config)
    size = part.count * target.channels * target.resolution**2
    streams = size > MOST_IN_MEMORY_BYTES and isinstance(part, GroupedPart)
    return config.model_copy(update={"loading": "stream" if streams else "memory"})


def open_training(config: DataConfig, *, on_rows: OnRows | None = None) -> Annotations:
    """The training split as `config` has it loaded; raises as `load_records` and `open_stream`."""
    config = resolve_loading(resolve(config))
    return LOADERS[config.loading].open(config, on_rows)


def training_batches(
    records: Annotations, config: DataConfig, *, seed: int, batch_size: int, device: torch.device
) -> DeviceBatches | StreamBatches:
    """Batches of what `open_training` gave for a resolved `config`."""
    return LOADERS[config.loading].batches(
        records, config, seed=seed, batch_size=batch_size, device=device
    )
