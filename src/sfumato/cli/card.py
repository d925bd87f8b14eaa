"""How a metric card is printed."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from sfumato.cli.show import log, log_wrapped, new_table, percent, print_table

if TYPE_CHECKING:
    from sfumato.evaluation.card import (
        ExtractorInfo,
        FeatureFigures,
        FeatureFloor,
        Figure,
        MetricCard,
        RowFigures,
        Spread,
    )


def print_card(card: "MetricCard") -> None:
    """The tables of an evaluation, with the real-vs-real baseline in each."""
    print_table(_first_table(card))
    for info in card.measured:
        log("")
        log_wrapped(f"{info.title}: {info.dim} features of {info.name}")
        print_table(_features_table(card, info))
    log("")
    missing = [info.title for info in card.extractors if info.missing]
    if missing:
        log_wrapped(
            f"Not measured, since the weights are missing: {', '.join(missing)}. With a "
            "network --set evaluation.features.may_download=true fetches them; docs/evaluation.md "
            "says how to bring the files."
        )
    log_wrapped(_legend(card))
    worth = {row.title: row.untrained for row in card.rows} | {"real": card.real.untrained}
    for title, found in worth.items():
        if found is not None:
            log_wrapped(
                f"Untrained classifiers on {title}: right in {percent(found.mean)} on average, "
                f"from {percent(found.lowest)} to {percent(found.highest)}; chance is "
                f"{percent(found.chance)}."
            )
    notes = dict.fromkeys(note for row in card.rows for note in row.notes)
    for note in (*card.warnings, *notes):
        log_wrapped(f"note: {note}")


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Right-aligned columns; those that are empty in all rows are left out."""
    kept = [
        place
        for place, name in enumerate(columns)
        if not name or any(row[place] not in ("", "-") for row in rows)
    ]
    table = new_table([columns[place] for place in kept], left=(), padding=(0, 1, 0, 0))
    for row in rows:
        table.add_row(*(row[place] for place in kept))
    return table


def _first_table(card: "MetricCard") -> Table:
    """Class accuracy, CLIP score, saturation, memorised share: images by themselves."""
    captions = list(card.real.clip_score)
    columns = ["", "accuracy", "95 % interval", *(f"CLIP ({key})" for key in captions)]
    columns += ["saturated", "memorised", "NFE"]
    rows = [
        [
            _short(row.title),
            *_accuracy(row.agreement),
            *(_plus_minus(row.clip_score.get(key), 2) for key in captions),
            percent(row.saturated),
            f"{_plus_minus(row.memorised.share, 0, 100)} %" if row.memorised else "",
            str(row.calls or ""),
        ]
        for row in card.rows
    ]
    quantile = next((row.memorised.quantile for row in card.rows if row.memorised), None)
    rows.append(
        [
            "real",
            *_accuracy(card.real.agreement),
            *(_plus_minus(card.real.clip_score[key], 2) for key in captions),
            percent(card.real.saturated),
            f"{100 * quantile:.0f} %" if quantile else "",
            "",
        ]
    )
    return _table(columns, rows)


def _features_table(card: "MetricCard", info: "ExtractorInfo") -> Table:
    columns = ["", "Fréchet", "1000 KID", "precision", "recall", "density", "coverage"]
    columns += ["N to inf", "IS"]

    def cells(figures: "FeatureFigures | FeatureFloor") -> list[str]:
        return [
            _plus_minus(figures.frechet, 3),
            _plus_minus(figures.kernel, 2, 1000),
            _plus_minus(figures.precision, 0, 100),
            _plus_minus(figures.recall, 0, 100),
            _plus_minus(figures.density, 2, alone=True),
            _plus_minus(figures.coverage, 0, 100, alone=True),
        ]

    def score(row: "RowFigures") -> str:
        found = row.inception_score.get(info.key)
        return f"{found.value:.2f}" if found else ""

    rows = [
        [
            _short(row.title),
            *cells(row.features[info.key]),
            _plus_minus(row.features[info.key].frechet_infinity, 3, alone=True),
            score(row),
        ]
        for row in card.rows
    ]
    if info.key in card.floors:
        rows.append(["real", *cells(card.floors[info.key]), "", score(card.real)])
    rows += [
        [one.title, f"{one.frechet:.{_digits(one.frechet, 3)}f}", *[""] * 7]
        for one in card.yardsticks.get(info.key, [])
    ]
    return _table(columns, rows)


def _short(title: str, most: int = 12) -> str:
    return title if len(title) <= most else title[: most - 1] + "…"


def _accuracy(found: "Figure | None") -> tuple[str, str]:
    if found is None or found.low is None or found.high is None:
        return "", ""
    return percent(found.value), f"{percent(found.low)} - {percent(found.high)}"


def _plus_minus(
    found: "Figure | Spread | None", digits: int, factor: float = 1, *, alone: bool = False
) -> str:
    """A figure with half of its interval, or a mean with its deviation; `alone`: without them."""
    if found is None:
        return "-"
    if isinstance(found, Spread):
        value, half = found.mean, found.std
    else:
        value = found.value
        half = None if found.low is None or found.high is None else (found.high - found.low) / 2
    value, digits = factor * value, _digits(factor * value, digits)
    text = f"{value:.{digits}f}"
    return text if alone or half is None else f"{text} ± {factor * half:.{digits}f}"


def _digits(value: float, most: int) -> int:
    """Digits after the point: three that count are enough, two are needed."""
    if value and abs(value) < 10.0**-most:
        return 1 - math.floor(math.log10(abs(value)))
    return max(0, most - max(0, len(str(int(abs(value)))) - 1))


def _legend(card: "MetricCard") -> str:
    first = card.rows[0]
    how = ""
    if "seeds" in first.settings:
        seeds = first.settings["seeds"]
        how = (
            f", seeds {seeds[0]}-{seeds[1]}, {first.settings['scheduler']}, "
            f"{first.settings['steps']} steps, guidance {first.settings['guidance']}"
        )
    captions = f"; captions: {' | '.join(card.subject.captions)}" if card.subject.captions else ""
    floor = next(iter(card.floors.values()), None)
    real = "; the row 'real' is of real images"
    if floor is not None:
        apart = {
            "both": "disjoint pairs",
            "sets": "disjoint sets of real training images against the same reference",
            "none": "sets resampled from few real training images, so that ± is a lower bound",
        }[floor.disjoint]
        turns = ", as many of each class" if floor.balanced else ""
        real += f": {floor.pairs} {apart}, {floor.count:,} images each{turns}, mean ± deviation"
    yardsticks = next(iter(card.yardsticks.values()), [])
    if yardsticks:
        real += (
            f". Perturbation baseline: {yardsticks[0].count:,} "
            + ("reference images" if yardsticks[0].of_reference else "other real test images")
            + " as they are and altered a little"
        )
    return (
        f"{first.count:,} images a row{how}{captions}; against {card.reference.count:,} real: "
        f"{card.reference.description}. ± is half of a 95 % interval{real}. Precision, recall and "
        "coverage in per cent; memorised: as close to a training image as the closest twentieth of "
        "real test images."
    )
