"""Image sets that a model samples."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sfumato.base.environment import environment
from sfumato.base.images import ValueRange, to_uint8
from sfumato.evaluation.image_set import ImageSet, OnImages
from sfumato.evaluation.metrics.features import Tensors
from sfumato.evaluation.prompt_set import PromptSet
from sfumato.evaluation.store import digest_of, file_name
from sfumato.generation.model import Model
from sfumato.training.distributed import ALONE, World


@dataclass(frozen=True, kw_only=True)
class _Sampling:
    """What makes the parts of a set."""

    model: Model
    prompts: Sequence[str]
    seeds: Sequence[int]
    x0_range: ValueRange | None

    def settings(self) -> dict[str, Any]:
        """Everything that an image depends on beside its prompt and seed."""
        model = self.model
        x0_range = self.x0_range or model.codec.x0_range
        return {
            **model.settings(),
            "x0_range": None if x0_range is None else list(x0_range),
            "model": dict(model.provenance),
            "device": model.device.type,
            "environment": environment(),
        }

    def make(self, part: range) -> Tensors:
        started = time.perf_counter()
        rows = slice(part.start, part.stop)
        self.model.text_encoder.check(self.prompts)  # one warning for all parts
        samples = self.model.sample(
            self.prompts[rows], self.seeds[rows], x0_range=self.x0_range, alone=False
        )
        made = {"images": samples.tensor}
        if self.x0_range is not None:
            made["stretched"] = stretched(samples.x0).cpu()
        return made | {"seconds": torch.tensor(time.perf_counter() - started)}

    def key(self, part: range) -> str:
        """A digest of the prompts and seeds of a part."""
        rows = slice(part.start, part.stop)
        return digest_of([list(self.seeds[rows]), list(self.prompts[rows])])


def sampled_set(
    model: Model,
    prompts: PromptSet | Sequence[str],
    seeds: Sequence[int],
    *,
    guidance: float | None = None,
    form: str | None = None,
    folder: Path | None = None,
    x0_range: ValueRange | None = None,
    tensor: Literal["images", "stretched"] = "images",
) -> ImageSet:
    """Images that `model` samples, one for each (prompt, seed), at its guidance scale or another
    (`guidance`), by its form of guidance or another (`form`).

    `folder`: where images of any settings are kept, each of its own in a folder inside. With an
    `x0_range` the images are also kept `stretched` from the lowest to the highest value of each,
    which `tensor` chooses.
    """
    asked = prompts if isinstance(prompts, PromptSet) else PromptSet(prompts=list(prompts))
    if len(asked) != len(seeds):
        raise ValueError(f"{len(seeds)} seeds for {len(asked)} prompts")
    own = model.with_(guidance=guidance, form=form)
    sampling = _Sampling(model=own, prompts=asked.prompts, seeds=seeds, x0_range=x0_range)
    settings, title = sampling.settings(), own.title
    images = ImageSet(
        title=title,
        name=f"{file_name(title)}-{digest_of({**settings, 'stretched': x0_range is not None})}",
        count=len(asked),
        make=sampling.make,
        settings={**settings, "seeds": [seeds[0], seeds[-1]]},
        labels=asked.labels,
        prompts=asked.prompts if any(asked.prompts) else None,  # no image agrees with nothing
        balanced=asked.balanced,
        nfe=own.nfe(),
        tensor=tensor,
        part_key=sampling.key,
    )
    return images if folder is None else images.kept_in(folder)


def complete(
    sets: Sequence[ImageSet],
    on_images: OnImages,
    *,
    what: str = "images",
    world: World = ALONE,
) -> None:
    """Sample the parts of all `sets` that are not there yet; each rank of `world` takes its share,
    and all of them are there when it returns.

    `on_images` counts images, or network evaluations where `what` is "network evaluations".
    """
    weights = [(one.nfe or 1) if what == "network evaluations" else 1 for one in sets]
    total = sum(weight * one.count for weight, one in zip(weights, sets, strict=True))
    every = [(place, part) for place, one in enumerate(sets) for part in one.missing()]
    world.wait()  # every rank has listed the same parts before one of them adds to them
    mine = every[world.rank :: world.size]
    missing = [[part for place, part in mine if place == number] for number in range(len(sets))]
    left = sum(
        weight * sum(map(len, parts)) for weight, parts in zip(weights, missing, strict=True)
    )
    if what == "network evaluations":
        on_images(what, total - left, total)
    for weight, one, parts in zip(weights, sets, missing, strict=True):
        for part in parts:
            one.part(part)
            left -= weight * len(part)
            on_images(what, total - left, total)
    world.wait()


def stretched(x0: Tensor) -> Tensor:
    """Each image of float (N, C, H, W) from its lowest value to its highest, as uint8 0 to 255.

    What "normalise to [0, 255]" means to plotting tools. An even image becomes black.
    """
    low, high = x0.amin(dim=(1, 2, 3), keepdim=True), x0.amax(dim=(1, 2, 3), keepdim=True)
    return to_uint8((x0 - low) / (high - low).clamp_min(1e-12), (0.0, 1.0))
