"""`sfumato compare`."""

from pathlib import Path
from typing import Annotated

import typer

from sfumato.base.progress import Progress
from sfumato.cli.checks import checked_folder
from sfumato.cli.evaluate import checked_settings
from sfumato.cli.options import (
    Guidance,
    HeldOut,
    MeasureOptions,
    stoppable,
)
from sfumato.cli.show import log, print_wide, unused
from sfumato.generation.bundle_names import check_comparable


def compare(
    first: Annotated[
        str,
        typer.Argument(help="A run, a pipeline, bundled:mnist, an evaluation; PATH@3: w = 3."),
    ],
    second: Annotated[str, typer.Argument(help="What it is compared with.")],
    *,
    measure: MeasureOptions,
    guidance: Guidance = None,
    held_out: HeldOut = False,
    out: Annotated[
        Path, typer.Option(callback=checked_folder, help="A new folder for the page.")
    ] = Path("comparison"),
) -> None:
    """Two models on the same seeds and captions: paired tests and one page, side by side."""
    overrides = measure.overrides(evaluation__held_out=held_out or None)
    checked_settings(overrides)
    for name in (first, second):
        check_comparable(name)
    from sfumato.evaluation.compare import compare as compare_images
    from sfumato.evaluation.comparison_page import format_comparison

    with stoppable():
        found = compare_images(
            first,
            second,
            guidance=guidance,
            overrides=overrides,
            out=unused(out),
            device=measure.device,
            log=log,
            on_images=Progress(),
        )
    print_wide(lambda width: format_comparison(found, width=width))
    log(f"Page    {found.folder}/comparison.html")
