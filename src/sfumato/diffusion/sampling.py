"""The denoising loop.

Every network output becomes x0; guidance and clamping act there; the solver, which takes x0 and
never clips, gets consistent values.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from sfumato.base.images import ValueRange
from sfumato.diffusion.guidance import Branch, Guidance
from sfumato.diffusion.process import Process

Network = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x_t (B, C, H, W), t (B,), tokens (B, L, D)) -> output (B, C, H, W)."""


class Solver(Protocol):
    """How a sampler goes from one noise level to the next, set up for one batch.

    x_t is a(t) x0 + s(t) eps of the process throughout, as the network was trained on it; solvers
    that work in sigma rescale inside.
    """

    times: Tensor
    """(K,) times of the process: the noise level of each network evaluation, noisiest first.

    A solver of second order names a level twice where it evaluates the network twice.
    """

    def step(self, x0: Tensor, x_t: Tensor, *, index: int) -> Tensor:
        """The next x_t from the guided x0 and the x_t of evaluation `index`, (B, C, H, W) each.

        It lies at the level of evaluation `index + 1`; after the last one it is the image.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Step:
    """What `on_step` gets: evaluation `index` of `count`, x_t after it, the guided x0."""

    index: int
    count: int
    t: float
    x_t: Tensor
    x0: Tensor


@dataclass(frozen=True, kw_only=True)
class Change:
    """What `on_step` may return: what sampling goes on with. None is what there was."""

    x_t: Tensor | None = None
    tokens: dict[Branch, Tensor] | None = None
    guidance: Guidance | None = None
    stop: bool = False
    """End here; the result is x_t, with the noise that it still has."""


OnStep = Callable[[Step], Change | None]


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """`x0`: (B, C, H, W) float in the value range; `nfe`: network evaluations an image.

    `first_t`: the time at which sampling started; `alone`: whether the network was called in
    another number of rows than in a batch, which gives other last bits.
    """

    x0: Tensor
    nfe: int
    first_t: float
    alone: bool = False


def initial_noise(shape: tuple[int, int, int], generators: Sequence[torch.Generator]) -> Tensor:
    """Standard normal noise (B, C, H, W), one CPU generator an image.

    Equal to what diffusers' `randn_tensor` draws for the same list of generators.
    """
    return torch.cat([torch.randn(1, *shape, generator=generator) for generator in generators])


class EqualRows:
    """A network, evaluated in calls of `rows` images, or of other sizes that give equal bits.

    On a CPU the last bits of a matrix product depend on the number of its rows. With calls of one
    size (the last one filled up by repeating its last row) an image has the same bits whatever
    else is in the batch. Larger calls cost less time an image, and what is left of a batch, such
    as a single image, needs fewer rows than `rows`. Whether a size of `larger` or `fewer` gives
    the same bits is found on its first use, by evaluating those inputs both ways. `checked`
    remembers the outcome for the network's shapes and the number of threads, and belongs to one
    network in one dtype. Measured, not assumed: see tests/test_sampling.py.

    With `alone`, a call of fewer images than `rows` for which no size gives equal bits is made as
    it is, and `exact` becomes false; otherwise it is filled up to `rows`.
    """

    def __init__(
        self,
        network: Network,
        rows: int,
        *,
        larger: Sequence[int] = (),
        fewer: Sequence[int] = (),
        checked: dict[Hashable, bool] | None = None,
        alone: bool = False,
    ) -> None:
        self.network = network
        self.rows = rows
        self.larger, self.fewer = larger, fewer
        self.checked = {} if checked is None else checked
        self.alone = alone
        self.exact = True

    def __call__(self, x_t: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        outputs, start = [], 0
        while start < len(x_t):
            left = len(x_t) - start
            size = max((size for size in self.larger if size <= left), default=self.rows)
            inputs = [part[start : start + size] for part in (x_t, t, tokens)]
            outputs.append(self._few(inputs) if left < self.rows else self._many(inputs, size))
            start += size
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _many(self, inputs: Sequence[Tensor], size: int) -> Tensor:
        key = self._key(inputs, size)
        if size == self.rows or not self.checked.get(key, True):
            return self._in_parts(inputs)
        output = self.network(*inputs)
        if key not in self.checked:
            exact = self._in_parts(inputs)
            self.checked[key] = torch.equal(output, exact)
            return exact
        return output

    def _few(self, inputs: Sequence[Tensor]) -> Tensor:
        """Fewer images than `rows`."""
        count, exact = len(inputs[0]), None
        for size in sorted(size for size in self.fewer if size >= count):
            key = self._key(inputs, size)
            if not self.checked.get(key, True):
                continue
            output = self.network(*_filled(inputs, size))
            if key not in self.checked:
                exact = self.network(*_filled(inputs, self.rows)) if exact is None else exact
                self.checked[key] = torch.equal(output, exact[:size])
            if self.checked[key]:
                return output[:count]
        if self.alone:
            self.exact = False
            return self.network(*inputs)
        return self._in_parts(inputs) if exact is None else exact[:count]

    def _in_parts(self, inputs: Sequence[Tensor]) -> Tensor:
        outputs = []
        for start in range(0, len(inputs[0]), self.rows):
            parts = [part[start : start + self.rows] for part in inputs]
            outputs.append(self.network(*_filled(parts, self.rows))[: len(parts[0])])
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _key(self, inputs: Sequence[Tensor], size: int) -> Hashable:
        x_t, _, tokens = inputs
        return (size, x_t.shape[1:], tokens.shape[1:], torch.get_num_threads())


def _filled(inputs: Sequence[Tensor], rows: int) -> list[Tensor]:
    """`inputs` with their last row repeated up to `rows` rows."""
    missing = rows - len(inputs[0])
    if missing == 0:
        return list(inputs)
    return [torch.cat([part, part[-1:].expand(missing, *part.shape[1:])]) for part in inputs]


def predicted_x0(
    networks: Mapping[Branch, Network | None],
    process: Process,
    x_t: Tensor,
    t: Tensor,
    branches: Sequence[Branch],
    tokens: Callable[[tuple[Branch, ...]], Tensor],
) -> dict[Branch, Tensor]:
    """The x0 (B, C, H, W) of each of `branches`; those of one network share a call.

    `t`: (B,) times of the process; `tokens`: those of several branches, joined along the batch.
    """
    time, taken = process.network_time(t), process.network_input(x_t, t)
    predicted: dict[Branch, Tensor] = {}
    for network in dict.fromkeys(networks[branch] for branch in branches):
        assert network is not None, "this guidance needs a weak network"
        together: tuple[Branch, ...] = tuple(b for b in branches if networks[b] is network)
        count = len(together)
        joined = network(torch.cat([taken] * count), time.repeat(count), tokens(together))
        for branch, output in zip(together, joined.to(x_t.dtype).split(len(x_t)), strict=True):
            predicted[branch] = process.x0(output, x_t, t)
    return predicted


def nfe_of(times: Tensor, process: Process, guidance: Guidance) -> int:
    """Network evaluations an image of sampling over `times` (K,)."""
    return sum(len(guidance.branches(level)) for level in process.noise_level(times).tolist())


def sample(
    network: Network,
    solver: Solver,
    *,
    process: Process,
    noise: Tensor,
    tokens: dict[Branch, Tensor],
    guidance: Guidance,
    weak_network: Network | None = None,
    x0_range: ValueRange | None,
    on_step: OnStep | None = None,
) -> Sampled:
    """Turn noise into images.

    `noise`: (B, C, H, W), x_t at the first level of `solver`, as good as standard normal where that
    is the noisiest; its dtype is that of all arithmetic outside the network;
    `tokens`: (B, L, D) for each branch the guidance needs; `weak_network`: of a guidance with the
    branch `weak`; `x0_range`: x0 is clamped to it at every evaluation, None for no clamping.
    """
    x_t = noise
    memory: dict[str, Tensor] = {}
    networks: dict[Branch, Network | None] = {
        "cond": network,
        "uncond": network,
        "weak": weak_network,
    }
    joined_tokens = _joined(tokens)
    levels = process.noise_level(solver.times).tolist()
    nfe = 0
    for index, t in enumerate(solver.times):
        times = t.to(x_t.device).expand(len(x_t))
        branches = guidance.branches(levels[index])
        predicted = predicted_x0(networks, process, x_t, times, branches, joined_tokens)
        x0 = guidance.combine(predicted, memory)
        if x0_range is not None:
            x0 = x0.clamp(*x0_range)
        x_t = solver.step(x0, x_t, index=index)
        nfe += len(branches)
        if on_step is None:
            continue
        change = on_step(Step(index=index, count=len(levels), t=t.item(), x_t=x_t, x0=x0))
        if change is not None:
            x_t = x_t if change.x_t is None else change.x_t.to(x_t)
            guidance = change.guidance or guidance
            joined_tokens = joined_tokens if change.tokens is None else _joined(change.tokens)
            if change.stop:
                break
    return Sampled(
        x0=x_t if x0_range is None else x_t.clamp(*x0_range),
        nfe=nfe,
        first_t=solver.times[0].item(),
    )


def _joined(tokens: Mapping[Branch, Tensor]) -> Callable[[tuple[Branch, ...]], Tensor]:
    """The tokens of several branches along the batch; those of one tuple are one tensor."""
    return cache(lambda branches: torch.cat([tokens[branch] for branch in branches]))
