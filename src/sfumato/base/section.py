"""Strict configuration sections: an unknown key or a wrong type is an error with a hint.

Each room owns its section beside its class; `experiment.py` composes them.
"""

from types import UnionType
from typing import Annotated, Any, ClassVar, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sfumato.base.errors import ConfigError, nearest


class Section(BaseModel):
    """A frozen part of an experiment's configuration.

    The docstring under each field is its documentation.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )
    example: ClassVar[str | None] = None
    """The preset that messages name to show what can be set."""


# Ranges are in a setting's type, so that all settings out of range are told at once; a validator
# is for rules between settings.
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
GuidanceScale = Annotated[float, Field(ge=0, le=1000)]
Share = Annotated[float, Field(ge=0, lt=1)]
"""At least 0 and below 1."""
Fraction = Annotated[float, Field(gt=0, lt=1)]

ValueRange = tuple[float, float]
"""Lowest and highest pixel value inside the network."""

S = TypeVar("S", bound=Section)


def validate(section: type[S], values: Any, *, source: str) -> S:
    """Build `section` from plain values; all problems are collected into one `ConfigError`."""
    try:
        return section.model_validate(values)
    except ValidationError as error:
        problems = [_explain(section, problem) for problem in error.errors()]
        many = f"{len(problems)} problems" if len(problems) > 1 else "a problem"
        raise ConfigError(
            f"{source} has {many}:\n  " + "\n  ".join(problems),
            hint=f"`sfumato presets show {section.example}` prints a complete configuration."
            if section.example
            else "",
        ) from error


def section_at(section: type[Section], path: tuple[str, ...]) -> type[Section] | None:
    """The nested section class at `path`, None where `path` leads to a plain value."""
    for name in path:
        field = section.model_fields.get(name)
        inner = _section_in(field.annotation) if field else None
        if inner is None:
            return None
        section = inner
    return section


def _section_in(annotation: Any) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    if get_origin(annotation) in (Union, UnionType):
        for option in get_args(annotation):
            if (inner := _section_in(option)) is not None:
                return inner
    return None


_OUT_OF_RANGE = {
    "greater_than": "above {}",
    "greater_than_equal": "{} or more",
    "less_than": "below {}",
    "less_than_equal": "{} or less",
}


def _explain(section: type[Section], problem: Any) -> str:
    location = tuple(part for part in problem["loc"] if isinstance(part, str))
    name = ".".join(str(part) for part in problem["loc"]) or "the file"
    if problem["type"] == "extra_forbidden":
        parent = section_at(section, location[:-1])
        known = list(parent.model_fields) if parent else []
        return f"{name}: no such setting. {nearest(location[-1], known)}"
    if problem["type"] == "missing":
        return f"{name}: this setting is required."
    if problem["type"] in _OUT_OF_RANGE:
        (bound,) = problem["ctx"].values()
        bound = int(bound) if bound == int(bound) else bound  # 1000, not 1000.0
        must_be = _OUT_OF_RANGE[problem["type"]].format(bound)
        return f"{name}: must be {must_be} (got {problem['input']!r})."
    message = problem["msg"].removeprefix("Value error, ")
    # A rule over a whole section names the setting itself; the section's values would bury it.
    got = "" if isinstance(problem["input"], dict) else f" (got {problem['input']!r})"
    return f"{name}: {message[0].lower()}{message[1:].rstrip('.')}{got}."
