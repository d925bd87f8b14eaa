"""`sfumato bench inpainting`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.base.progress import Progress
from sfumato.cli.evaluate import data_of
from sfumato.cli.options import Data, Device, ModelPath, SamplingOptions, Seed
from sfumato.cli.show import log, log_wrapped, new_table, open_model, print_table, unused

if TYPE_CHECKING:
    from sfumato.bench.inpainting import Inpainted


def inpainting(
    model: ModelPath,
    *,
    count: Annotated[int, typer.Option(min=1, help="Test images to complete.")] = 500,
    classifier: Annotated[
        str, typer.Option(help="Classifier of the class accuracy: auto, or a run of a classifier.")
    ] = "auto",
    data: Data = None,
    sampling: SamplingOptions,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option(help="JSON to write, with a picture beside it.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Class accuracy of test images whose lower half is hidden and painted by their caption."""
    opened = open_model(model, device, **sampling.changes())
    from sfumato.bench.inpainting import measure_inpainting, save_inpainting

    found, picture = measure_inpainting(
        opened,
        data_of(opened, data),
        count=count,
        first_seed=seed,
        classifier=classifier,
        log=log,
        on_images=Progress().of("images"),
    )
    print_inpainting(found, count)
    if out is not None:
        path = unused(out)
        save_inpainting(found, picture, path)
        log(f"Record  {path}\nPicture {path.with_suffix('.png')}")


def print_inpainting(found: "Inpainted", count: int) -> None:
    """The accuracies, and whether the bar is reached."""
    from sfumato.bench.inpainting import BAR

    table = new_table(["images", "class accuracy"])
    table.add_row("lower half painted", str(found.accuracy))
    table.add_row("sampled whole", str(found.unmasked))
    table.add_row("real", str(found.real))
    print_table(table)
    verdict = "reached" if found.reached else "missed"
    log_wrapped(
        f"{count} images, {found.nfe} network evaluations each; known values that changed: "
        f"{found.changed}. Bar: {100 * BAR:.0f} % and none, {verdict}."
    )
    log_wrapped(f"Classifier: {found.classifier}.")
