"""A stand-in for a data set: noise of a preset's own size, with captions of its own length."""

from pathlib import Path

import numpy as np

from sfumato.bench.network_cost import LARGEST_AUTO_PX
from sfumato.config.schema import DiffusionExperiment
from sfumato.data.arrays import write_images

IMAGES = 1_024
_CLASSES = 10
_CAPTION = "A handwritten digit {}"
"""In words that the text encoder of the package knows."""


def on_stand_in(
    experiment: DiffusionExperiment, folder: Path, *, images: int = IMAGES
) -> DiffusionExperiment:
    """`experiment` on noise that is written into `folder`, with the text encoder of the package: as
    fast and as large as on its data, and neither these nor a download are needed."""
    data = experiment.data
    side = LARGEST_AUTO_PX if data.resolution == "auto" else data.resolution
    channels = 3 if data.channels == "auto" else data.channels
    shape = (images, side, side, channels)[: 4 if channels == 3 else 3]
    noise = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    write_images((noise, [_CAPTION.format(index % _CLASSES) for index in range(images)]), folder)
    found = type(data)(
        source=str(folder),
        resolution=side,
        channels=channels,
        caption=("{caption}",),
        value_range=data.value_range,
        loading="memory",
    )
    text = experiment.text.model_copy(update={"encoder": "bundled"})
    return experiment.model_copy(update={"data": found, "text": text, "origin": None})
