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
ORIENTED = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}
"""Where a file may say which side is up."""
_ORIENTATION = 0x0112


class BadImage(Exception):
    """An image that cannot be used, and why."""


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


def check_one_picture(image: "PIL.Image.Image") -> None:
    """`BadImage` for an animation or pages; a camera's MPO holds previews of one picture."""
    count = getattr(image, "n_frames", 1)
    if count > 1 and image.format != "MPO":
        raise BadImage(f"{count} pictures in one file")


def upright(image: "PIL.Image.Image") -> "PIL.Image.Image":
    """Turned and mirrored as its EXIF orientation says."""
    if _orientation(image) == 1:
        return image
    from PIL import ImageOps

    return ImageOps.exif_transpose(image)


def is_turned(image: "PIL.Image.Image") -> bool:
    """Whether `upright` exchanges width and height."""
    return _orientation(image) in (5, 6, 7, 8)


def _orientation(image: "PIL.Image.Image") -> int:
    may_say = image.format in ("TIFF", "MPO") or not ORIENTED.isdisjoint(image.info)
    return image.getexif().get(_ORIENTATION, 1) if may_say else 1


def coloured(image: "PIL.Image.Image", mode: str) -> "PIL.Image.Image":
    """Any of Pillow's modes to L or RGB: transparency is laid on white, 16-bit grey is scaled;
    `BadImage` for floating-point pixels."""
    if image.mode == mode and "transparency" not in image.info:
        return image
    import numpy as np
    from PIL import Image

    if image.mode == "F":
        raise BadImage("floating-point pixels, whose white is not known")
    if image.mode == "I" or image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((wide + 128) // 257).astype(np.uint8))  # 65535 is 255 * 257
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        over = image.convert("RGBA")
        image = Image.new("RGB", over.size, "white")
        image.paste(over, mask=over.getchannel("A"))
    return image.convert(mode)


def fitted(image: "PIL.Image.Image", side_px: int, fit: str) -> "PIL.Image.Image":
    """A square by Pillow's antialiased bilinear filter, of the middle for the fit `crop`."""
    width, height = image.size
    if (width, height) == (side_px, side_px):
        return image
    from PIL import Image

    if fit == "crop" and width != height:
        short = min(width, height)
        left, top = (width - short) // 2, (height - short) // 2
        image = image.crop((left, top, left + short, top + short))
    return image.resize((side_px, side_px), Image.Resampling.BILINEAR)


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
