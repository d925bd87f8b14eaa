"""`sfumato grid`."""

from pathlib import Path
from typing import Annotated

import typer

from sfumato.base.memory import collection_paused
from sfumato.cli.checks import checked_png
from sfumato.cli.options import (
    Forms,
    LoadingOptions,
    ModelPath,
    Scales,
    Seed,
    SolverOptions,
)
from sfumato.cli.show import log, open_model, unused, warn_of_sampling

DEFAULT_SCALES = (0.0, 1.0, 2.0, 3.0, 5.0)


def grid(
    model: ModelPath,
    prompts: Annotated[
        list[str] | None, typer.Argument(help="Prompts; without any, the data set's captions.")
    ] = None,
    *,
    out: Annotated[Path, typer.Option(callback=checked_png, help="The PNG to write.")] = Path(
        "grid.png"
    ),
    scales: Scales = None,
    forms: Forms = None,
    solver: SolverOptions,
    seed: Seed = 0,
    loading: LoadingOptions,
) -> None:
    """Sample a grid: guidance as rows, prompts as columns, the same seed in a column."""
    with collection_paused(freeze=True):
        from sfumato.base.files import write_bytes
        from sfumato.generation.grids import scale_grid

        opened = open_model(model, loading, **solver.changes())
    scales = scales or opened.sampling.scales_among(DEFAULT_SCALES)
    for form in forms or [None]:
        warn_of_sampling(opened.with_(form=form), scales)
    captions, labels = (prompts, prompts) if prompts else opened.examples()
    path = unused(out)
    picture = scale_grid(
        opened, captions, labels, scales=scales, forms=forms or (), first_seed=seed
    )
    write_bytes(path, picture)
    log(str(path))
