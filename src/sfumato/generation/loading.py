"""Stand-in for opening a trained model."""

from pathlib import Path

from sfumato.generation.model import ImageGenerator, Model, averages_in

__all__ = ["averages_in", "load"]


def load(
    path: str | Path,
    *,
    device: str = "auto",
    checkpoint: int | None = None,
    average: str | None = None,
) -> Model:
    """A model from a run, a pipeline folder or a bundle."""
    generator = ImageGenerator.open(path, device=device, checkpoint=checkpoint)
    if average is not None:
        generator.use_average(average)
    return Model.of(generator)
