"""The frames of an interpolation as files: each a PNG with its settings, a grid, an animation."""

import io
from pathlib import Path

from sfumato.base.files import whole_folder
from sfumato.base.images import TEXT_PREFIX, grid, png_bytes, to_pil
from sfumato.generation.samples import Samples

GRID, ANIMATION = "frames.png", "frames.gif"
_COLUMNS = 10
_SEEN_FROM_PX = 128
"""Smaller images are enlarged by whole factors, in the grid and the animation."""
_FRAME_MS = 100


def write_frames(samples: Samples, folder: Path) -> None:
    """`frame-000.png` and so on, `frames.png` and `frames.gif` in a new `folder`, which appears
    whole or not at all.

    A frame has its own settings in its PNG, the grid those that all frames share. An animation of
    coloured images has 256 colours a frame.
    """
    scale = max(1, _SEEN_FROM_PX // samples.tensor.shape[-1])
    common = {
        TEXT_PREFIX + key: str(value)
        for key, value in samples.settings[0].items()
        if all(own[key] == value for own in samples.settings)
    }
    picture = grid(samples.tensor, min(len(samples), _COLUMNS), scale=scale)
    with whole_folder(folder) as temporary:
        for index in range(len(samples)):
            (temporary / f"frame-{index:03}.png").write_bytes(samples.png(index))
        (temporary / GRID).write_bytes(png_bytes(to_pil(picture), common))
        (temporary / ANIMATION).write_bytes(_gif(samples, scale))


def _gif(samples: Samples, scale: int) -> bytes:
    frames = [image.resize((image.width * scale, image.height * scale), 0) for image in samples]
    buffer = io.BytesIO()
    frames[0].save(
        buffer, "GIF", save_all=True, append_images=frames[1:], duration=_FRAME_MS, loop=0
    )
    return buffer.getvalue()
