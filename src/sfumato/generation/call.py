"""What a call of the pipeline takes and gives: names, noise, generators, kinds of output."""

import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.base.errors import InputError
from sfumato.base.images import to_pil
from sfumato.diffusion.sampling import initial_noise
from sfumato.generation.asked import generators_from_seeds, seed_numbers
from sfumato.generation.model import Model
from sfumato.generation.start import Start
from sfumato.models.codec import Codec

Keep = Callable[[Tensor], Tensor]
"""Images to the same with the pixels that a mask keeps."""
OUTPUT_TYPES: dict[str, Callable[[Tensor, Codec, Keep], Any]] = {
    "pil": lambda x0, codec, keep: [to_pil(image) for image in keep(codec.decode(x0))],
    "pt": lambda x0, codec, keep: keep(_unit(x0, codec)),
    "np": lambda x0, codec, keep: keep(_unit(x0, codec)).permute(0, 2, 3, 1).cpu().numpy(),
    "uint8": lambda x0, codec, keep: keep(codec.decode(x0)),
    "latent": lambda x0, codec, keep: x0,
}
"""(x0 (B, C, H, W), codec, what keeps pixels) to what a call returns."""


def _unit(x0: Tensor, codec: Codec) -> Tensor:
    """Images in [0, 1]: latents decode to values beside it."""
    return codec.unit(x0).clamp(0, 1)


def check_names(output_type: str, names: Sequence[str], known: Sequence[str]) -> None:
    if output_type not in OUTPUT_TYPES:
        raise InputError(
            f"output_type '{output_type}' is not known.",
            hint=f"Use one of {', '.join(OUTPUT_TYPES)}.",
        )
    if unknown := [name for name in names if name not in known]:
        raise InputError(
            f"callback_on_step_end_tensor_inputs has '{unknown[0]}', which is not known.",
            hint=f"Use {', '.join(known)}.",
        )


def noise_of(
    model: Model,
    size: tuple[int | None, int | None],
    generators: Sequence[torch.Generator],
    shared: bool,
    latents: Tensor | None,
) -> Tensor:
    """(N, C, H, W) standard normal: `latents`, or drawn as diffusers' `randn_tensor` draws it."""
    channels, (_, *own), side = model.shape[0], model.image_shape, model.codec.factor
    height, width = (
        known if wanted is None else wanted for wanted, known in zip(size, own, strict=True)
    )
    factor = side * 2 ** (len(model.network.config["block_out_channels"]) - 1)
    for wanted, known in zip((height, width), own, strict=True):
        if wanted < 1 or (wanted % factor and wanted != known):
            raise InputError(
                f"Images of {height} x {width} pixels are not possible.",
                hint=f"Give the {own[0]} x {own[1]} of training, or multiples of {factor}.",
            )
    height, width = height // side, width // side
    shape = (len(generators), channels, height, width)
    if latents is None:
        if shared:
            return torch.randn(shape, generator=generators[0])
        return initial_noise((channels, height, width), generators)
    if tuple(latents.shape) != shape and (size != (None, None) or latents.shape[:2] != shape[:2]):
        raise InputError(
            f"latents are {tuple(latents.shape)}.", hint=f"Give {shape}: images, channels, pixels."
        )
    return latents.float()


def start_in_call(
    model: Model,
    image: Any,
    mask_image: Any,
    strength: float | None,
    size: tuple[int | None, int | None],
    count: int,
) -> Start | None:
    """What `count` images of `size` (height, width) start from; `InputError` as `start_of`, for
    paths, which diffusers does not take either, and for another size than that of training."""
    for name, given in (("image", image), ("mask_image", mask_image)):
        if isinstance(given, str | Path):
            raise InputError(f"{name} is a path.", hint="Give PIL.Image.open(path).")
    start = model.start(image, mask_image, strength, count=count)
    own = model.image_shape[1:]
    if start is not None and any(one not in (None, of) for one, of in zip(size, own, strict=True)):
        raise InputError(
            f"height and width are {size[0]} and {size[1]}, with an image to start from.",
            hint=f"Leave them out: the image is brought to the {own[0]} x {own[1]} of training.",
        )
    return start


def generators_of(
    count: int, seeds: Any, generator: torch.Generator | Sequence[torch.Generator] | None
) -> list[torch.Generator]:
    """One an image; one generator is taken by all images in turn."""
    if seeds is not None and generator is not None:
        raise InputError("Give seeds or generators, not both.")
    if seeds is not None:
        generators = generators_from_seeds(seed_numbers(seeds))
    elif generator is None:
        generators = generators_from_seeds([secrets.randbits(62) for _ in range(count)])
    elif isinstance(generator, torch.Generator):
        generators = [generator] * count
    else:
        generators = list(generator)
    if any(generator.device.type != "cpu" for generator in generators):
        raise InputError(
            "A generator of another device was given; noise is drawn on the CPU, so that it is "
            "the same for every device.",
            hint="Give seeds, or generators made with torch.Generator('cpu').",
        )
    if len(generators) != count:
        raise InputError(
            f"{len(generators)} seeds for {count} image{'s' * (count != 1)}.",
            hint="Give one seed for each image.",
        )
    return generators
