"""How training gets its images: from memory, or streamed from their files."""

from collections.abc import Callable

import torch

from sfumato.config.sections import DataConfig
from sfumato.data.loading import DeviceBatches
from sfumato.data.opening import open_images
from sfumato.data.records import Annotations, Records, load_records, target_of, training_part
from sfumato.data.streaming.decoder import StreamedRecords
from sfumato.data.streaming.stream import StreamBatches, open_stream, worker_count
from sfumato.data.survey import resolve
from sfumato.data.table import GroupedPart

MOST_IN_MEMORY_BYTES = 2 * 2**30
"""Decoded images above which `data.loading=auto` streams."""


def resolve_loading(config: DataConfig) -> DataConfig:
    """A resolved `config` whose `loading` is concrete, by the size of the decoded images."""
    if config.loading != "auto":
        return config
    part = training_part(open_images(config))
    target = target_of(config)
    size = part.count * target.channels * target.resolution**2
    streams = size > MOST_IN_MEMORY_BYTES and isinstance(part, GroupedPart)
    return config.model_copy(update={"loading": "stream" if streams else "memory"})


def open_training(
    config: DataConfig, *, on_rows: Callable[[int, int], None] | None = None
) -> Records | StreamedRecords:
    """The training split as `config` has it loaded; raises as `load_records` and `open_stream`."""
    config = resolve_loading(resolve(config))
    if config.loading == "stream":
        return open_stream(config, "train")
    return load_records(config, "train", on_rows=on_rows)


def training_batches(
    records: Annotations,
    config: DataConfig,
    *,
    seed: int,
    batch_size: int,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
) -> DeviceBatches | StreamBatches:
    """Batches of what `open_training` returned for `config`: those of one rank."""
    common = {
        "seed": seed,
        "batch_size": batch_size,
        "device": device,
        "rank": rank,
        "world_size": world_size,
    }
    if isinstance(records, StreamedRecords):
        return StreamBatches(records, **common, workers=worker_count(config))
    assert isinstance(records, Records)
    return DeviceBatches(records, **common)
