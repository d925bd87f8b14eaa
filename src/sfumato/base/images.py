"""The one place where pixels change their form.

Images are uint8 [0, 255] at every boundary and float inside the network's value range.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sfumato.base.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    import torch

ValueRange = tuple[float, float]
"""Lowest and highest pixel value inside the network."""
TEXT_PREFIX = "sfumato:"
"""Prefix of the text chunks of PNGs that hold the settings of an image."""


def to_float(images: "torch.Tensor", value_range: ValueRange) -> "torch.Tensor":
    """uint8 [0, 255] (any shape) to float32 in [low, high]."""
    low, high = value_range
    return images.float().mul(high - low).div(255).add(low)


def to_uint8(images: "torch.Tensor", value_range: ValueRange) -> "torch.Tensor":
    """float in [low, high] (any shape; clamped) to uint8 [0, 255], rounded to nearest."""
    import torch

    low, high = value_range
    return images.float().sub(low).mul(255 / (high - low)).round().clamp(0, 255).to(torch.uint8)


def to_pil(image: "torch.Tensor") -> "PIL.Image.Image":
    """uint8 (C, H, W), C = 1 or 3, to a Pillow image of mode L or RGB."""
    from PIL import Image

    array = image.cpu().numpy()
    return Image.fromarray(array[0] if array.shape[0] == 1 else array.transpose(1, 2, 0))


def grid(
    images: "Sequence[torch.Tensor] | torch.Tensor",
    columns: int,
    *,
    scale: int = 1,
    gap_px: int = 2,
    background: int = 255,
) -> "torch.Tensor":
    """Tile uint8 (C, H, W) images row by row into one uint8 (C, H', W') picture.

    `scale` repeats each pixel, so that small images can be seen on a screen.
    """
    import torch

    first = images[0]
    channels, height, width = first.shape
    rows = -(-len(images) // columns)
    cell_h, cell_w = height * scale + gap_px, width * scale + gap_px
    canvas = torch.full(
        (channels, rows * cell_h + gap_px, columns * cell_w + gap_px), background, dtype=torch.uint8
    )
    for index, image in enumerate(images):
        y = (index // columns) * cell_h + gap_px
        x = (index % columns) * cell_w + gap_px
        enlarged = image.cpu().repeat_interleave(scale, 1).repeat_interleave(scale, 2)
        canvas[:, y : y + height * scale, x : x + width * scale] = enlarged
    return canvas


def png_bytes(image: "PIL.Image.Image", text: dict[str, str] | None = None) -> bytes:
    """A Pillow image as PNG, with `text` in its (international) text chunks."""
    import io

    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, value in (text or {}).items():
        info.add_itxt(key, value)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def resize(array: "np.ndarray", size_px: int) -> "np.ndarray":
    """uint8 (H, W) or (H, W, 3) squashed to (size, size) by Pillow's bilinear filter."""
    import numpy as np
    from PIL import Image

    image = Image.fromarray(array)
    return np.asarray(image.resize((size_px, size_px), Image.Resampling.BILINEAR))


def settings_in_png(path: Path) -> dict[str, str]:
    """The settings that sfumato wrote into a PNG; empty for other PNGs, `InputError` for files that
    are not images."""
    from PIL import Image, UnidentifiedImageError

    if not path.is_file():
        raise InputError(f"{path} is not a file.", hint="Give a PNG that sfumato wrote.")
    try:
        with Image.open(path) as image:
            image.load()
            texts = dict(getattr(image, "text", {}))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise InputError(f"{path} is not an image: {error}.") from error
    except ValueError:  # more text than Pillow reads, which sfumato never writes
        return {}
    return {k.removeprefix(TEXT_PREFIX): v for k, v in texts.items() if k.startswith(TEXT_PREFIX)}
