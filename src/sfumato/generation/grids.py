"""Grids of a model's samples: guidance as rows, prompts as columns."""

from collections.abc import Sequence

from sfumato.diffusion.guidance import GuidanceConfig
from sfumato.generation.model import ImageGenerator
from sfumato.report.grids import labelled_grid


def scale_grid(
    generator: ImageGenerator,
    prompts: Sequence[str],
    labels: Sequence[str],
    *,
    scales: Sequence[float],
    forms: Sequence[GuidanceConfig] = (),
    first_seed: int = 0,
) -> bytes:
    """Forms of guidance and scales as rows, prompts as columns; a column has one seed.

    Without `forms` the generator's own is drawn; labels name the form where there are several.
    """
    seeds = range(first_seed, first_seed + len(prompts))
    rows = [(form, scale) for form in forms or [generator.guidance] for scale in scales]
    return labelled_grid(
        [
            list(generator.draw(prompts, seeds, guidance_scale=scale, guidance=form))
            for form, scale in rows
        ],
        row_labels=[
            f"{form.label}, w = {scale:g}" if len(forms) > 1 else f"w = {scale:g}"
            for form, scale in rows
        ],
        column_labels=labels,
    )
