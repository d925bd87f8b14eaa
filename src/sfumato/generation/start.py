"""What sampling starts from beside noise: an image, and which of its pixels stay."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from sfumato.base.errors import InputError
from sfumato.base.images import BadImage, check_one_picture, coloured, fitted, upright
from sfumato.diffusion.known import KnownPixels
from sfumato.diffusion.process import Process
from sfumato.diffusion.sampling import Solver
from sfumato.models.codec import Codec

IMAGE_STRENGTH, MASK_STRENGTH = 0.8, 1.0
"""The strength without and with a mask, unless one is given."""
PAINTED_FROM = 128
"""A pixel of a mask at least this bright, after it was resized, is painted anew."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Start:
    """Images to start from, one for each image that is sampled or one for all.

    `images`: uint8 (N, C, H, W) of the model's size; `strength`: the share of the steps that are
    done, in (0, 1]; at 1 they start from noise alone; `paint`: bool (N, 1, H, W), the pixels that
    are sampled, all others keep their values exactly; None: all are.
    """

    images: Tensor
    strength: float
    paint: Tensor | None = None

    def keep(self, images: Tensor) -> Tensor:
        """`images` (N, C, H, W), uint8 or float in [0, 1], with the values of the pixels that are
        not sampled."""
        if self.paint is None:
            return images
        known = self.images if images.dtype == torch.uint8 else self.images / 255
        return torch.where(self.paint.to(images.device), images, known.to(images))

    def part(self, rows: slice) -> "Start":
        """Of these rows of what is sampled."""
        if len(self.images) == 1:
            return self
        paint = None if self.paint is None else self.paint[rows]
        return replace(self, images=self.images[rows], paint=paint)

    def settings(self, index: int) -> dict[str, Any]:
        """What the image sampled at `index` depends on."""
        row = 0 if len(self.images) == 1 else index
        settings = {"init_image_sha256": _sha256(self.images[row]), "strength": self.strength}
        if self.paint is not None:
            settings["mask_sha256"] = _sha256(self.paint[row])
        return settings

    def arguments(self) -> dict[str, Any]:
        """The same start as arguments of `Model.sample`."""
        return {
            "init_image": list(self.images),
            "mask": None if self.paint is None else list(self.paint),
            "strength": self.strength,
        }


def begin(
    start: Start, noise: Tensor, solver: Solver, process: Process, codec: Codec
) -> tuple[Tensor, Solver]:
    """x_t (B, C, H, W) where `solver` begins, and the solver that keeps what is known.

    `noise`: (B, C, H, W) standard normal. With a strength of 1 it is x_t itself, as without a
    start.
    """
    x0 = codec.encode(start.images).to(noise)
    x_t = noise if start.strength == 1 else process.add_noise(x0, noise, solver.times[:1])
    if start.paint is None:
        return x_t, solver
    # A latent is known where its whole patch is; the pixels of the others are put back at the end.
    painted = max_pool2d(start.paint.float(), codec.factor) > 0
    keep = ~painted.to(noise.device)
    known = KnownPixels(solver, process, x0=x0, eps=noise, keep=keep)
    return known.put_back(x_t, index=0), known


def _sha256(pixels: Tensor) -> str:
    return hashlib.sha256(pixels.contiguous().numpy().tobytes()).hexdigest()


def start_of(
    init_image: Any,
    mask: Any,
    strength: float | None,
    *,
    count: int,
    shape: tuple[int, int, int],
    fit: str,
) -> Start | None:
    """The start of `count` images of `shape` (C, H, W); None where there is no `init_image`.

    `init_image`, `mask`: one or `count` of a path, a Pillow image, or uint8 pixels, (H, W[, C]) of
    numpy or (C, H, W) of torch; masks may be bool. They are brought to the model's size as training
    images are, by `fit`. White of a mask is painted anew.

    `InputError` for what is no picture, several in one file, other numbers of them than `count`, a
    mask of another size than its image or that leaves nothing to paint or to keep, and a mask or
    strength without an image.
    """
    if init_image is None:
        if mask is None and strength is None:
            return None
        raise InputError(
            f"There is a {'strength' if mask is None else 'mask'} and no image to start from.",
            hint="Give the image too, or leave it out.",
        )
    pictures = _pictures(init_image, "start image", shape, fit)
    paint = None
    if mask is not None:
        pictures, paint = _masked(pictures, mask, shape, fit)
    if len(pictures) not in (1, count):
        raise InputError(
            f"{len(pictures)} start images or masks, and {count} to sample.",
            hint="Give one for each image that is sampled, or one for all.",
        )
    if strength is None:
        strength = IMAGE_STRENGTH if mask is None else MASK_STRENGTH
    images = torch.stack([pixels for pixels, _ in pictures])
    return Start(images=images, strength=float(strength), paint=paint)


Picture = tuple[Tensor, tuple[int, int]]
"""uint8 (C, H, W) of the model's size, and the width and height that it had."""


def _masked(
    pictures: list[Picture], mask: Any, shape: tuple[int, int, int], fit: str
) -> tuple[list[Picture], Tensor]:
    """As many pictures as masks, and which pixels are painted anew: bool (N, 1, H, W)."""
    masks = _pictures(mask, "mask", (1, *shape[1:]), fit)
    number = max(len(pictures), len(masks))
    pictures, masks = (each * number if len(each) == 1 else each for each in (pictures, masks))
    _check_sizes(pictures, masks)
    paint = torch.stack([pixels >= PAINTED_FROM for pixels, _ in masks])
    _check_mask(paint)
    return pictures, paint


def _pictures(given: Any, what: str, shape: tuple[int, int, int], fit: str) -> list[Picture]:
    """One or several, as a list."""
    if isinstance(given, Sequence) and not isinstance(given, str):
        several = list(given)
    else:
        several = list(given) if getattr(given, "ndim", 0) == 4 else [given]
    if not several:
        raise InputError(f"There is no {what} in an empty list.", hint="Give at least one.")
    return [_picture(one, what, shape, fit) for one in several]


def _picture(given: Any, what: str, shape: tuple[int, int, int], fit: str) -> Picture:
    channels, side, _ = shape
    name = f" {given}" if isinstance(given, str | Path) else ""
    try:
        if isinstance(given, str | Path):
            decode = import_module("sfumato.data.decode")
            target = decode.Target(resolution=side, channels=channels, fit=fit)
            pixels, size = decode.read_picture(Path(given), target)
            return torch.from_numpy(pixels.copy()), size
        image = _pillow(given)
        pixels = _array(fitted(coloured(image, "L" if channels == 1 else "RGB"), side, fit))
        return pixels, image.size
    except BadImage as error:
        raise InputError(
            f"The {what}{name} cannot be used: {error}.",
            hint="Give one picture, such as a PNG or a JPEG; from Python also a Pillow image or "
            "uint8 pixels.",
        ) from error


def _pillow(given: Any) -> Any:
    """An upright Pillow image of one or of pixels; `BadImage` for others."""
    import numpy as np
    from PIL import Image

    if isinstance(given, Image.Image):
        try:
            check_one_picture(given)
            given.load()
            return upright(given)
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            raise BadImage(f"cannot be decoded ({error})") from error
    if isinstance(given, Tensor):
        array = given.cpu().numpy()
        array = array.transpose(1, 2, 0) if array.ndim == 3 else array
    elif isinstance(given, np.ndarray):
        array = given
    else:
        raise BadImage(f"it is of the type {type(given).__name__}")
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype != np.uint8 or not (
        array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    ):
        raise BadImage(f"it is {array.dtype} of the shape {tuple(given.shape)}")
    if 0 in array.shape:
        raise BadImage("it has no pixels")
    return Image.fromarray(np.ascontiguousarray(array))


def _array(image: Any) -> Tensor:
    """uint8 (C, H, W) of a Pillow image of mode L or RGB."""
    import numpy as np

    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


def _check_sizes(pictures: Sequence[Picture], masks: Sequence[Picture]) -> None:
    if len(pictures) != len(masks):
        raise InputError(
            f"{len(masks)} masks for {len(pictures)} start images.",
            hint="Give one for each, or one for all.",
        )
    for (_, of_image), (_, of_mask) in zip(pictures, masks, strict=True):
        if of_image != of_mask:
            sizes = [f"{width} x {height}" for width, height in (of_mask, of_image)]
            raise InputError(
                f"The mask has {sizes[0]} pixels, the start image {sizes[1]}.",
                hint="Make the mask as large as the image: white where it is painted anew.",
            )


def _check_mask(paint: Tensor) -> None:
    """`InputError` for a mask (of `paint`, (N, 1, H, W)) that is all one."""
    shares = paint.flatten(1).double().mean(1)
    if bool((shares == 0).any()):
        raise InputError(
            "The mask has no white at the model's size: there is nothing to paint.",
            hint="White is painted anew and black stays. A small white spot may be lost where the "
            "image is made smaller.",
        )
    if bool((shares == 1).any()):
        raise InputError(
            "The mask has no black at the model's size: nothing of the image would stay.",
            hint="White is painted anew and black stays. Without a mask the strength says how much "
            "of the image is kept.",
        )
