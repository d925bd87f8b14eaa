"""Inpainting measured: real images with a part hidden are completed and classified.

The prompt is the caption of the image's class, and the rest of the image stays.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato import __version__
from sfumato.base.environment import command, environment, now
from sfumato.base.errors import InputError
from sfumato.base.files import write_bytes, write_json
from sfumato.config.sections import DataConfig
from sfumato.data.records import Records, load_records
from sfumato.evaluation.classifier import ImageClassifier, load_classifier
from sfumato.evaluation.metrics.intervals import Estimate, wilson
from sfumato.evaluation.prompt_set import class_prompts
from sfumato.generation.model import Model
from sfumato.generation.samples import Samples
from sfumato.report.grids import labelled_grid

BAR = 0.95
"""Class accuracy of completed digits."""
_GREY = 128
_SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class Inpainted:
    """`accuracy`: class accuracy of the completed images; `real`: of the same images whole;
    `unmasked`: of images of the same prompts and seeds that nothing is known of; `changed`: known
    values that are not those given; `nfe`: network evaluations an image."""

    accuracy: Estimate
    real: Estimate
    unmasked: Estimate
    changed: int
    nfe: int
    classifier: str
    settings: dict[str, Any]

    @property
    def reached(self) -> bool:
        return self.accuracy.value >= BAR and self.changed == 0


def lower_half(side_px: int) -> Tensor:
    """The mask that hides the lower half: bool (1, H, W), true where it is painted anew."""
    rows = torch.arange(side_px) >= side_px // 2
    return rows[None, :, None].expand(1, side_px, side_px)


def measure_inpainting(
    model: Model,
    data: DataConfig,
    *,
    count: int,
    first_seed: int = 0,
    classifier: str = "auto",
    log: Callable[[str], None] = lambda text: None,
    on_images: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Inpainted, bytes]:
    """The first `count` test images of `data` without their lower half, each by its own seed.

    Also a PNG of the first of them: whole, hidden, completed. `on_images` gets (sampled, in all).
    `InputError` for data without classes or with fewer images.
    """
    records = _test_images(data, count)
    judge = load_classifier(data, classifier, device=model.device, log=log)
    real, labels = records.images[:count], records.labels[:count]
    prompts, seeds = class_prompts(records, labels, ()), range(first_seed, first_seed + count)
    mask = lower_half(real.shape[-1])
    done = 0

    def on_batch(images: int) -> None:
        nonlocal done
        on_images(done := done + images, 2 * count)

    options = {"alone": False, "on_batch": on_batch}
    completed = model.sample(prompts, seeds, init_image=list(real), mask=mask, **options)
    unmasked = model.sample(prompts, seeds, **options)
    keep = ~mask[None].expand_as(real)
    found = Inpainted(
        accuracy=_accuracy(judge, completed.tensor, labels),
        real=_accuracy(judge, real, labels),
        unmasked=_accuracy(judge, unmasked.tensor, labels),
        changed=int((completed.tensor[keep] != real[keep]).sum()),
        nfe=completed.nfe,
        classifier=f"{judge.description}, {judge.test_accuracy} on {records.description}",
        settings=_settings(completed, seeds),
    )
    return found, _picture(real, mask, completed)


def _test_images(data: DataConfig, count: int) -> Records:
    """`InputError` where there are no classes, or fewer images."""
    records = load_records(data, "reference")
    if not records.class_names or len(records) < count:
        raise InputError(
            f"{data.source} has {len(records)} test images of {len(records.class_names)} classes.",
            hint=f"Inpainting is measured on classes, here with {count} images: see --count.",
        )
    return records


def _accuracy(judge: ImageClassifier, images: Tensor, labels: Tensor) -> Estimate:
    return wilson(int((judge.predict(images) == labels).sum()), len(labels))


def _settings(samples: Samples, seeds: range) -> dict[str, Any]:
    """Those that all images share, and their seeds."""
    own = ("prompt", "seed", "init_image_sha256")
    common = {key: value for key, value in samples.settings[0].items() if key not in own}
    return common | {"seeds": [seeds[0], seeds[-1]]}


def _picture(real: Tensor, mask: Tensor, completed: Samples) -> bytes:
    hidden = torch.where(mask, torch.tensor(_GREY, dtype=torch.uint8), real)
    rows = [images[:_SHOWN] for images in (real, hidden, completed.tensor)]
    return labelled_grid(
        rows,
        row_labels=["real", "given", "completed"],
        column_labels=[""] * len(rows[0]),
        settings=completed.settings[:_SHOWN],
    )


def save_inpainting(found: Inpainted, picture: bytes, path: Path) -> None:
    """The record at `path`, the picture beside it."""
    record = {
        **asdict(found),
        "bar": BAR,
        "environment": environment(),
        "sfumato": __version__,
        "date": now(),
        "command": command(),
    }
    write_json(path, record)
    write_bytes(path.with_suffix(".png"), picture)
