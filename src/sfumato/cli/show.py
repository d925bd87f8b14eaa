"""What several commands print or write."""

import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from sfumato.base.errors import InputError
from sfumato.base.terminal import plain_console

if TYPE_CHECKING:
    from sfumato.cli.options import LoadingOptions
    from sfumato.generation.model import Model
    from sfumato.studies.verdicts import Claim


def log(text: str) -> None:
    print(text, flush=True)


def log_wrapped(text: str, *, indent: int = 0) -> None:
    """A paragraph in lines of the terminal's width, at most 100."""
    width = min(100, Console().width) - indent
    log(textwrap.indent(textwrap.fill(text, width=width, break_on_hyphens=False), " " * indent))


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def new_table(columns: Sequence[str], *, left: Sequence[int] = (0,), **options: Any) -> Table:
    """A plain table; columns are right-aligned but for those at the places `left`."""
    table = Table(box=None, pad_edge=False, header_style="bold", **options)
    for place, name in enumerate(columns):
        table.add_column(name, justify="left" if place in left else "right", no_wrap=True)
    return table


def print_table(table: Table) -> None:
    """Every figure whole: a narrow terminal breaks lines, not numbers."""
    whole = plain_console(width=1000).measure(table).maximum
    plain_console(width=max(Console().width, whole)).print(table)


def print_wide(text: Callable[[int], str]) -> None:
    """A text that is made for a width, for that of the terminal."""
    log(text(Console().width))


def print_claims(claims: "Sequence[Claim]") -> None:
    """Each claim with its verdict, the reason and the effects that were tested."""
    from sfumato.studies.charts import format_effect

    for claim in claims:
        log_wrapped(f"{claim.verdict.upper()}: {claim.claim}.")
        for sentence in (claim.sentence, *map(format_effect, claim.effects)):
            log_wrapped(sentence, indent=4)


def log_where_from(from_cache: bool, date: str) -> None:
    if from_cache:
        log(f"From the cache, measured {date}; --out FOLDER measures again.")


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """On a terminal, a line while something takes seconds; it goes when that is done."""
    terminal = sys.stderr.isatty()
    if terminal:
        print(text, end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def open_model(
    path: str | Path,
    loading: "str | LoadingOptions",
    *,
    can: bool = False,
    student: bool = True,
    **changes: Any,
) -> "Model":
    """The model at `path` with `changes` of its sampling settings, where they are not None.

    `loading`: a device, or options of `load`; `can`: whether it may be a CAN, which has no such
    settings; `student`: whether it may be a distilled student, which samples in one way alone.
    `InputError` where it may not.
    """
    from sfumato.generation.bundle_names import is_can

    if is_can(path) and not can:
        raise InputError(
            f"{path} is a CAN, which this command does not take: it is about diffusion.",
            hint="A CAN goes with sample, evaluate, compare, evolve, export and paper comparison.",
        )
    with waiting(f"Opening {path} ..."):
        from sfumato.generation.loading import load

        given = {"device": loading} if isinstance(loading, str) else loading.given()
        model = load(path, **given)
    if not student and model.sampling.form.folded:
        raise InputError(
            f"{path} is a distilled student, which this command does not take: it samples in one "
            "way alone.",
            hint="Give its teacher. A student goes with sample, evaluate, compare and export, and "
            "after its teacher with nfe.",
        )
    return model.with_(**changes)


def warn_of_sampling(model: "Model", scales: Sequence[float] = ()) -> None:
    """Warn of what the sampling rules find; without `scales` at the model's own."""
    from sfumato.training.lint import SamplingPlan, lint_sampling, warn

    if model.process is None:  # a CAN has no rules
        return
    plan = SamplingPlan.of_model(model, scales or (model.sampling.guidance_scale,))
    warn(lint_sampling(plan))


def beside(model: str, what: str) -> Path:
    """Where results of a kind on a model lie unless --out says otherwise: runs/MODEL-WHAT."""
    name = model.replace("bundled:", "").rstrip("/").rsplit("/", 1)[-1]
    return Path("runs") / f"{name}-{what}"


def unused(path: Path) -> Path:
    """`path`, or the same with a number where it exists: nothing is overwritten."""
    candidate, number = path, 2
    while candidate.exists():
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1
    return candidate


def check_empty(folder: Path) -> None:
    """`InputError` for a file or a folder that holds something."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(
            f"{folder} exists and is not empty; nothing is overwritten.",
            hint="Give --out a new folder.",
        )
