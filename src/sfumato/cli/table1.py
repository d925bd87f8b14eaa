"""`sfumato table1`."""

import textwrap
from typing import TYPE_CHECKING

from sfumato.base.progress import Progress
from sfumato.cli.evaluate import checked_settings
from sfumato.cli.options import (
    CardFolder,
    Data,
    Form,
    MeasureOptions,
    ModelPath,
    Scales,
    SolverOptions,
    stoppable,
)
from sfumato.cli.show import log, log_wrapped, new_table, open_model, print_table

if TYPE_CHECKING:
    from sfumato.paper.table1 import Table1

COUNT = 1000


def table1(
    model: ModelPath,
    *,
    measure: MeasureOptions,
    scales: Scales = "0,2,5,10",
    form: Form = None,
    solver: SolverOptions,
    data: Data = None,
    out: CardFolder = None,
) -> None:
    """The paper's Table 1 by its own protocol, and by one with intervals and a trained classifier.

    The same images are measured by both. Interrupted and started again, it resumes.
    """
    overrides = measure.overrides(
        sampling__sampler=solver.sampler,
        sampling__steps=solver.steps,
        evaluation__count=measure.count or COUNT,
        evaluation__guidance_scales=scales,
        sampling__guidance=form,
        data__source=data,
    )
    checked_settings(overrides)
    from sfumato.base.files import write_text
    from sfumato.generation.bundle_names import beside
    from sfumato.paper.table1 import markdown, measure_table1

    with stoppable():
        found = measure_table1(
            open_model(model, measure.device, student=False),
            overrides=overrides,
            out=out or beside(model, "evaluation"),
            log=log,
            on_images=Progress(),
        )
    print_table1(found)
    assert found.folder is not None
    write_text(found.folder / "table1.md", markdown(found))
    log(f"Table   {found.folder / 'table1.md'}")


def print_table1(found: "Table1") -> None:
    from sfumato.paper.table1 import columns, rows_of, sentences

    rows = rows_of(found)
    kept = [place for place in range(len(rows[0])) if any(row[place] for row in rows)]
    names = [textwrap.fill(columns(found)[place], width=14) for place in kept]
    table = new_table(names, padding=(0, 2, 0, 0))
    for row in rows:
        # Intervals below their values: beside them the table is wider than a terminal.
        table.add_row(*(row[place].replace(" (", "\n(") for place in kept))
    print_table(table)
    log("")
    for sentence in sentences(found):
        log_wrapped(sentence)
