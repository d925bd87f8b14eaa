"""State dictionaries as safetensors and JSON: no pickle."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor


class Stateful(Protocol):
    """Anything with torch's state dictionary."""

    def state_dict(self) -> Mapping[str, Any]: ...
    def load_state_dict(self, state_dict: Any, /) -> Any: ...


def save_state(state: Mapping[str, Any], path: Path) -> None:
    """Write a nested state dictionary to one safetensors file.

    Tensors keep their bits; everything else (numbers, lists, parameter groups) travels as JSON in
    the file's metadata, with a placeholder where a tensor was.
    """
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    tree = take_apart(state, tensors)
    save_file(tensors, path, metadata={"tree": json.dumps(tree)})


def load_state(path: Path) -> Any:
    """The state dictionary that `save_state` wrote; raises what safetensors raises if damaged."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        tree = json.loads(file.metadata()["tree"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return join_state(tree, tensors)


def take_apart(value: Any, tensors: dict[str, Tensor], name: str = "") -> Any:
    """A nested state as plain values for JSON; its tensors go to `tensors`, by dotted name."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, Mapping):
        items = [
            [key, take_apart(item, tensors, f"{name}.{key}" if name else str(key))]
            for key, item in value.items()
        ]
        return {"items": items}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [take_apart(v, tensors, f"{name}.{i}") for i, v in enumerate(value)]}
    return {"value": value}


def join_state(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The nested state that `take_apart` took apart."""
    kind, content = next(iter(tree.items()))
    if kind == "tensor":
        return tensors[content]
    if kind == "items":
        return {key: join_state(item, tensors) for key, item in content}
    if kind in ("list", "tuple"):
        values = [join_state(item, tensors) for item in content]
        return values if kind == "list" else tuple(values)
    return content
