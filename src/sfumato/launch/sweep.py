"""Runs that differ in a few settings: their combinations, and the table of what became of them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

from sfumato.base.errors import ConfigError, InputError
from sfumato.base.files import read_json, write_json, write_text
from sfumato.base.lock import locked
from sfumato.launch.jobs import SWEEP, summary_of
from sfumato.report.page import markdown_table
from sfumato.studies.listing import BestFigure


def combinations(over: Sequence[str]) -> dict[str, list[str]]:
    """Every combination of `section.key=VALUE,VALUE,...`, by the name of its run's folder.

    `ConfigError` for a setting without values, or given twice. A comma inside brackets or quotes
    is part of a value.
    """
    axes: dict[str, list[str]] = {}
    for text in over:
        path, _, values = text.partition("=")
        if not path or not values or path in axes:
            problem = "is there twice" if path in axes else "has no values"
            raise ConfigError(
                f"--over {text}: {path or 'the setting'} {problem}.",
                hint="Write each setting once: --over training.optimizer.lr=0.001,0.0003",
            )
        axes[path] = list(dict.fromkeys(_split(text, values)))
    found: dict[str, list[str]] = {}
    for values in product(*axes.values()):
        settings = [f"{path}={value}" for path, value in zip(axes, values, strict=True)]
        name = _name(settings)
        found[f"{name}-{len(found)}" if name in found else name] = settings
    return found


def _split(text: str, values: str) -> list[str]:
    """The parts of `values` between commas that are not inside brackets, nor inside quotes that
    begin a value or lie in brackets; `ConfigError` for none, and for what is not closed."""
    parts, open_brackets, quote = [""], 0, ""
    for character in values:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'" and (open_brackets or not parts[-1].strip()):
            quote = character
        elif character in "[{":
            open_brackets += 1
        elif character in "]}":
            open_brackets -= 1
        elif character == "," and not open_brackets:
            parts.append("")
            continue
        parts[-1] += character
    found = [part.strip() for part in parts if part.strip()]
    if quote or open_brackets or not found:
        problem = "a quote or a bracket is not closed" if found else "there are no values"
        raise ConfigError(
            f"--over {text}: {problem}.",
            hint="Put commas between values: --over training.optimizer.lr=0.001,0.0003",
        )
    return found


def _name(settings: Sequence[str]) -> str:
    """`lr=0.001,seed=1`: the last part of each name, with dashes for what is unusual in a folder's
    name."""
    pairs = [one.partition("=")[::2] for one in settings]
    text = ",".join(f"{path.rpartition('.')[2]}={value}" for path, value in pairs)
    return re.sub(r"[^\w.,=+-]+", "-", text).strip("-")[:150]


def check_sweep(folder: Path, runs: Mapping[str, Sequence[str]]) -> None:
    """`ConfigError` for a folder that holds something else than this sweep."""
    if not folder.exists():
        return
    if not folder.is_dir() or (any(folder.iterdir()) and not (folder / SWEEP).exists()):
        raise ConfigError(
            f"{folder} exists and is not a sweep.",
            hint="Choose a new or empty folder with --out; nothing there was touched.",
        )
    if (folder / SWEEP).exists() and read_json(folder / SWEEP)["runs"] != runs:
        raise ConfigError(
            f"{folder} holds another sweep.",
            hint="Choose another --out, or the values of that sweep to go on with it.",
        )


@dataclass(frozen=True, kw_only=True)
class SweepRun:
    """A run of a sweep: its settings, and what its folder says; `state` as in `RunSummary`, or
    `waiting` where there is none."""

    name: str
    settings: Sequence[str]
    state: str
    images_seen: int = 0
    loss: float | None = None
    best: BestFigure | None = None


def sweep_results(folder: Path) -> list[SweepRun]:
    """What became of the runs of a sweep, in its order; `InputError` where there is none."""
    if not (folder / SWEEP).is_file():
        raise InputError(
            f"{folder} is not a sweep.", hint="Give the folder of a `sfumato submit sweep`."
        )
    return [
        _result(folder, name, settings)
        for name, settings in read_json(folder / SWEEP)["runs"].items()
    ]


def _result(folder: Path, name: str, settings: Sequence[str]) -> SweepRun:
    found = summary_of(folder / name)
    if found is None:
        return SweepRun(name=name, settings=settings, state="waiting")
    return SweepRun(
        name=name,
        settings=settings,
        state=found.state,
        images_seen=found.images_seen,
        loss=found.loss,
        best=found.best,
    )


def results_table(results: Sequence[SweepRun]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: a column for each setting, then state, images, loss and class accuracy."""
    pairs = [[one.partition("=")[::2] for one in run.settings] for run in results]
    header = [path.rpartition(".")[2] for path, _ in pairs[0]]
    rows = [
        [
            *(value for _, value in own),
            run.state,
            f"{run.images_seen:,}",
            "-" if run.loss is None else f"{run.loss:.4f}",
            "-" if run.best is None else run.best.text,
        ]
        for run, own in zip(results, pairs, strict=True)
    ]
    return [*header, "state", "images", "loss", "accuracy (%)"], rows


def write_results(folder: Path) -> list[SweepRun]:
    """The results of a sweep, also as results.md and results.json in its folder. Tasks that end
    together write one after the other, so the last table has all of them."""
    with locked(folder):
        results = sweep_results(folder)
        header, rows = results_table(results)
        table = markdown_table(header, rows, left=len(header) - 3)
        write_text(folder / "results.md", f"{table}\n")
        write_json(folder / "results.json", [asdict(one) for one in results])
    return results
