"""What the network sees of an image, and back: pixels are uint8 [0, 255] at every boundary."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from sfumato.base.errors import InputError
from sfumato.base.images import ValueRange, to_float, to_uint8
from sfumato.base.weights import device_of, weights_digest
from sfumato.base.words import counted

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, int, int]
"""(C, H, W)."""


class Codec(Protocol):
    """Images (B, C, H, W) to what the network is trained on, and back."""

    @property
    def factor(self) -> int:
        """Pixels of an image's side for each place that the network sees; 1: it sees pixels."""
        ...

    @property
    def x0_range(self) -> ValueRange | None:
        """The range that x0 is clamped to at every sampling step, about whose centre guidance
        acts; None for latents, which have none: nothing is clamped, and their centre is 0."""
        ...

    def image_shape(self, shape: Shape) -> Shape:
        """(C, H, W) of the images whose x0 has `shape`."""
        ...

    @property
    def samples(self) -> bool:
        """Whether training draws latents, with `noise`."""
        ...

    def encode(self, images: "Tensor", noise: "Tensor | None" = None) -> "Tensor":
        """uint8 [0, 255] to float32; `noise`: standard normal of the result's shape, for a codec
        that `samples`."""
        ...

    def unit(self, x0: "Tensor") -> "Tensor":
        """float to float32 images, 0 black and 1 white; not clamped."""
        ...

    def decode(self, x0: "Tensor") -> "Tensor":
        """float to uint8 [0, 255], rounded to nearest; values out of range are clamped."""
        ...

    def preview(self, x0: "Tensor") -> "Tensor":
        """As `decode`, of a batch, or nearly so and in less time: for what is looked at while it is
        sampled."""
        ...

    def to_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class PixelCodec:
    """Pixels as floats in `value_range`."""

    value_range: ValueRange = (-1.0, 1.0)

    factor: ClassVar[int] = 1
    samples: ClassVar[bool] = False

    @property
    def x0_range(self) -> ValueRange:
        return self.value_range

    def image_shape(self, shape: Shape) -> Shape:
        return shape

    def encode(self, images: "Tensor", noise: "Tensor | None" = None) -> "Tensor":
        return to_float(images, self.value_range)

    def unit(self, x0: "Tensor") -> "Tensor":
        low, high = self.value_range
        return (x0 - low) / (high - low)

    def decode(self, x0: "Tensor") -> "Tensor":
        return to_uint8(x0, self.value_range)

    def preview(self, x0: "Tensor") -> "Tensor":
        return self.decode(x0)

    def to_dict(self) -> dict[str, Any]:
        return {"codec": "pixels", **asdict(self)}


Numbers = tuple[float, ...]


@dataclass(frozen=True)
class LinearCodec:
    """Principal components of patches: `factor` x `factor` pixels become c numbers.

    With p a patch in [0, 1], flattened as (C, row, column), d = C factor^2 numbers, the latent k is
    basis_k . (p - mean) / deviation_k. `basis`: c orthonormal rows of d; `mean`: d; `deviation`: c.
    Over the images it was fitted to, a latent has mean 0 and deviation 1.

    Encoding and decoding are done in float64, so that a picture does not depend on its batch.
    """

    factor: int
    image_channels: int
    basis: tuple[Numbers, ...]
    mean: Numbers
    deviation: Numbers

    samples: ClassVar[bool] = False
    x0_range: ClassVar[None] = None

    def image_shape(self, shape: Shape) -> Shape:
        _, height, width = shape
        return self.image_channels, height * self.factor, width * self.factor

    def encode(self, images: "Tensor", noise: "Tensor | None" = None) -> "Tensor":
        """`InputError` for images whose sides `factor` does not divide."""
        basis, mean, deviation = self._tensors(images)
        patches = patches_of(images, self.factor).double() / 255
        return ((patches - mean) @ basis.T / deviation).permute(0, 3, 1, 2).float().contiguous()

    def unit(self, x0: "Tensor") -> "Tensor":
        basis, mean, deviation = self._tensors(x0)
        patches = (x0.double().permute(0, 2, 3, 1) * deviation) @ basis + mean
        batch, rows, columns, _ = patches.shape
        f, channels = self.factor, self.image_channels
        # (B, h, w, C, f, f) to (B, C, h, f, w, f)
        pixels = patches.view(batch, rows, columns, channels, f, f).permute(0, 3, 1, 4, 2, 5)
        return pixels.reshape(batch, channels, rows * f, columns * f).float()

    def decode(self, x0: "Tensor") -> "Tensor":
        alone = x0.ndim == 3
        pixels = to_uint8(self.unit(x0[None] if alone else x0), (0.0, 1.0))
        return pixels[0] if alone else pixels

    def preview(self, x0: "Tensor") -> "Tensor":
        return self.decode(x0)

    def to_dict(self) -> dict[str, Any]:
        return {"codec": "linear", **asdict(self)}

    def _tensors(self, like: "Tensor") -> "tuple[Tensor, Tensor, Tensor]":
        """basis (c, d), mean (d,) and deviation (c,) in float64 on the device of `like`."""
        import torch

        basis, mean, deviation = (
            torch.tensor(numbers, dtype=torch.float64, device=like.device)
            for numbers in (self.basis, self.mean, self.deviation)
        )
        return basis, mean, deviation


def patches_of(images: "Tensor", factor: int) -> "Tensor":
    """(B, C, H, W) to (B, H / factor, W / factor, C factor^2), each patch as (C, row, column)."""
    batch, channels, height, width = images.shape
    check_divides(factor, height, width)
    rows, columns = height // factor, width // factor
    parts = images.reshape(batch, channels, rows, factor, columns, factor)
    return parts.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows, columns, -1)


def check_divides(factor: int, height: int, width: int) -> None:
    """`InputError` for images that cannot be cut into patches."""
    if height % factor or width % factor:
        raise InputError(
            f"Images of {height} x {width} pixels cannot be cut into patches of {factor} x "
            f"{factor}.",
            hint=f"Choose a resolution that {factor} divides, or another codec.factor.",
        )


def check_takes(codec: Codec, shape: Shape) -> None:
    """`InputError` for a codec that cannot encode images of `shape` (C, H, W)."""
    channels, wanted = shape[0], codec.image_shape((1, 1, 1))[0]
    if channels != wanted:
        raise InputError(
            f"The codec takes images of {counted(wanted, 'channel')}; these have {channels}.",
            hint=f"Prepare them with --set data.channels={wanted} into a new folder, or give a "
            "codec of such images.",
        )
    check_divides(codec.factor, *shape[1:])


@dataclass(frozen=True, eq=False)
class VaeCodec:
    """Latents of an `AutoencoderKL` of diffusers, each channel of mean 0 and deviation 1.

    `vae`: frozen, with the normalisation in its weights (`fit_vae_codec`); `samples`: training
    draws from the posterior instead of taking its mode, as everything else does.
    `preview_decoder`: a module from what the VAE's decoder reads to nearly what it gives, float32;
    it is no part of what the latents are, nor of `to_dict`.
    """

    vae: Any
    samples: bool = False
    preview_decoder: Any = None

    x0_range: ClassVar[None] = None

    @property
    def factor(self) -> int:
        return vae_factor(self.vae.config)

    def image_shape(self, shape: Shape) -> Shape:
        _, height, width = shape
        return self.vae.config["out_channels"], height * self.factor, width * self.factor

    def encode(self, images: "Tensor", noise: "Tensor | None" = None) -> "Tensor":
        """`InputError` for images whose sides `factor` does not divide."""
        check_divides(self.factor, *images.shape[-2:])
        mode, deviation = self.posterior(images)
        return mode if noise is None else mode + deviation * noise.to(mode)

    def posterior(self, images: "Tensor") -> "tuple[Tensor, Tensor]":
        """Mode and deviation, float32, of uint8 images."""
        import torch

        with torch.no_grad(), self._without_overflow():
            found = [
                self.vae.encode(to_float(part, (-1.0, 1.0)).to(self.vae.dtype)).latent_dist
                for part in self._parts(images)
            ]
        mode = torch.cat([one.mean for one in found]).float().to(images.device)
        deviation = torch.cat([one.std for one in found]).float().to(images.device)
        return mode, deviation

    def unit(self, x0: "Tensor") -> "Tensor":
        import torch

        with torch.no_grad(), self._without_overflow():
            parts = [self.vae.decode(part.to(self.vae.dtype)).sample for part in self._parts(x0)]
        return (torch.cat(parts).float() + 1) / 2

    def decode(self, x0: "Tensor") -> "Tensor":
        alone = x0.ndim == 3
        pixels = to_uint8(self.unit(x0[None] if alone else x0), (0.0, 1.0))
        return pixels[0] if alone else pixels

    def preview(self, x0: "Tensor") -> "Tensor":
        if self.preview_decoder is None:
            return self.decode(x0)
        import torch

        where, before = device_of(self.vae), self.vae.post_quant_conv
        with torch.no_grad():
            latents = x0.to(where, self.vae.dtype)
            if before is not None:  # it holds the normalisation
                latents = before(latents)
            pixels = self.preview_decoder.to(where)(latents.float())
        return to_uint8(pixels, (-1.0, 1.0))

    def to_dict(self) -> dict[str, Any]:
        sha256 = weights_digest(self.vae).hexdigest()
        return {"codec": "vae", "samples": self.samples, "sha256": sha256}

    @contextmanager
    def _without_overflow(self) -> "Iterator[None]":
        """A VAE in float16 that overflows there (`force_upcast`) is in float32 meanwhile, as in the
        pipelines of diffusers."""
        import torch

        upcast = self.vae.config["force_upcast"] and all(
            weight.dtype == torch.float16 for weight in self.vae.parameters()
        )
        if upcast:
            self.vae.float()
        try:
            yield
        finally:
            if upcast:
                self.vae.half()

    def _parts(self, batch: "Tensor") -> "list[Tensor]":
        """Where the VAE runs. On a CPU one by one: the last bits depend on the size of a call."""
        batch = batch.to(device_of(self.vae))
        return list(batch.split(1 if batch.device.type == "cpu" else 16))


def vae_factor(config: Mapping[str, Any]) -> int:
    """Pixels of a side for each latent of an `AutoencoderKL` with this `config`."""
    return 2 ** (len(config["block_out_channels"]) - 1)


def codec_from_dict(
    values: Mapping[str, Any], vae: Any = None, preview_decoder: Any = None
) -> PixelCodec | LinearCodec | VaeCodec:
    """The codec that `to_dict` wrote; `vae` and `preview_decoder`: those of a `VaeCodec`."""
    if values["codec"] == "vae":
        if vae is None:
            raise InputError(
                "The network works on the latents of a VAE, and there is none.",
                hint="Open the pipeline with its VAE; output_type='latent' gives the latents.",
            )
        return VaeCodec(vae.eval().requires_grad_(False), values["samples"], preview_decoder)
    if values["codec"] == "linear":
        return LinearCodec(
            factor=values["factor"],
            image_channels=values["image_channels"],
            basis=tuple(tuple(row) for row in values["basis"]),
            mean=tuple(values["mean"]),
            deviation=tuple(values["deviation"]),
        )
    assert values["codec"] == "pixels", values
    low, high = values["value_range"]
    return PixelCodec((float(low), float(high)))
