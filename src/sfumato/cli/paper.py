"""`sfumato paper comparison`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.base.progress import Progress
from sfumato.cli.options import Data, StudyOptions, register, stoppable
from sfumato.cli.show import (
    log,
    log_where_from,
    log_wrapped,
    new_table,
    open_model,
    print_claims,
    print_table,
)
from sfumato.generation.bundle_names import check_model, path_and_scale

if TYPE_CHECKING:
    from sfumato.generation.model import Model

SHOWN = (
    "frechet.classifier",
    "recall.classifier",
    "coverage.classifier",
    "class_accuracy",
    "style_ambiguity",
    "novelty.classifier",
)


def _checked(names: list[str]) -> list[str]:
    for name in names:
        check_model(path_and_scale(name)[0])
    return names


def comparison(
    models: Annotated[
        list[str],
        typer.Argument(
            callback=_checked, help="Two or more: runs of diffusion and CANs; PATH@3: w = 3."
        ),
    ],
    *,
    data: Data = None,
    curves: Annotated[
        bool, typer.Option(help="Sample with every kept checkpoint, for curves.")
    ] = True,
    study: StudyOptions,
) -> None:
    """Does diffusion outperform a CAN? One table, and a verdict for each pair.

    Runs of one experiment with different seeds give a mean and a spread. Interrupted and started
    again, the command resumes.
    """
    from sfumato.cli.evaluate import data_of
    from sfumato.paper.comparison import ComparisonConfig, measure_comparison

    config = study.config(ComparisonConfig, curves=curves)
    opened = [_opened(name, study.device) for name in models]
    with stoppable():
        found = measure_comparison(
            opened,
            config,
            base=study.out or Path("runs") / "comparison",
            data=data_of(opened[0], data),
            log=log,
            on_images=Progress(),
        )
    log_where_from(found.from_cache, found.date)
    from sfumato.evaluation.metrics.registry import title_of
    from sfumato.studies.charts import format_value

    titles = [title_of(key).replace(" (classifier)", "") for key in SHOWN]
    table = new_table(["", "seed", "core-s", *titles], padding=(0, 2, 0, 0))
    for one in found.models:
        seconds = "-" if one.core_seconds is None else f"{one.core_seconds:,.0f}"
        cells = [format_value(key, one.metrics.get(key)) for key in SHOWN]
        table.add_row(one.label, str(one.seed), seconds, *cells)
    table.add_row("real", "", "", *(format_value(key, found.real.get(key)) for key in SHOWN))
    print_table(table)
    log("")
    print_claims(found.claims)
    log_wrapped(found.rule)
    log(f"\nPage {found.folder}/comparison.md")


def _opened(name: str, device: str) -> "Model":
    path, scale = path_and_scale(name)
    return open_model(path, device, can=True, guidance=scale)


paper_app = typer.Typer(help="What the paper claims and does not show.", no_args_is_help=True)
register(
    paper_app,
    [(comparison, "sfumato paper comparison runs/mnist@2 runs/mnist@0 runs/can runs/can-paper")],
)
