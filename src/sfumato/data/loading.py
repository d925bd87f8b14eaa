"""Batches for the training loop. The order is a function of (seed, epoch) alone."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from sfumato.base.device import to_device
from sfumato.base.errors import ConfigError
from sfumato.base.randomness import generator_for
from sfumato.config.sections import DataConfig
from sfumato.data.prepared import MappedImages
from sfumato.data.records import Records
from sfumato.data.shares import check_shares


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One rank's part of a global batch: `images` (B, C, H, W) uint8, or prepared latents
    (`data/latents.py`); `labels` and `prompts` (B,).

    All lie on the training device.
    """

    images: Tensor
    labels: Tensor
    prompts: Tensor


@dataclass(frozen=True, kw_only=True)
class Position:
    """A place in the order of the data: `samples` into epoch number `epoch` of `seed`'s order."""

    epoch: int
    seed: int
    samples: int


class Order(Protocol):
    """An endless order of samples, epoch after epoch."""

    def position(self, images_seen: int) -> Position:
        """Where the next sample comes from."""
        ...


class IndexedOrder(Order, Protocol):
    """An order of which any stretch can be asked for."""

    def indices(self, start: int, length: int) -> Tensor:
        """Sample indices (length,) at positions start, start + 1, ..."""
        ...


class SampleOrder:
    """The endless order of samples: epoch after epoch, each a permutation keyed by its number.

    Position k (counted in samples since the start) is sample k mod N of epoch k div N, so batches
    may straddle epochs and every sample of an epoch is used.
    """

    def __init__(self, count: int, *, seed: int) -> None:
        self.count = count
        self.seed = seed
        self._epoch = lru_cache(maxsize=2)(self._permutation)

    def _permutation(self, epoch: int) -> Tensor:
        return torch.randperm(self.count, generator=generator_for(self.seed, "order", epoch))

    def position(self, images_seen: int) -> Position:
        """Where the next sample comes from."""
        epoch, samples = divmod(images_seen, self.count)
        return Position(epoch=epoch, seed=self.seed, samples=samples)

    def indices(self, start: int, length: int) -> Tensor:
        """Sample indices (length,) at positions start, start + 1, ..."""
        parts = []
        while length > 0:
            place = self.position(start)
            part = self._epoch(place.epoch)[place.samples : place.samples + length]
            parts.append(part)
            start += len(part)
            length -= len(part)
        return torch.cat(parts)


class DeviceBatches:
    """Batches from a data set held whole on the training device as uint8: no loader process.

    Prepared images stay in their file on a CPU, and where an accelerator has not twice the room
    for them: a batch is gathered when it is asked for, which costs a fraction of a step.
    """

    def __init__(
        self,
        records: Records,
        *,
        seed: int,
        batch_size: int,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        check_shares(batch_size, world_size)
        self.seed = seed
        self.order: IndexedOrder = SampleOrder(len(records), seed=seed)
        self.batch_size = batch_size
        self._mine = slice(rank, None, world_size)
        self._device = device
        self._images = _placed(records.images, device)
        self._labels = records.labels.to(device)
        self._prompts = records.prompts.to(device)
        self._caption_counts = records.caption_counts

    def at(self, images_seen: int) -> Batch:
        """This rank's part of the global batch that starts at sample `images_seen`."""
        rows = self.order.indices(images_seen, self.batch_size)[self._mine]
        indices = to_device(rows, self._device)
        mapped = isinstance(self._images, MappedImages)
        chosen = chosen_captions(
            self._prompts.shape[1],
            None if self._caption_counts is None else self._caption_counts[rows],
            seed=self.seed,
            images_seen=images_seen,
            batch_size=self.batch_size,
            share=self._mine,
        )
        return Batch(
            images=to_device(self._images[rows], self._device) if mapped else self._images[indices],
            labels=self._labels[indices],
            prompts=self._prompts[indices, to_device(chosen, indices.device)],
        )


def chosen_captions(
    most: int,
    counts: Tensor | None,
    *,
    seed: int,
    images_seen: int,
    batch_size: int,
    share: slice,
) -> Tensor:
    """Which of its captions each image of a rank's `share` of a global batch is shown with (b,):
    one of `most`, or of `counts` (b,) where these differ."""
    if most == 1:
        return torch.zeros(batch_size, dtype=torch.int64)[share]
    generator = generator_for(seed, images_seen, "captions")
    if counts is None:
        return torch.randint(most, (batch_size,), generator=generator)[share]
    chance = torch.rand(batch_size, generator=generator, dtype=torch.float64)[share]
    return (chance * counts).long()


def _placed(images: Tensor | MappedImages, device: torch.device) -> Tensor | MappedImages:
    """On the device, or in their file where that is better or must be."""
    if isinstance(images, MappedImages):
        if device.type == "cpu":
            return images
        free_bytes = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
        if 2 * images.nbytes > free_bytes:
            return images
    return images.to(device)


def refuse_stream(config: DataConfig, name: str) -> None:
    """`ConfigError` for a stream where the experiment `name` holds its images in memory."""
    if config.loading == "stream":
        raise ConfigError(
            f"data.loading=stream is not possible with {name}.",
            hint="Leave it out; `sfumato prepare` writes large sets so that they stay in their "
            "file.",
        )
