"""The tables of a card and of a comparison: built from the registry, for the terminal and pages."""

import io
import textwrap
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sfumato.base.terminal import plain_console
from sfumato.evaluation.metrics.registry import Metric, all_metrics, significant_digits

if TYPE_CHECKING:
    from sfumato.evaluation.card import Card, ExtractorInfo, Row

_MISSING = ("", "-")


@dataclass(frozen=True, kw_only=True)
class Table:
    """`rows` of cells under `columns`; the last `real_rows` of them are of real images."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    about: str = ""
    real_rows: int = 0

    def without_empty(self) -> "Table":
        """Without columns that are empty in all rows."""
        kept = [
            place
            for place, name in enumerate(self.columns)
            if not name or any(row[place] not in _MISSING for row in self.rows)
        ]
        return Table(
            columns=[self.columns[place] for place in kept],
            rows=[[row[place] for place in kept] for row in self.rows],
            title=self.title,
            about=self.about,
            real_rows=self.real_rows,
        )


def card_tables(card: "Card") -> list[Table]:
    """What is said of the images by themselves, then one table for each extractor."""
    shown = [metric for metric in all_metrics().values() if "table" in metric.shown]
    of_features = [one for one in shown if one.needs in ("features", "logits")]
    alone = [one for one in shown if one.needs not in ("features", "logits")]
    return [
        _first_table(card, alone),
        *(_features_table(card, info, of_features) for info in card.measured),
    ]


def _first_table(card: "Card", metrics: Sequence[Metric]) -> Table:
    rows = [*card.rows, card.real]
    keys = [
        (metric, key)
        for metric in metrics
        for key in dict.fromkeys([*(key for row in rows for key in row.metrics), *card.blind])
        if key.partition(".")[0] == metric.name
    ]
    extractors = [
        f"{metric.title} ({key.partition('.')[2]})" if metric.needs == "text" else metric.title
        for metric, key in keys
    ]

    def cells(row: "Row") -> list[str]:
        found = [_cell(metric, row, key, card.blind) for metric, key in keys]
        return [row.title, *found, str(row.nfe or "")]

    real = cells(card.real)
    for place, (metric, key) in enumerate(keys):
        quantiles = [row.metrics[key].details for row in card.rows if key in row.metrics]
        if metric.name == "memorised_share" and quantiles:
            real[place + 1] = f"{100 * quantiles[0]['quantile']:.0f} %"
    return Table(
        columns=["", *extractors, "NFE"], rows=[*map(cells, card.rows), real], real_rows=1
    ).without_empty()


def _features_table(card: "Card", info: "ExtractorInfo", metrics: Sequence[Metric]) -> Table:
    def key(metric: Metric) -> str:
        return f"{metric.name}.{info.key}"

    rows = [
        [row.title, *(_cell(metric, row, key(metric), card.blind) for metric in metrics)]
        for row in card.rows
    ]
    baseline = card.baselines.get(info.key)
    spreads = {} if baseline is None else baseline.metrics
    real = [
        metric.cell(spread.mean, spread.std)
        if (spread := spreads.get(metric.name)) is not None
        else _cell(metric, card.real, key(metric))
        for metric in metrics
    ]
    rows.append(["real", *real])
    perturbed = card.perturbations.get(info.key, [])
    for one in perturbed:
        digits = significant_digits(one.frechet, 3)
        frechet = f"{one.frechet:.{digits}f}"
        rows.append(
            [one.title, *(frechet if metric.name == "frechet" else "" for metric in metrics)]
        )
    return Table(
        columns=["", *(metric.title for metric in metrics)],
        rows=rows,
        title=info.title,
        about=f"{info.dim} features of {info.name}",
        real_rows=1 + len(perturbed),
    ).without_empty()


def _cell(metric: Metric, row: "Row", key: str, blind: Collection[str] = ()) -> str:
    found = row.metrics.get(key)
    if found is None:
        return "blind" if key in blind else "-"
    if metric.percent and metric.interval:
        return str(found)
    return metric.cell(found.value, found.half_width)


def notes_of(card: "Card") -> list[str]:
    """The paragraphs below the tables: what is missing, how it was made, warnings."""
    found = []
    missing = [info.title for info in card.extractors if info.missing]
    if missing:
        found.append(
            f"Not measured, since the weights are not at hand: {', '.join(missing)}. With a "
            "network --set evaluation.features.may_download=true fetches them; docs/evaluation.md "
            "says how to bring the files."
        )
    found.append(_legend(card))
    for row in (*card.rows, card.real):
        one = row.metrics.get("untrained_accuracy")
        if one is not None and one.low is not None and one.high is not None:
            found.append(
                f"Untrained classifiers on {row.title}: right on {100 * one.value:.1f} % on "
                f"average of 20, from {100 * one.low:.1f} % to {100 * one.high:.1f} %; chance is "
                f"{100 * one.details['chance']:.1f} %."
            )
    notes = dict.fromkeys(note for row in card.rows for note in row.notes)
    return found + [f"note: {note}" for note in (*card.warnings, *notes)]


def _legend(card: "Card") -> str:
    first = card.rows[0]
    how = ""
    if "seeds" in first.settings:
        seeds = first.settings["seeds"]
        how = f", seeds {seeds[0]}-{seeds[1]}"
    if "sampler" in first.settings:
        how += (
            f", {first.settings['sampler']}, {first.settings['steps']} steps, guidance "
            f"{first.settings['guidance']}"
        )
    captions = f"; captions: {' | '.join(card.subject.captions)}" if card.subject.captions else ""
    names = {key.partition(".")[0] for row in card.rows for key in row.metrics}
    about = [
        metric.about
        for name, metric in all_metrics().items()
        if name in names and metric.about and "table" in metric.shown
    ]
    return (
        f"{first.count:,} images a row{how}{captions}; against {card.reference.count:,} real "
        f"images: {card.reference.description}. ± is half of a 95 % interval; the row 'real' is of "
        f"real images{_baseline_text(card)}. {sentence(about)}"
    )


def sentence(parts: Sequence[str]) -> str:
    """Clauses as one sentence."""
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _baseline_text(card: "Card") -> str:
    text = ""
    baseline = next(iter(card.baselines.values()), None)
    if baseline is not None:
        apart = {
            "both": "disjoint pairs",
            "sets": "disjoint sets of real training images against the same reference",
            "none": "repeated samples of few real training images, so ± is a lower bound",
        }[baseline.disjoint]
        turns = ", as many of each class" if baseline.balanced else ""
        text = (
            f": {baseline.pairs} {apart}, {baseline.count:,} images each{turns}, mean ± deviation"
        )
    perturbed = next(iter(card.perturbations.values()), [])
    if perturbed:
        of = "reference images" if perturbed[0].of_reference else "other real test images"
        text += f". Below it {perturbed[0].count:,} {of} as they are and changed a little"
    return text


def format_card(card: "Card", *, width: int = 100) -> str:
    """All tables and notes as text."""
    blocks = []
    for table in card_tables(card):
        heading = f"{table.title}: {table.about}" if table.title else ""
        blocks.append(format_table(table, heading=heading, width=width))
    notes = [wrapped(note, width) for note in notes_of(card)]
    return "\n\n".join([*blocks, "\n".join(notes)])


def format_table(table: Table, *, heading: str = "", width: int = 100, left: bool = False) -> str:
    """A table with right-aligned columns as text; it is as wide as it must be."""
    from rich.table import Table as RichTable

    drawn = RichTable(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for place, name in enumerate(table.columns):
        justify = "left" if left and place == 0 else "right"
        drawn.add_column(name, justify=justify, no_wrap=True)
    for title, *cells in table.rows:
        drawn.add_row(title if left or len(title) <= 12 else title[:11] + "…", *cells)
    buffer = io.StringIO()
    whole = plain_console(width=1000).measure(drawn).maximum
    plain_console(file=buffer, width=max(width, whole)).print(drawn)
    text = "\n".join(line.rstrip() for line in buffer.getvalue().rstrip("\n").splitlines())
    return f"{wrapped(heading, width)}\n{text}" if heading else text


def wrapped(text: str, width: int) -> str:
    """A paragraph in lines of at most `width`, and of 100."""
    return textwrap.fill(text, width=min(100, width), break_on_hyphens=False)
