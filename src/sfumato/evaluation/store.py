"""Tensors in files that are whole or absent, and the names of such files."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from sfumato.base.files import write_bytes
from sfumato.evaluation.metrics.features import Tensors


def digest_of(values: object) -> str:
    """A short digest of plain values."""
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_name(title: str) -> str:
    """A title as a part of a file's name: "w = 1.5" is w1.5."""
    return re.sub(r"[^\w.-]+", "", title) or "images"


def kept(path: Path | None, make: Callable[[], Tensors]) -> Tensors:
    """The tensors in the file `path`, else made and written there; a damaged file is made again."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path is None:
        return make()
    if path.exists():
        try:
            return load_file(path)
        except SafetensorError:
            path.unlink()
    tensors = make()
    write_tensors(path, tensors)
    return tensors


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file, whole or not at all."""
    from safetensors.torch import save

    write_bytes(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}))
