"""`sfumato findings`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.base.progress import Progress
from sfumato.cli.checks import checked_model
from sfumato.cli.options import (
    ModelPath,
    Scales,
    SolverOptions,
    StudyOptions,
    stoppable,
)
from sfumato.cli.show import (
    log,
    log_where_from,
    log_wrapped,
    new_table,
    open_model,
    print_claims,
    print_table,
)

if TYPE_CHECKING:
    from sfumato.paper.findings import Findings

SHOWN = {
    "border_rms": "outer 4 px",
    "edge_rms": "outer 2 px",
    "high_frequency": "above N/2",
    "saturated": "saturated",
    "class_accuracy": "accuracy",
    "class_accuracy.4 and 5": "of 4 and 5",
    "diversity.classifier": "diversity",
}
"""Columns of the table: metrics by their key."""


def findings(
    without: ModelPath,
    with_dropout: Annotated[
        str | None,
        typer.Argument(
            callback=lambda path: path and checked_model(path), help="A run of the same data with."
        ),
    ] = None,
    *,
    scales: Scales = None,
    study: StudyOptions,
    solver: SolverOptions,
) -> None:
    """The paper's findings on guidance, tested: each held, not held, or not decidable here.

    WITHOUT is a run without caption dropout, as the paper's; WITH_DROPOUT one with it. Interrupted
    and started again, the command resumes. Without --sampler and --steps each run samples with its
    own.
    """
    from sfumato.paper.findings import FindingsConfig, measure_findings

    config = study.config(FindingsConfig, guidance_scales=scales)
    first = open_model(without, study.device, student=False, **solver.changes())
    second = (
        None
        if with_dropout is None
        else open_model(with_dropout, study.device, student=False, **solver.changes())
    )
    with stoppable():
        found = measure_findings(
            first,
            second,
            config,
            base=study.out or Path(without) / "findings",
            log=log,
            on_images=Progress(),
        )
    log_where_from(found.from_cache, found.date)
    print_findings(found)
    log(f"\nFindings {found.folder}")


def print_findings(found: "Findings") -> None:
    """Metrics of every variant and scale, then each claim with its verdict."""
    from sfumato.studies.charts import format_value

    names = [name for name in SHOWN if name in found.real]
    table = new_table(["", "w", *(SHOWN[name] for name in names)], padding=(0, 2, 0, 0))
    for variant in found.variants:
        for place, one in enumerate(variant.scales):
            cells = [format_value(key, one.metrics[key]) for key in names]
            table.add_row("" if place else variant.title, f"{one.guidance_scale:g}", *cells)
    table.add_row("real", "", *(format_value(key, found.real[key]) for key in names))
    print_table(table)
    log("")
    print_claims(found.claims)
    log("")
    log_wrapped(
        "outer: RMS of those pixels, white is 1; above N/2: share of spectral power above half "
        "Nyquist; docs/evaluation.md says more, findings.md has every interval."
    )
    log_wrapped(found.rule)
    for note in found.notes:
        log_wrapped(f"note: {note}")
