"""What sampling gives: images, each with everything needed to sample it again."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

from torch import Tensor

from sfumato.base.images import TEXT_PREFIX, grid, png_bytes, to_pil

if TYPE_CHECKING:
    import PIL.Image


@dataclass(frozen=True, kw_only=True)
class Samples(Sequence["PIL.Image.Image"]):
    """Images as a sequence of Pillow images, with everything needed to sample them again.

    `tensor`: uint8 (N, C, H, W) on the CPU; `x0`: the same as floats in the network's range;
    `settings`: of each image; `nfe`: network evaluations an image.
    """

    tensor: Tensor
    x0: Tensor
    settings: list[dict[str, Any]]
    nfe: int

    def __repr__(self) -> str:
        """In place of every pixel and setting."""
        count, channels, height, width = self.tensor.shape
        return f"<Samples: images {count}, size {width}x{height}x{channels}, NFE {self.nfe}>"

    def __len__(self) -> int:
        return len(self.tensor)

    @overload
    def __getitem__(self, index: int) -> "PIL.Image.Image": ...
    @overload
    def __getitem__(self, index: slice) -> "list[PIL.Image.Image]": ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [to_pil(image) for image in self.tensor[index]]
        return to_pil(self.tensor[index])

    def png(self, index: int) -> bytes:
        """An image as PNG; its settings are in the text chunks."""
        text = {TEXT_PREFIX + key: str(value) for key, value in self.settings[index].items()}
        return png_bytes(to_pil(self.tensor[index]), text)

    def _repr_png_(self) -> bytes:
        """The images in a row, for notebooks."""
        buffer = io.BytesIO()
        to_pil(grid(self.tensor, min(len(self), 10), scale=2)).save(buffer, "PNG")
        return buffer.getvalue()
