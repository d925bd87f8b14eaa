"""Training a creative adversarial network, and its samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.base.errors import ConfigError, InputError
from sfumato.base.images import grid, png_bytes, to_pil, to_uint8
from sfumato.base.randomness import generator_for
from sfumato.config.schema import CanExperiment
from sfumato.data.loading import DeviceBatches, refuse_stream
from sfumato.data.records import Records, load_records, trained_on
from sfumato.data.survey import settle
from sfumato.evaluation.metrics.manifold import precision_recall
from sfumato.generation.bundle_names import CAN_FILE
from sfumato.generation.can import RESULT, TEXT, caption_means, prompts_of_classes
from sfumato.generation.loading import load
from sfumato.models.can import Generator, build_can
from sfumato.text.opening import load_text_encoder
from sfumato.training.distributed import World
from sfumato.training.hooks import SampleHook
from sfumato.training.loop import Run
from sfumato.training.objectives.can import CanObjective
from sfumato.training.run import Method

_COLUMNS = 8
WATCHED, _FEWEST_WATCHED, _WATCHED_PX = 256, 5, 16
"""Images of a look for collapse, the fewest real ones, and the pixels that all are brought to."""


def _resolve(experiment: CanExperiment) -> CanExperiment:
    """`ConfigError` for images of another size than the network's: before any is decoded."""
    data, size = settle(experiment.data), experiment.network.resolution
    if data.resolution != size:
        raise ConfigError(
            f"network.generator_channels makes images of {size} pixels; data.resolution is "
            f"{data.resolution}.",
            hint=f"Set data.resolution={size}, or give another number of levels to "
            "network.generator_channels and network.discriminator_channels: n make 4 * 2^n pixels.",
        )
    return experiment.model_copy(update={"data": data})


def _build(experiment: CanExperiment, folder: Path, device: torch.device, world: World) -> Run:
    """`ConfigError` for a stream, `InputError` for a data set without two classes."""
    data, training = experiment.data, experiment.training
    refuse_stream(data, experiment.name)
    records = _of_present_classes(load_records(data, "train"))
    _check_classes(records, experiment)
    conditions = _Conditions.of(experiment, records, device)
    generator, discriminator = build_can(
        experiment.network,
        channels=records.images.shape[1],
        classes=len(records.class_names),
        text_width=conditions.width,
        seed=experiment.seed,
    )
    objective = CanObjective(
        generator.to(device), discriminator.to(device), training, conditions.captions
    )
    average = objective.average.module
    spread = torch.linspace(0, len(records) - 1, WATCHED).long().unique()
    real = records.images[spread]
    sample = SampleHook(
        folder / "samples",
        every_images=training.sample_every_images,
        sample=lambda: _sample_grid(average, conditions.shown, seed=experiment.seed),
    )
    return Run(
        folder=folder,
        objective=objective,
        batches=DeviceBatches(
            records, seed=experiment.seed, batch_size=training.batch_size, device=device
        ),
        seed=experiment.seed,
        total_images=training.images,
        device=device,
        provenance={"experiment": experiment.name},
        notes={
            "classes": list(records.class_names),
            "captions": conditions.prompts,
            **conditions.notes,
        },
        hooks=(sample,),
        watch=None
        if len(real) < _FEWEST_WATCHED
        else lambda: collapse(
            _watched_images(average, conditions.shown, seed=experiment.seed), real
        ),
        watch_every_images=training.sample_every_images,
    )


@dataclass(frozen=True, kw_only=True)
class _Conditions:
    """What a conditional network is given: `captions` (P, D) of the data set, `width` D, or None
    and 0 where that is the class; `shown`: the condition of each class, (K,) or (K, D), and
    `prompts` what asks for it."""

    captions: Tensor | None
    width: int
    shown: Tensor
    prompts: list[str]
    notes: Mapping[str, Any]

    @classmethod
    def of(cls, experiment: CanExperiment, records: Records, device: torch.device) -> Self:
        if not experiment.network.reads_captions:
            labels = torch.arange(len(records.class_names))
            prompts = prompts_of_classes(records.class_names, records.class_captions)
            return cls(captions=None, width=0, shown=labels, prompts=prompts, notes={})
        encoder = load_text_encoder(experiment.text)
        captions = caption_means(encoder, records.captions)
        return cls(
            captions=captions.to(device),
            width=encoder.dim,
            shown=caption_means(encoder, records.class_captions),
            prompts=list(records.class_captions),
            notes={TEXT: {**experiment.text.model_dump(), "identity": encoder.identity}},
        )


def _watched_images(generator: Generator, shown: Tensor, *, seed: int) -> Tensor:
    """uint8 (WATCHED, C, H, W) of the same z each time; of a conditional network all classes."""
    z = torch.randn(WATCHED, generator.config.latent, generator=generator_for(seed, "watched"))
    return _images_of(generator, z, shown[torch.arange(WATCHED) % len(shown)])


def collapse(images: Tensor, real: Tensor) -> dict[str, float]:
    """What falls when a generator repeats itself, of uint8 (N, C, H, W) beside real ones, by their
    pixels at `_WATCHED_PX`: `pairwise_distance`, the mean distance of two images over that of two
    real ones, and `recall`, the share of real images among generated ones (Kynkaanniemi et al.
    2019)."""
    rows, real_rows = _small(images), _small(real)
    apart, real_apart = (float(torch.pdist(one).mean()) for one in (rows, real_rows))
    recall = precision_recall(rows, real_rows).recall.value
    return {"pairwise_distance": apart / max(real_apart, 1e-12), "recall": recall}


def _small(images: Tensor) -> Tensor:
    """float64 (N, D): each image at `_WATCHED_PX` pixels or less."""
    side = min(_WATCHED_PX, images.shape[-1])
    return F.adaptive_avg_pool2d(images.double() / 255, side).flatten(1)


def _of_present_classes(records: Records) -> Records:
    """Without the classes that no image has: a style that the discriminator never sees is none to
    be undecided between, nor one to draw."""
    present = records.present
    if len(present) == len(records.class_names):
        return records
    return replace(
        records,
        labels=torch.searchsorted(torch.tensor(present), records.labels),
        class_names=[records.class_names[label] for label in present],
        class_captions=[records.class_captions[label] for label in present],
    )


def _check_classes(records: Records, experiment: CanExperiment) -> None:
    if len(records.class_names) < 2:
        raise InputError(
            f"{experiment.data.source} has no classes, so there are no styles to be undecided of.",
            hint="Put the images into a folder for each style, or name a column of labels with "
            "data.label_column.",
        )


def _sample_grid(generator: Generator, shown: Tensor, *, seed: int) -> bytes:
    """A PNG of the same z each time; of a conditional network the classes in turn."""
    count = _COLUMNS * 4
    z = torch.randn(count, generator.config.latent, generator=generator_for(seed, "sample grid"))
    images = _images_of(generator, z, shown[torch.arange(count) % len(shown)])
    scale = max(1, 64 // images.shape[-1])
    return png_bytes(to_pil(grid(images, _COLUMNS, scale=scale)))


@torch.no_grad()
def _images_of(generator: Generator, z: Tensor, condition: Tensor) -> Tensor:
    """uint8 (B, C, H, W) on the CPU of z (B, latent) and a condition each."""
    device = next(generator.parameters()).device
    return to_uint8(generator(z.to(device), condition.to(device)), (-1.0, 1.0)).cpu()


def _finish(experiment: CanExperiment, run: Run) -> None:
    """Export the averaged generator."""
    if not (run.folder / RESULT / CAN_FILE).exists():
        load(run.folder, device="cpu").export(run.folder / RESULT)


def _describe(experiment: CanExperiment, run: Run) -> Sequence[str]:
    return (
        f"Generator in {run.folder / RESULT}; its samples over training are in "
        f"{run.folder / 'samples'}.",
        f"  sfumato sample {run.folder} --count 16",
    )


CAN = Method(
    schema=CanExperiment,
    resolve=_resolve,
    images=lambda experiment: trained_on(experiment.data, "train"),
    build=_build,
    finish=_finish,
    describe=_describe,
)
