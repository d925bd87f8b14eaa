"""Prepared latents: what a codec makes of prepared images, in the folder `latents` beside them.

latents.npy    (N, 2, P, C, H, W), the bits of bfloat16 as int16: of each image and of its
               mirror image, the mode, and with P = 2 the posterior's deviation
latents.json   of which codec and images, checksums
vae/           the VAE of the codec, where it has one, and its decoder of previews
"""

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato.base.errors import DamagedDataError, InputError
from sfumato.base.files import read_json, sha256_of_file, whole_folder, write_json
from sfumato.data.prepared import MANIFEST, MappedImages, mapped_images
from sfumato.models.codec import Codec, VaeCodec, check_takes, codec_from_dict
from sfumato.models.vae import VAE, open_vae_codec, save_vae

FOLDER, LATENTS, ABOUT = "latents", "latents.npy", "latents.json"
FORMAT = 1
_ROWS = 256


@dataclass(frozen=True, kw_only=True)
class LatentsManifest:
    """What latents.json says. `codec`: its `to_dict()`; `made_from`: the hash of the VAE before its
    latents were normalised, "" for another codec; `images`: of prepared.json; `checksums`:
    (images, CRC-32) of each stretch of latents.npy."""

    codec: Mapping[str, Any]
    made_from: str
    images: str
    shape: Sequence[int]
    checksums: Sequence[Sequence[int]]

    def is_of(self, codec: Codec) -> bool:
        """Whether `codec` made the latents."""
        return json.loads(json.dumps(codec.to_dict())) == self.codec  # JSON has no tuples


def write_latents(
    prepared: Path,
    codec: Codec,
    *,
    made_from: str = "",
    on_rows: Callable[[int, int], None] = lambda done, total: None,
) -> LatentsManifest:
    """Write the latents of every image in the prepared folder, and of its mirror image; whole or
    not at all. `on_rows` gets (images done, images in all).

    `InputError` for images that the codec does not take, `DamagedDataError` for latents
    that are not finite.
    """
    images = mapped_images(prepared)
    check_takes(codec, (images.shape[1], images.shape[2], images.shape[3]))
    checksums = []
    with whole_folder(prepared / FOLDER) as temporary:
        shape = (len(images), *_latents(codec, images[:1]).shape[1:])
        array = np.lib.format.open_memmap(temporary / LATENTS, "w+", np.int16, shape)
        for start in range(0, len(images), _ROWS):
            latents = _latents(codec, images[start : start + _ROWS])
            _check_finite(latents, start)
            part = latents.to(torch.bfloat16).view(torch.int16).numpy()
            array[start : start + len(part)] = part
            checksums.append((len(part), zlib.crc32(part)))
            on_rows(start + len(part), len(images))
        array.flush()
        if isinstance(codec, VaeCodec):
            save_vae(codec, temporary / VAE)
        manifest = LatentsManifest(
            codec=codec.to_dict(),
            made_from=made_from,
            images=sha256_of_file(prepared / MANIFEST),
            shape=shape,
            checksums=checksums,
        )
        write_json(temporary / ABOUT, {"format": FORMAT, **asdict(manifest)})
    return manifest


def _latents(codec: Codec, images: Tensor) -> Tensor:
    """(B, 2, P, C, H, W) float32 of uint8 images."""
    both = []
    for one in (images, images.flip(3)):
        if codec.samples:
            assert isinstance(codec, VaeCodec)
            both.append(torch.stack(codec.posterior(one), 1))
        else:
            both.append(codec.encode(one)[:, None])
    return torch.stack(both, 1).cpu()


def _check_finite(latents: Tensor, start: int) -> None:
    wrong = (~latents.isfinite()).flatten(1).any(1).nonzero().flatten()
    if len(wrong):
        raise DamagedDataError(
            f"The codec makes NaN or infinity of image {start + int(wrong[0])} of the prepared "
            "images; no latents were written.",
            hint="Its weights may be damaged, or too large for this precision: give another codec.",
        )


@dataclass(frozen=True, kw_only=True)
class PreparedLatents:
    """Latents of all images of a prepared folder; `values` (N, 2, P, C, H, W) bfloat16, mapped;
    `sha256`: of latents.json, and so of them."""

    folder: Path
    sha256: str
    manifest: LatentsManifest
    values: Tensor

    def codec(self) -> Codec:
        """The codec that made them."""
        values = self.manifest.codec
        is_vae = values["codec"] == "vae"
        codec = open_vae_codec(values, self.folder) if is_vae else codec_from_dict(values)
        if not self.manifest.is_of(codec):
            raise _damaged(self.folder / VAE)
        return codec

    def of(self, images: MappedImages) -> MappedImages:
        """The latents of chosen images of the same folder, in their order."""
        return images.beside(self.values)


def read_latents(prepared: Path) -> PreparedLatents | None:
    """The latents beside the prepared images in a folder; None where there are none.

    `InputError` for those of other images, `DamagedDataError` for what is not as it was written.
    """
    folder = prepared / FOLDER
    if not (folder / ABOUT).is_file():
        return None
    values = read_json(folder / ABOUT)
    if values.pop("format", None) != FORMAT:
        raise _damaged(folder / ABOUT)
    manifest = LatentsManifest(**values)
    if manifest.images != sha256_of_file(prepared / MANIFEST):
        raise InputError(
            f"{folder} holds latents of other images.",
            hint="Remove it and prepare them again: sfumato prepare SOURCE OUT --codec RUN.",
        )
    try:
        array = np.load(folder / LATENTS, mmap_mode="c")
    except (OSError, ValueError) as error:
        raise _damaged(folder / LATENTS) from error
    if array.dtype != np.int16 or list(array.shape) != list(manifest.shape):
        raise _damaged(folder / LATENTS)
    start = 0
    for count, crc in manifest.checksums:
        if zlib.crc32(array[start : start + count]) != crc:
            raise _damaged(folder / LATENTS)
        start += count
    bits = torch.from_numpy(array)
    return PreparedLatents(
        folder=folder,
        sha256=sha256_of_file(folder / ABOUT),
        manifest=manifest,
        values=bits.view(torch.bfloat16),
    )


def drawn(latents: Tensor, flips: Tensor | None, noise: Tensor | None) -> Tensor:
    """(B, C, H, W) float32 for a step of stored latents (B, 2, P, C, H, W): of the mirror image
    where `flips` (B,), drawn from the posterior by `noise` (B, C, H, W) where there is some."""
    rows = torch.arange(len(latents), device=latents.device)
    sides = torch.zeros_like(rows) if flips is None else flips.long()
    chosen = latents[rows, sides].float()
    return chosen[:, 0] if noise is None else chosen[:, 0] + chosen[:, 1] * noise.to(chosen)


def _damaged(file: Path) -> DamagedDataError:
    return DamagedDataError(
        f"{file} is not as it was written.",
        hint="Remove the folder `latents` and prepare them again: sfumato prepare SOURCE OUT "
        "--codec RUN.",
    )
