"""What every extractor of features is: a named function of uint8 images, batched and checked."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from sfumato.base.errors import DamagedDataError, InputError
from sfumato.base.weights import weights_digest

Device = str | torch.device


class FeatureExtractor(Protocol):
    """uint8 (B, C, H, W), C = 1 or 3, any H and W -> (B, dim) float32 on the CPU.

    `name` says which weights (by hash), which layer and how images are resized: features under
    different names must never be compared, so it is part of a metric's name. An image's features
    do not depend on the others in the call.
    """

    @property
    def name(self) -> str: ...
    @property
    def dim(self) -> int: ...
    @property
    def rows(self) -> int: ...
    def __call__(self, images: Tensor) -> Tensor: ...


@runtime_checkable
class GivesLogits(Protocol):
    """An extractor whose network goes on to classes: the inception score is taken from them."""

    def logits(self, features: Tensor) -> Tensor:
        """This extractor's features (N, dim) -> logits (N, classes), float32 on the CPU."""
        ...


@runtime_checkable
class ReadsCaptions(Protocol):
    """An extractor that puts captions into the space of its images: the CLIP score compares."""

    def texts(self, captions: Sequence[str]) -> Tensor:
        """Captions -> (N, dim) float32 on the CPU."""
        ...


class WeightsNotAtHandError(InputError):
    """An extractor's weights are not on this machine; metrics of other extractors stand."""


@dataclass(frozen=True, kw_only=True)
class BatchedExtractor:
    """A `FeatureExtractor` over `of_batch`, which gets at most `rows` images in one call.

    `of_batch`: uint8 (b, channels, H, W) on `device`, 1 <= b <= rows -> (b, dim).
    """

    name: str
    dim: int
    of_batch: Callable[[Tensor], Tensor]
    rows: int
    """Images of one call of the network: all that ever lies in memory as floats."""
    channels: int = 3
    """What the network takes. Grey images are repeated for 3; colour is an error for 1."""
    image_px: int | None = None
    """The only height and width taken, for a network without a resize rule."""
    device: Device = "cpu"
    """Where the network is; `of_batch` gets the images there."""
    stages: Callable[[Tensor], Sequence[Tensor]] | None = None
    """Images (B, channels, H, W), float in [-1, 1], to features (B, D, ...) of several layers,
    through which gradients pass: for a perceptual loss."""

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (B, 1 or 3, H, W) -> (B, dim) float32 on the CPU; `InputError` for others,
        `DamagedDataError` where features are not finite."""
        self._check(images)
        features = torch.empty(len(images), self.dim)
        with _full_float32(self.device):
            for start in range(0, len(images), self.rows):
                part = images[start : start + self.rows].to(self.device)
                part = part.expand(-1, self.channels, -1, -1)  # grey: the same value three times
                features[start : start + self.rows] = self.of_batch(part).float().cpu()
        unusable = len(features) - int(features.isfinite().all(dim=1).sum())
        if unusable:
            raise DamagedDataError(
                f"{self.name}: features hold NaN or infinity in {unusable} of {len(features)} "
                "images.",
                hint="Its weights may be damaged: fetch them again, or leave this extractor out.",
            )
        return features

    def _check(self, images: Tensor) -> None:
        shape = tuple(images.shape)
        if images.dtype != torch.uint8:
            raise InputError(
                f"The extractor '{self.name}' takes uint8 images in [0, 255], not {images.dtype}.",
                hint="sfumato.base.images.to_uint8 converts floats of a known range.",
            )
        if images.ndim != 4 or shape[1] not in (1, 3) or 0 in shape[2:]:
            raise InputError(
                f"The extractor '{self.name}' takes images of the shape (B, 1 or 3, H, W), "
                f"not {shape}.",
                hint="One image is images[None]; channels come before height and width.",
            )
        if shape[1] > self.channels:
            raise InputError(
                f"The extractor '{self.name}' was made for greyscale, but the images have "
                f"{shape[1]} channels.",
                hint="Measure with an extractor for colour, or give greyscale images.",
            )
        if self.image_px is not None and shape[2:] != (self.image_px, self.image_px):
            raise InputError(
                f"The extractor '{self.name}' takes {self.image_px} x {self.image_px} pixels, "
                f"not {shape[2]} x {shape[3]}.",
                hint="It does not resize; bring the images to its size first.",
            )


def features_of(extractor: FeatureExtractor, images: Iterable[Tensor]) -> Tensor:
    """(N, dim) float32 of `images` in their order: uint8 (C, H, W) each, or batches (B, C, H, W).

    They are drawn from the iterable as they are needed and at most `extractor.rows` and one batch
    are held. `InputError` without any image, or where shapes differ: their resizing would differ
    too, and with it what is measured.
    """
    if isinstance(images, Tensor):
        images = [images]
    parts, waiting, held = [], [], 0
    first: tuple[int, ...] | None = None
    for seen, given in enumerate(images):
        batch = given[None] if given.ndim == 3 else given
        shape = tuple(batch.shape[1:])
        first = shape if first is None else first
        if shape != first:
            raise InputError(
                f"Images of different shapes: the first is {_by(first)}, number {seen} is "
                f"{_by(shape)}.",
                hint="Bring all to one size and number of channels before they are measured.",
            )
        waiting.append(batch)
        held += len(batch)
        if held >= extractor.rows:
            parts.append(extractor(_joined(waiting)))
            waiting, held = [], 0
    if held:
        parts.append(extractor(_joined(waiting)))
    if not parts:
        raise InputError("There are no images to measure.", hint="Give at least one.")
    return torch.cat(parts)


def _joined(batches: list[Tensor]) -> Tensor:
    """One batch as it is: it may be a whole memory-mapped data set, which a copy would load."""
    return batches[0] if len(batches) == 1 else torch.cat(batches)


def texts_in_batches(
    captions: Sequence[str], embed: Callable[[list[str]], Tensor], *, rows: int
) -> Tensor:
    """(N, D) float32 on the CPU of N captions, each distinct one read once, `rows` at a time."""
    distinct = list(dict.fromkeys(captions))
    places = {caption: place for place, caption in enumerate(distinct)}
    parts = [
        embed(distinct[start : start + rows]).float().cpu()
        for start in range(0, len(distinct), rows)
    ]
    return torch.cat(parts)[[places[caption] for caption in captions]]


def weights_sha256(module: nn.Module) -> str:
    """sha256 over the names and values of a module's state, whatever file it came from."""
    return weights_digest(module).hexdigest()


def frozen(module: nn.Module, device: Device) -> nn.Module:
    """`module` in evaluation mode (batch norm by its stored statistics), without gradients."""
    return module.eval().requires_grad_(False).to(device)


@contextmanager
def _full_float32(device: Device) -> Iterator[None]:
    """Neither autocast nor TF32, cuDNN's default, which rounds to 10 bits of mantissa: the figures
    of one model must not depend on the settings of the run around."""
    cudnn, before = torch.backends.cudnn, torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.autocast(torch.device(device).type, enabled=False),
            cudnn.flags(
                enabled=True,
                benchmark=cudnn.benchmark,
                deterministic=cudnn.deterministic,
                allow_tf32=False,
            ),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
