"""Attention of small sizes on a CPU, in training: faster than the kernels of torch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

_MOST_FEW_KEYS = 12
"""Keys up to which `few_keys_attention` is faster than torch's kernel: a short caption's tokens."""
_WIDEST_HEAD_OF_FEW = 32
_MANY_KEYS = range(100, 513)
"""Numbers of keys for which `small_heads_attention` is. With fewer there is little to gain; with
more the probabilities, kept for the backward pass, grow beyond what they are worth."""
_WIDEST_HEAD_OF_MANY = 16
"""Channels of a head up to which they are, each."""
_CHUNK_SCORES = 300_000
"""Scores that a thread computes at once: they stay in its core's cache."""

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def speed_up_on_cpu(unet: torch.nn.Module) -> None:
    """From now on a U-Net's attention is computed in `CpuAttention`. For training: a copy that is
    made before draws by torch's kernel, as an exported pipeline does."""
    from diffusers.models.attention_processor import Attention

    for module in unet.modules():
        if isinstance(module, Attention):
            module.set_processor(_CpuProcessor(module.processor))


class _CpuProcessor:
    """Another processor of diffusers, inside `CpuAttention`: a mode around the whole network would
    pass each of its calls through Python."""

    def __init__(self, processor: Callable[..., Tensor]) -> None:
        self.processor = processor

    def __call__(self, *arguments: Any, **options: Any) -> Tensor:
        with CpuAttention():
            return self.processor(*arguments, **options)


class CpuAttention(TorchFunctionMode):
    """Inside, attention with few keys or small heads on a CPU is computed by our functions.

    torch's kernel multiplies by matrices as wide as a head, and takes the softmax over rows as
    long as there are keys; heads of 8 channels and captions of 8 tokens, as small U-Nets have
    them, leave most of a vector register empty there. Anything else goes to torch.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if (
            func is scaled_dot_product_attention
            and _is_plain(args, kwargs)
            and (ours := _faster(*args)) is not None
        ):
            return ours(*args)
        return func(*args, **kwargs)


def _is_plain(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether only query, key and value differ from the defaults: no mask, no dropout."""
    return len(args) == 3 and not any(
        isinstance(value, Tensor) or value for value in kwargs.values()
    )


def _faster(query: Tensor, key: Tensor, value: Tensor) -> Attend | None:
    """Our function for inputs of these shapes, None where torch's kernel is as fast."""
    if not (
        query.device.type == "cpu"
        and query.dtype == key.dtype == value.dtype == torch.float32
        and query.dim() == 4
        and query.shape[:2] == key.shape[:2] == value.shape[:2]
        and query.shape[-1] == value.shape[-1]
    ):
        return None
    keys, channels = key.shape[-2:]
    if keys <= _MOST_FEW_KEYS and channels <= _WIDEST_HEAD_OF_FEW:
        return few_keys_attention
    if keys in _MANY_KEYS and channels <= _WIDEST_HEAD_OF_MANY:
        return small_heads_attention
    return None


def few_keys_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """`scaled_dot_product_attention` of (B, heads, L, D) with (B, heads, S, D), up to rounding.

    For S of a dozen or less: every matrix lies with the queries last, so that the softmax over S
    runs along whole registers. The probabilities are kept. No second derivatives.
    """
    return _FewKeysAttention.apply(query, key, value)


class _FewKeysAttention(torch.autograd.Function):
    """As `_SmallHeadsAttention`, with P, dP and dS as (S, L)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        b, heads, length, d = query.shape
        q, k, v = _every_head(query, key, value)
        p = torch.bmm(k, q.mT).softmax(1)
        out = torch.bmm(v.mT, p)
        ctx.save_for_backward(q, k, v, out, p)
        return out.view(b, heads, d, length).mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        q, k, v, out, p = ctx.saved_tensors
        b, heads, length, d = grad.shape
        g = grad.mT.reshape(-1, d, length)
        dv = torch.bmm(p, g.mT)
        ds = torch.bmm(v, g).sub_((g * out).sum(1, keepdim=True)).mul_(p)
        dq = torch.bmm(k.mT, ds).mul_(d**-0.5)
        dk = torch.bmm(ds, q)
        return dq.view(b, heads, d, length).mT, dk.view(b, heads, -1, d), dv.view(b, heads, -1, d)


def _every_head(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, heads, L or S, D) to (B heads, L or S, D) each, the query over sqrt(D)."""
    q, k, v = (x.reshape(-1, *x.shape[2:]) for x in (query, key, value))
    return q * query.shape[-1] ** -0.5, k, v


def small_heads_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """`scaled_dot_product_attention` of (B, heads, L, D) with (B, heads, S, D), up to rounding.

    Every product is laid out with its long side last, and the probabilities (B, heads, L, S) are
    kept for the backward pass instead of being computed again. No second derivatives.
    """
    return _SmallHeadsAttention.apply(query, key, value)


class _SmallHeadsAttention(torch.autograd.Function):
    """P = softmax(Q K^T / sqrt(D)), O = P V; dS = P * (dP - rowsum(dO * O)), dP = dO V^T."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        b, heads, length, d = query.shape
        q, k, v = _every_head(query, key, value)
        out = q.new_empty(b * heads, d, length)
        # A tensor for each chunk: allocators hand small blocks out again, and huge ones afresh.
        probabilities = []
        for chunk in _chunks(q, k):
            p = torch.bmm(q[chunk], k[chunk].mT).softmax(-1)
            torch.bmm(v[chunk].mT, p.mT, out=out[chunk])
            probabilities.append(p)
        ctx.save_for_backward(q, k, v, out, *probabilities)
        return out.view(b, heads, d, length).mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        q, k, v, out, *probabilities = ctx.saved_tensors
        b, heads, length, d = grad.shape
        g = grad.mT.reshape(-1, d, length)
        row_sums = (g * out).sum(1).unsqueeze(-1)
        dq, dk = torch.empty_like(g), g.new_empty(len(g), d, k.shape[1])
        dv = torch.empty_like(dk)
        start = 0
        for p in probabilities:
            chunk = slice(start, start + len(p))
            start = chunk.stop
            torch.bmm(g[chunk], p, out=dv[chunk])
            ds = torch.bmm(g[chunk].mT, v[chunk].mT).sub_(row_sums[chunk]).mul_(p)
            torch.bmm(k[chunk].mT, ds.mT, out=dq[chunk])
            torch.bmm(q[chunk].mT, ds, out=dk[chunk])
        dq *= d**-0.5
        return tuple(x.view(b, heads, d, -1).mT for x in (dq, dk, dv))


def _chunks(q: Tensor, k: Tensor) -> list[slice]:
    """Slices of (N, L, D) and (N, S, D) whose scores fit in the cores' caches together."""
    size = max(1, torch.get_num_threads() * _CHUNK_SCORES // (q.shape[1] * k.shape[1]))
    return [slice(start, start + size) for start in range(0, len(q), size)]
