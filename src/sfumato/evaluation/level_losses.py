"""The loss on given images at given noise levels, with noise that is always the same.

The training loss averages over random levels and images; this one tells the levels apart, and
images that were trained on from those that were not. Where it rises on the latter, the model learns
its training images by heart.
"""

import torch
from torch import Tensor

from sfumato.base.errors import InputError
from sfumato.base.randomness import generator_for
from sfumato.data.records import Records
from sfumato.diffusion.process import Process
from sfumato.evaluation.metrics.intervals import Estimate, bootstrap_mean
from sfumato.generation.model import Model

QUANTILES = (0.1, 0.35, 0.65, 0.9)
"""Of the law of t in training, little noise first."""
_ROWS = 64


def levels_of(process: Process) -> Tensor:
    """The times of `QUANTILES`, (L,)."""
    drawn = process.draw_t(4_096, generator_for("noise levels of losses")).sort().values
    return drawn[[int(share * len(drawn)) for share in QUANTILES]]


def chosen(records: Records, count: int) -> Tensor:
    """Rows of up to `count` images, the same each time, (N,)."""
    order = torch.randperm(len(records), generator=generator_for("images of losses"))
    return order[:count].sort().values


@torch.no_grad()
def level_losses(model: Model, records: Records, rows: Tensor) -> list[Estimate]:
    """Mean squared error of the network's output at each level of `levels_of`, with the bootstrap
    interval over images; the images `rows` with their first captions, without mirroring.

    `InputError` for a distilled student, which was trained for another loss.
    """
    if model.sampling.form.folded:
        raise InputError(
            "The model is a distilled student, trained for another loss.",
            hint="Measure its teacher.",
        )
    losses = [
        _losses(model, records, rows[start : start + _ROWS], start)
        for start in range(0, len(rows), _ROWS)
    ]
    return [bootstrap_mean(values) for values in torch.cat(losses, dim=1)]


def _losses(model: Model, records: Records, rows: Tensor, start: int) -> Tensor:
    """(L, B) float64."""
    process, device = model.process, model.device
    dtype = next(model.network.parameters()).dtype
    x0 = model.codec.encode(records.images[rows].to(device)).to(dtype)
    captions = [records.captions[int(first)] for first in records.prompts[rows, 0]]
    tokens = model.tokens(captions)["cond"]
    found = []
    for level, time in enumerate(levels_of(process)):
        noise = torch.randn(x0.shape, generator=generator_for("noise of losses", level, start))
        t, eps = time.to(device).expand(len(x0)), noise.to(x0)
        x_t = process.add_noise(x0, eps, t)
        output = model.network(
            process.network_input(x_t, t), process.network_time(t), tokens, return_dict=False
        )[0]
        error = (output.double() - process.target(x0, eps, t).double()).square()
        found.append(error.flatten(1).mean(1).cpu())
    return torch.stack(found)
