"""What the network sees of an image, and back: pixels are uint8 [0, 255] at every boundary."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from sfumato.base.images import ValueRange, to_float, to_uint8

if TYPE_CHECKING:
    from torch import Tensor


class Codec(Protocol):
    """Images (B, C, H, W) to what the network is trained on, and back."""

    @property
    def x0_range(self) -> ValueRange:
        """The range that x0 is clamped to at every sampling step, about whose centre guidance
        acts."""
        ...

    def encode(self, images: "Tensor") -> "Tensor":
        """uint8 [0, 255] to float32."""
        ...

    def decode(self, x0: "Tensor") -> "Tensor":
        """float to uint8 [0, 255], rounded to nearest; values out of range are clamped."""
        ...

    def to_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class PixelCodec:
    """Pixels as floats in `value_range`."""

    value_range: ValueRange = (-1.0, 1.0)

    @property
    def x0_range(self) -> ValueRange:
        return self.value_range

    def encode(self, images: "Tensor") -> "Tensor":
        return to_float(images, self.value_range)

    def decode(self, x0: "Tensor") -> "Tensor":
        return to_uint8(x0, self.value_range)

    def to_dict(self) -> dict[str, Any]:
        return {"codec": "pixels", **asdict(self)}


def codec_from_dict(values: dict[str, Any]) -> PixelCodec:
    """The codec that `to_dict` wrote."""
    assert values["codec"] == "pixels", values
    low, high = values["value_range"]
    return PixelCodec((float(low), float(high)))
