"""A file of prompts to sample: one a line, or JSON lines with settings. Imports no torch."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, field_validator

from sfumato.base.errors import ConfigError, InputError
from sfumato.base.section import Count, GuidanceScale, Section, validate
from sfumato.diffusion.solvers.registry import sampler_name

MOST_SHOWN = 10
"""Damaged lines that a message names."""
JSON_SUFFIXES = (".jsonl", ".ndjson")


class PromptLine(Section):
    """One line of a file of prompts; what is None is that of the command or of the model."""

    model_config = ConfigDict(strict=True)  # no true for 1, no 7 for "7"

    prompt: str
    """What is sampled."""
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = None
    """Seed of the first image; the next ones count up."""
    count: Count | None = None
    """Images of this prompt."""
    guidance: GuidanceScale | None = None
    """Guidance scale w."""
    steps: Count | None = None
    """Denoising steps."""
    sampler: str | None = None
    """The sampler's name."""
    negative_prompt: str | None = None
    """What guidance leads away from."""

    @field_validator("sampler")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        try:
            return None if value is None else sampler_name(value)
        except InputError as error:
            raise ValueError(f"{error.what} {error.hint}") from error


def read_prompts(path: Path) -> list[tuple[int, PromptLine]]:
    """The prompts of a file, each with the number of its line. Empty lines are left out, and
    comments, which begin with `#`.

    JSON lines where the name ends in .jsonl or the first line begins with `{`; else a line is a
    prompt, and none may begin so. One `InputError` names every damaged line.
    """
    if not path.is_file():
        raise InputError(
            f"{path} is not a file." if path.exists() else f"{path} does not exist.",
            hint="Give a text file with one prompt a line, or JSON lines.",
        )
    lines = [
        (number, line.strip())
        for number, line in enumerate(
            path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1
        )
        if line.strip() and not line.lstrip().startswith(b"#")
    ]
    if not lines:
        raise InputError(
            f"{path} has no prompts.",
            hint="Write one prompt a line; a line that begins with # is a comment.",
        )
    as_json = path.suffix.lower() in JSON_SUFFIXES or lines[0][1].startswith(b"{")
    found: list[tuple[int, PromptLine]] = []
    problems: list[str] = []
    for number, content in lines:
        if not as_json and content.startswith(b"{"):
            problems.append(
                f"line {number}: begins with {{, as JSON does; the first line does not."
            )
            continue
        try:
            text = content.decode("utf-8")
            found.append((number, _from_json(text) if as_json else PromptLine(prompt=text)))
        except UnicodeDecodeError:
            problems.append(f"line {number}: not text in UTF-8.")
        except ValueError as error:
            problems.append(f"line {number}: {error}")
    if problems:
        raise _damaged(path, problems, as_json=as_json)
    return found


def _from_json(text: str) -> PromptLine:
    """A line of JSON; `ValueError` with what is wrong."""
    try:
        values: Any = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at character {error.pos + 1}.") from error
    except RecursionError as error:
        raise ValueError("not JSON: it is nested too deeply.") from error
    if not isinstance(values, dict):
        raise ValueError('not a JSON object, such as {"prompt": "a red truck", "seed": 3}.')
    try:
        return validate(PromptLine, values, source="line")
    except ConfigError as error:
        raise ValueError(" ".join(_problems(error))) from error


def _problems(error: ConfigError) -> Iterator[str]:
    return (line.strip() for line in error.what.splitlines()[1:])


def _damaged(path: Path, problems: list[str], *, as_json: bool) -> InputError:
    more = len(problems) - MOST_SHOWN
    shown = [*problems[:MOST_SHOWN], *([f"and {more:,} more."] if more > 0 else [])]
    others = ", ".join(list(PromptLine.model_fields)[1:])
    return InputError(
        f"{path}: nothing was sampled, for some lines cannot be read:\n  " + "\n  ".join(shown),
        hint=f"A line of JSON is an object with prompt and any of {others}."
        if as_json
        else "Save the file as UTF-8, one prompt a line, or all of them as JSON.",
    )
