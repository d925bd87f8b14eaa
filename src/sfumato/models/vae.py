"""Variational autoencoders of diffusers as codecs."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sfumato.base.errors import DamagedDataError, InputError
from sfumato.base.hub import quiet_loading
from sfumato.base.weights import device_of
from sfumato.base.words import counted
from sfumato.models.codec import Codec, VaeCodec, codec_from_dict
from sfumato.models.preview import PreviewDecoder, read_preview, save_preview

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

VAE = "vae"
"""In a run folder and in an exported one: the VAE of the codec."""


def open_vae(name: str) -> "AutoencoderKL":
    """The `AutoencoderKL` of a folder, of the `vae` in a folder (a pipeline, a run), or of a Hub
    name; safetensors alone. `InputError` for what is none, another autoencoder among it."""
    from diffusers import AutoencoderKL

    folder = _folder_of(name)
    place = folder if folder.is_dir() else name
    try:
        kind = AutoencoderKL.load_config(place).get("_class_name")
        if kind != AutoencoderKL.__name__:  # diffusers would give it random weights
            raise ValueError(f"its config.json is of the class {kind}.")
        with quiet_loading():
            vae, loaded = AutoencoderKL.from_pretrained(
                place,
                use_safetensors=True,
                low_cpu_mem_usage=False,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        wrong = [*loaded["missing_keys"], *(key for key, *_ in loaded["mismatched_keys"])]
        if wrong:
            raise ValueError(
                f"{counted(len(wrong), 'weight')} missing or not of the shape that its config.json "
                f"says, such as {min(wrong)}."
            )
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{name} is no AutoencoderKL of diffusers: {error}",
            hint="Give its folder (config.json and safetensors), a pipeline with a vae, or a name "
            "of the Hub.",
        ) from error
    return vae.float().eval().requires_grad_(False)


def open_preview(name: str) -> PreviewDecoder | None:
    """The decoder of previews beside the VAE that `open_vae` opens; None where there is none.
    `DamagedDataError` for a damaged file."""
    return read_preview(_folder_of(name))


def open_vae_codec(values: Mapping[str, Any], folder: Path) -> Codec:
    """The codec that `to_dict` wrote, with the VAE that `save_vae` wrote into `folder`."""
    return codec_from_dict(values, open_vae(str(folder)), open_preview(str(folder)))


def save_vae(codec: VaeCodec, folder: Path) -> None:
    """Write the VAE of a codec as diffusers has it, and its decoder of previews beside it."""
    codec.vae.save_pretrained(folder, safe_serialization=True)
    if codec.preview_decoder is not None:
        save_preview(codec.preview_decoder, folder)


def _folder_of(name: str) -> Path:
    folder = Path(name).expanduser()
    return folder / VAE if (folder / VAE).is_dir() else folder


def fit_vae_codec(
    vae: "AutoencoderKL",
    images: Iterable[Tensor],
    *,
    samples: bool,
    preview_decoder: PreviewDecoder | None = None,
) -> VaeCodec:
    """The codec of `vae` with latents normalised over batches of uint8 (B, C, H, W): each channel
    has mean 0 and deviation 1, that of the posterior's noise included where training `samples`.

    The normalisation goes into the weights of `vae`, which is changed. `DamagedDataError` for
    latents that are not finite or do not vary.
    """
    raw = VaeCodec(vae, samples, preview_decoder)
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for batch in images:
        mode, deviation = (part.double() for part in raw.posterior(batch))
        count += mode[:, 0].numel()
        total = total + mode.sum((0, 2, 3))
        squares = squares + mode.square().sum((0, 2, 3))
        if samples:
            squares = squares + deviation.square().sum((0, 2, 3))
    mean = total / count
    deviation = (squares / count - mean.square()).sqrt()
    if not bool((mean.isfinite() & (deviation > 0)).all()):
        wrong = [place for place, value in enumerate(deviation.tolist()) if not value > 0]
        raise DamagedDataError(
            f"The VAE's latents cannot be used: channels {wrong} are NaN, infinite or the same "
            "everywhere.",
            hint="Its weights may be damaged: give another codec.vae.",
        )
    fold_normalisation(vae, mean, deviation)
    return raw


@torch.no_grad()
def fold_normalisation(vae: "AutoencoderKL", mean: Tensor, deviation: Tensor) -> None:
    """Change `vae` so that its latents are (z - mean) / deviation of what they were, and that it
    decodes these to the same images. `mean`, `deviation`: (C,).

    Both are affine for each channel, as the 1x1 convolutions beside the latents are; a VAE without
    them gets some. Its scaling factor becomes 1, so that other programs take the latents as ours.
    """
    channels, device = len(mean), device_of(vae)
    if vae.quant_conv is None:
        vae.quant_conv = _identity(2 * channels).to(device)
    if vae.post_quant_conv is None:
        vae.post_quant_conv = _identity(channels).to(device)
    mean, deviation = mean.to(device).double(), deviation.to(device).double()
    before, after = vae.quant_conv, vae.post_quant_conv
    weight, bias = before.weight.double(), before.bias.double()
    weight[:channels] /= deviation[:, None, None, None]
    bias[:channels] = (bias[:channels] - mean) / deviation
    bias[channels:] -= 2 * deviation.log()  # of the posterior: log variance
    before.weight.copy_(weight), before.bias.copy_(bias)
    weight = after.weight.double()
    after.bias.copy_(after.bias.double() + weight[:, :, 0, 0] @ mean)
    after.weight.copy_(weight * deviation[None, :, None, None])
    vae.register_to_config(
        scaling_factor=1.0,
        shift_factor=None,
        latents_mean=None,
        latents_std=None,
        use_quant_conv=True,
        use_post_quant_conv=True,
    )


def _identity(channels: int) -> torch.nn.Conv2d:
    convolution = torch.nn.Conv2d(channels, channels, 1).requires_grad_(False)
    torch.nn.init.dirac_(convolution.weight)
    torch.nn.init.zeros_(convolution.bias)
    return convolution
