"""A small decoder of a VAE's latents, for pictures that are looked at while they are sampled."""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from sfumato.base.errors import DamagedDataError
from sfumato.base.randomness import derived_seed
from sfumato.config.autoencoding import VaeNetworkConfig

FILE_NAME = "preview.safetensors"
"""In the folder of a VAE."""


class PreviewDecoder(nn.Module):
    """What a VAE's decoder reads, (B, c, h, w), to nearly what it gives: images (B, C, f h, f w),
    in [-1, 1] where they are right.

    Four convolutions at the latents' size; the last one gives all pixels of each latent (Shi et al.
    2016). Repeating latents before convolutions at the images' size, as TAESD does
    (Bohan 2023), takes several times as long with as many weights.
    """

    def __init__(self, width: int, *, factor: int, latent_channels: int, channels: int) -> None:
        super().__init__()
        self.sizes = {
            "width": width,
            "factor": factor,
            "latent_channels": latent_channels,
            "channels": channels,
        }
        layers: list[nn.Module] = []
        for before in (latent_channels, width, width):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
        layers.append(nn.Conv2d(width, channels * factor**2, 3, padding=1))
        self.body = nn.Sequential(*layers, nn.PixelShuffle(factor))

    def forward(self, latents: Tensor) -> Tensor:
        return self.body(latents)


def build_preview(config: VaeNetworkConfig, *, channels: int, seed: int) -> PreviewDecoder:
    """A decoder of images with `channels`, its weights drawn from `seed`; the global generators are
    left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derived_seed(seed, "weights", "preview"))
        return PreviewDecoder(
            config.preview_channels,
            factor=config.factor,
            latent_channels=config.latent_channels,
            channels=channels,
        )


def save_preview(decoder: PreviewDecoder, folder: Path) -> None:
    """Write the decoder into the folder of its VAE."""
    from safetensors.torch import save_file

    weights = {name: value.cpu().contiguous() for name, value in decoder.state_dict().items()}
    save_file(weights, folder / FILE_NAME, metadata={"sizes": json.dumps(decoder.sizes)})


def read_preview(folder: Path) -> PreviewDecoder | None:
    """The decoder in the folder of a VAE, frozen; None where there is none. `DamagedDataError` for
    a file that is no such decoder."""
    from safetensors import SafetensorError, safe_open

    path = folder / FILE_NAME
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            sizes = json.loads(file.metadata()["sizes"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        with torch.device("meta"):  # no random numbers are drawn
            decoder = PreviewDecoder(sizes.pop("width"), **sizes)
        decoder.load_state_dict(weights, assign=True)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise DamagedDataError(
            f"{path} is damaged, or no decoder of previews.",
            hint="Restore it from a backup, or remove it: previews then take the whole decoder.",
        ) from error
    return decoder.eval().requires_grad_(False)
