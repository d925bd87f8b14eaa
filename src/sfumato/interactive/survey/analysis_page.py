"""An analysis as one page, one JSON file and a table for the terminal."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato import __version__
from sfumato.base.environment import command, now
from sfumato.base.files import write_json, write_text
from sfumato.base.words import counted
from sfumato.evaluation.metrics.intervals import Estimate
from sfumato.interactive.survey.analysis import Analysis, Findings, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLES = {
    "means": "Answers",
    "strengths": "Strength of each model",
    "errors": "How often people are wrong (HYPE)",
    "differences": "Differences between models",
}
_NOTES = {
    "strengths": "Bradley and Terry 1952: log odds against the mean of all models; ties are half a "
    "win of each.",
    "errors": "Over the pictures of a model and real ones, half of each: 50 % where nobody can "
    "tell them apart.",
    "differences": "First less second.",
}
INTERVALS = (
    "Intervals are 95 %, from a bootstrap over people and pictures; p-values are adjusted for "
    "their number (Holm). A result has neither where too few answered, or all the same: nothing in "
    "the answers says how far it may be off."
)
_JSON, _PAGE = "analysis.json", "analysis.html"


def write_analysis(folder: Path, analysis: Analysis) -> Path:
    """`analysis.json` and `analysis.html` in `folder`; the page's path."""
    write_json(folder / _JSON, _plain(analysis))
    from sfumato.report.page import rendered

    page = rendered(
        "survey.html",
        title=f"Survey: {', '.join(analysis.key.arms)}",
        about=analysis.key.design.about,
        summary=summary(analysis),
        sections=_sections(analysis),
        exclusion_note=_exclusion_note(analysis),
        excluded=[(name[:8], "; ".join(why)) for name, why in analysis.excluded.items()],
        facts=_facts(analysis),
    )
    write_text(folder / _PAGE, page)
    return folder / _PAGE


def summary(analysis: Analysis) -> str:
    """Who answered, and why some are left out."""
    every = analysis.everyone
    kept = analysis.kept.people if analysis.kept else 0
    reasons = Counter(reason for why in analysis.excluded.values() for reason in why)
    left = ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common())
    return (
        ("Simulated: " if analysis.simulated else "")
        + f"{counted(every.people, 'person').replace('persons', 'people')}, "
        f"{counted(every.answers, 'answer')}; {kept} kept. "
        + (f"Left out: {left}. " if left else "")
        + f"Median time of an answer {analysis.median_ms / 1000:.1f} s."
    )


def _plain(analysis: Analysis) -> dict[str, Any]:
    key = analysis.key
    return {
        "sfumato": __version__,
        "date": now(),
        "command": command(),
        "survey": key.survey,
        "simulated": analysis.simulated,
        "design": key.design.name,
        "measure": key.design.measure,
        "arms": key.arms,
        "settings": asdict(key.settings),
        "built": {name: key.about.get(name) for name in ("date", "command", "seed", "sfumato")},
        "rules": asdict(analysis.rules),
        "seed": analysis.seed,
        "resamples": analysis.resamples,
        "median_ms": analysis.median_ms,
        "excluded": dict(analysis.excluded),
        "kept": _finite(analysis.kept.plain()) if analysis.kept else None,
        "everyone": _finite(analysis.everyone.plain()),
    }


def _finite(plain: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(plain, dict):
        return {name: _finite(value) for name, value in plain.items()}
    if isinstance(plain, list):
        return [_finite(value) for value in plain]
    return None if isinstance(plain, float) and plain != plain else plain


# Tables -------------------------------------------------------------------------------------------


def rows_of(analysis: Analysis, kind: str) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of a kind of results: of those who are kept beside everyone."""
    every = analysis.everyone.results[kind]
    kept = {one.title: one for one in analysis.kept.results[kind]} if analysis.kept else {}
    tested = any(one.adjusted is not None for one in every)
    columns = ["", "kept", *(["p"] if tested else []), "everyone"]
    rows = []
    for one in every:
        own = kept.get(one.title)
        row = [one.title, _estimate(own)]
        row += [_p_value(own)] if tested else []
        rows.append([*row, _estimate(one)])
    return columns, rows


def _estimate(result: Result | None) -> str:
    if result is None:
        return ""
    return f"{result.estimate}{' (no interval)' if result.estimate.low is None else ''}"


def _p_value(result: Result | None) -> str:
    if result is None:
        return ""
    if result.adjusted is None:
        return "-"
    return "< 0.001" if result.adjusted < 0.001 else f"{result.adjusted:.3f}"


def _sections(analysis: Analysis) -> list[dict[str, Any]]:
    found = []
    for kind in analysis.everyone.results:
        columns, rows = rows_of(analysis, kind)
        if not rows:
            continue
        note = _NOTES.get(kind) or f"The {analysis.key.design.measure}."
        found.append(
            {
                "title": TITLES[kind],
                "note": f"{note} {INTERVALS}" if not found else note,
                "columns": columns,
                "rows": rows,
                "picture": _picture(analysis, kind),
            }
        )
    return [*found, _agreement(analysis)]


def _agreement(analysis: Analysis) -> dict[str, Any]:
    kept = analysis.kept.agreement if analysis.kept else {}
    return {
        "title": "Agreement between people",
        "note": "Krippendorff's alpha: 1 where all give the same answer to a picture, 0 where they "
        "agree as often as by chance.",
        "columns": ["", "kept", "everyone"],
        "rows": [
            [name, _text(kept.get(name)), _text(one)]
            for name, one in analysis.everyone.agreement.items()
        ],
        "picture": "",
    }


def agreement_rows(analysis: Analysis) -> list[tuple[str, str]]:
    """Of those who are kept, for the terminal."""
    kept = analysis.kept.agreement if analysis.kept else {}
    return [(name, text) for name, one in kept.items() if (text := _text(one))]


def _text(estimate: Estimate | None) -> str:
    if estimate is None or estimate.value != estimate.value:
        return ""
    limits = "" if estimate.low is None else f" ({estimate.low:.2f} - {estimate.high:.2f})"
    return f"{estimate.value:.2f}{limits}"


def _exclusion_note(analysis: Analysis) -> str:
    rules = analysis.rules
    return (
        f"{len(analysis.excluded)} of {analysis.everyone.people + _silent(analysis)}. Rules: fewer "
        f"than {100 * rules.attention:.0f} % of the attention checks right, a median time below "
        f"{rules.fastest_ms} ms, fewer than {100 * rules.finished:.0f} % of the trials answered, "
        f"or more than {100 * rules.alike:.0f} % of the answers in one place."
    )


def _silent(analysis: Analysis) -> int:
    """People who began and answered nothing that counts."""
    return sum(why == ["no answers"] for why in analysis.excluded.values())


def _facts(analysis: Analysis) -> list[tuple[str, str]]:
    key = analysis.key
    size = key.settings
    return [
        ("design", key.design.name),
        ("models", ", ".join(key.arms)),
        (
            "size",
            f"{len(key.forms)} forms, {size.trials} trials, {size.attention} attention checks, "
            f"{size.practice} for practice; {size.items} pictures of a model",
        ),
        ("survey", f"{key.survey}, built {key.about.get('date', '')}"),
        ("people", "a synthetic crowd" if analysis.simulated else "real ones"),
        ("bootstrap", f"{analysis.resamples:,} resamples, seed {analysis.seed}"),
        ("analysed", now()),
        ("command", command()),
    ]


# Pictures -----------------------------------------------------------------------------------------


def _picture(analysis: Analysis, kind: str) -> str:
    """Estimates with their intervals: those of the kept in colour, everyone's below in grey."""
    from matplotlib.figure import Figure

    from sfumato.report.page import data_url, png_of

    every = analysis.everyone.results[kind]
    figure = Figure(figsize=(7.2, 0.7 + 0.42 * len(every)), dpi=150, layout="constrained")
    axes = figure.subplots()
    _draw(axes, analysis.everyone, kind, 0.14, "#b9aea4", "everyone")
    if analysis.kept:
        _draw(axes, analysis.kept, kind, -0.14, "#7a4b2a", "kept")
    null = _null(analysis, kind)
    if null is not None:
        axes.axvline(null, color="#6f645c", lw=1, ls=":")
    axes.set_yticks(range(len(every)), [one.title for one in every])
    axes.set_ylim(len(every) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right", "left"]].set_visible(False)
    if every[0].estimate.percent:
        axes.xaxis.set_major_formatter(lambda value, place: f"{100 * value:.0f} %")
    figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    return data_url(png_of(figure))


def _draw(
    axes: "Axes", findings: Findings, kind: str, shift: float, colour: str, name: str
) -> None:
    results: Sequence[Result] = findings.results[kind]
    for place, one in enumerate(results):
        low, high = one.estimate.low, one.estimate.high
        if low is not None and high is not None:
            axes.plot([low, high], [place + shift] * 2, color=colour, lw=2)
        label = name if place == 0 else None
        axes.plot(one.estimate.value, place + shift, "o", color=colour, ms=5, label=label)


def _null(analysis: Analysis, kind: str) -> float | None:
    """Where no effect is."""
    if kind == "means":
        return analysis.key.design.null
    return 0.5 if kind == "errors" else 0.0
