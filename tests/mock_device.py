"""A device for tests: its tensors are the CPU's, and what a GPU would refuse is refused.

A GPU refuses an operation on its own tensors and the CPU's, and so does this device. Code that
forgets to move a tensor fails here as it would there.

    python -m tests.mock_device train digits --out DIR    # `sfumato --device mock`
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

NAME = "mock"
CPU = torch.device("cpu")
COMPOSITE = "CompositeImplicitAutograd"
COPIES = ("aten::copy_", "aten::_to_copy")
INDEXING = ("aten::index", "aten::index_put_", "aten::_index_put_impl_")
"""A GPU takes the CPU's indices of its own tensors."""


class MockTensor(Tensor):
    """A tensor whose device is the mock; `held` has its values on the CPU."""

    held: Tensor
    created = 0
    """How many there were so far."""
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> "MockTensor":
        made = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
        )
        made.held = held
        cls.created += 1
        return made

    @property
    def data(self) -> Tensor:
        return Tensor.data.__get__(self)

    @data.setter
    def data(self, values: "MockTensor") -> None:  # as `Module.to` sets it
        Tensor.data.__set__(self, values)
        self.held = values.held

    def untyped_storage(self) -> torch.UntypedStorage:
        """Of the values: what writes weights asks which tensors share memory."""
        return self.held.untyped_storage()

    @classmethod
    def __torch_dispatch__(
        cls, operation: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return run(operation, *args, **(kwargs or {}))


def run(operation: Any, *args: Any, **kwargs: Any) -> Any:
    """The operation on the CPU, of tensors of the mock device alone."""
    name = operation._schema.name
    if torch._C._dispatch_has_kernel_for_dispatch_key(operation.name(), COMPOSITE):
        return operation.decompose(*args, **kwargs)  # whole under torch.inference_mode alone
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    own = [tensor for tensor in tensors if isinstance(tensor, MockTensor)]
    compared = tree_leaves((args[0], args[2:])) if name in INDEXING else tensors
    foreign = [
        one
        for one in compared
        if isinstance(one, Tensor) and not isinstance(one, MockTensor) and one.dim()
    ]
    if own and foreign and name not in COPIES:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but {operation} got {NAME} "
            f"{[tuple(one.shape) for one in own]} and cpu {[tuple(one.shape) for one in foreign]}."
        )
    wanted = kwargs.get("device")
    to_cpu = wanted is not None and torch.device(wanted).type == "cpu"
    if wanted is not None:
        kwargs = {**kwargs, "device": CPU}
    found = operation(*tree_map(_held, args), **tree_map(_held, kwargs))
    if to_cpu:
        return found
    if name == "aten::copy_" and not isinstance(args[0], MockTensor):
        return args[0]
    same = {id(tensor.held): tensor for tensor in own}  # what is changed in place stays the same
    return tree_map(lambda one: same.get(id(one), _on_device(one)), found)


def _held(value: Any) -> Any:
    return value.held if isinstance(value, MockTensor) else value


def _on_device(value: Any) -> Any:
    return MockTensor(value) if isinstance(value, Tensor) else value


class _Module(_DummyBackendModule):
    """What torch asks a backend for, as `torch.NAME`."""

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


_setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
_library = torch.library.Library("_", "IMPL", "PrivateUse1")
torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor: made on the CPU, then moved
_autocast = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
_autocast.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")  # casts nothing
_library.fallback(run, "PrivateUse1")  # for what has no tensor as an argument, such as torch.empty

if __name__ == "__main__":
    from sfumato.cli import checks, main

    checks.checked_device.__code__ = (lambda name: name).__code__
    sys.argv += ["--device", NAME]
    try:
        main()
    finally:
        if not MockTensor.created:
            sys.exit(f"Nothing was computed on the {NAME} device.")
