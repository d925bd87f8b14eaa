"""Grids of a model's samples: guidance as rows, prompts as columns."""

from collections.abc import Sequence

from sfumato.diffusion.guidance import parse_guidance
from sfumato.generation.model import Model
from sfumato.report.grids import labelled_grid


def scale_grid(
    model: Model,
    prompts: Sequence[str],
    labels: Sequence[str],
    *,
    scales: Sequence[float],
    forms: Sequence[str] = (),
    first_seed: int = 0,
) -> bytes:
    """A PNG with forms of guidance and scales as rows, prompts as columns; a column has one seed.

    Without `forms` the model's own is used; labels name the form where there are several.
    """
    seeds = range(first_seed, first_seed + len(prompts))
    rows = [(form, scale) for form in forms or [model.sampling.guidance] for scale in scales]
    samples = [model.sample(prompts, seeds, guidance=scale, form=form) for form, scale in rows]
    return labelled_grid(
        [images.tensor for images in samples],
        row_labels=[
            f"{parse_guidance(form).label}, w = {scale:g}" if len(forms) > 1 else f"w = {scale:g}"
            for form, scale in rows
        ],
        column_labels=labels,
        settings=[settings for images in samples for settings in images.settings],
    )
