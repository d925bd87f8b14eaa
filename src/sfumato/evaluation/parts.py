"""Tensors of many images in files of a few each: what is there after a kill is not made again."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from torch import Tensor

from sfumato.base.files import write_bytes

Make = Callable[[range], dict[str, Tensor]]


class Parts:
    """Rows 0 to `count` of some tensors, `rows` a file; a file is whole or absent.

    The first rows of a set lie in the same files however many rows are asked for, so that a set
    can be made longer later.
    """

    def __init__(self, folder: Path, *, count: int, rows: int) -> None:
        self.folder = folder
        self.count = count
        self.rows = rows

    def __iter__(self) -> Iterator[range]:
        for start in range(0, self.count, self.rows):
            yield range(start, min(start + self.rows, self.count))

    def path(self, part: range) -> Path:
        """The file of `part`."""
        return self.folder / f"{part.start:08d}-{part.stop:08d}.safetensors"

    def has(self, part: range) -> bool:
        """Whether `part` was made before."""
        return self.path(part).exists()

    def get(self, part: range, make: Make) -> dict[str, Tensor]:
        """The tensors of `part`: read from their file, else made and written."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self.path(part)
        if path.exists():
            try:
                return load_file(path)
            except SafetensorError:
                path.unlink()  # damaged: it is made again
        tensors = make(part)
        write_tensors(path, tensors)
        return tensors


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file, whole or not at all."""
    from safetensors.torch import save

    write_bytes(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}))
