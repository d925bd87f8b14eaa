"""Table 1 by both protocols, as Markdown."""

from sfumato.evaluation.metrics.intervals import Estimate
from sfumato.paper.table1 import Table1, Table1Row
from sfumato.report.page import markdown_table


def columns(table: Table1) -> list[str]:
    """What the columns are called; the first ones are the paper's protocol."""
    size = f"{table.count:,}"
    return [
        "",
        f"FID, {size} against {size}",
        "untrained head, seed 0",
        "20 such heads",
        "20 untrained networks",
        f"Frechet (classifier), {size} against {size}",
        f"Frechet (classifier), {size} against {table.reference_count:,}",
        "class accuracy (trained classifier)",
    ]


def cells(row: Table1Row) -> list[str]:
    """One row; empty where something is not at hand, or does not apply."""
    paper = row.paper
    return [
        row.title,
        _distance(paper.fid),
        _share(paper.first_head),
        _share(paper.heads),
        _share(paper.random_networks),
        _distance(paper.frechet),
        _distance(row.frechet),
        _share(row.class_accuracy),
    ]


def rows_of(table: Table1) -> list[list[str]]:
    """All rows: the guidance scales, real images by the paper's protocol, and what real images
    score by the other one."""
    empty = [""] * (len(columns(table)) - 3)
    real = ["real images", *empty, _distance(table.baseline), _share(table.classifier_accuracy)]
    return [*map(cells, table.rows), real]


def markdown(table: Table1) -> str:
    """The table, what changed between the protocols, and what is not at hand."""
    return "\n".join([markdown_table(columns(table), rows_of(table)), "", *sentences(table), ""])


def sentences(table: Table1) -> list[str]:
    """What the two protocols show, in sentences."""
    generated = [row for row in table.rows if row.paper.random_networks and row.frechet is not None]
    real = table.rows[-1]
    kind = "heads" if real.paper.heads is not None else "networks"

    def of(row: Table1Row) -> Estimate:
        return row.paper.heads or row.paper.random_networks

    bounds = [of(row).interval for row in generated]
    spread = [100 * (upper - lower) for lower, upper in bounds]
    means = [100 * of(row).value for row in generated]
    low, high = of(real).interval
    return [
        f"Untrained {kind}: on {real.title}, whose classes are right by definition, they are "
        f"right in {100 * of(real).value:.1f} % on average, from {100 * low:.1f} to "
        f"{100 * high:.1f} %; chance is {100 * table.chance:.0f} %. One guidance scale "
        f"spans up to {max(spread):.1f} points over the random seeds, the means of the scales lie "
        f"within {max(means) - min(means):.1f} points of each other.",
        f"{real.title.capitalize()} against as many test images score "
        f"{_distance(real.paper.frechet)} on the classifier's features"
        + (f" and an FID of {_distance(real.paper.fid)}" if real.paper.fid is not None else "")
        + ": a smaller distance has no meaning. The row `real images` has real training sets of "
        "as many images against all of the reference, and the classifier's accuracy on it.",
        f"Images of {table.card}, sampled by {table.sampled}; reference: {table.reference}; "
        f"classifier {table.classifier}; sfumato {table.sfumato}, {table.date}.",
        *table.missing.values(),
    ]


def _distance(found: Estimate | None) -> str:
    if found is None or found.low is None or found.high is None:
        return ""
    return f"{found.value:.3g} ± {(found.high - found.low) / 2:.2g}"


def _share(found: Estimate | None) -> str:
    if found is None or found.low is None or found.high is None:
        return ""
    return f"{100 * found.value:.1f} % ({100 * found.low:.1f} - {100 * found.high:.1f})"
