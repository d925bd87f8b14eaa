"""Strict configuration sections: an unknown key or a wrong type is an error with a hint.

Each room owns its section beside its class; `experiment.py` composes them.
"""

from dataclasses import fields, is_dataclass
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


def annotations_of(section: type) -> dict[str, Any]:
    """The settings of a section, a pydantic model or a dataclass, with their types."""
    if issubclass(section, BaseModel):
        return {name: field.annotation for name, field in section.model_fields.items()}
    return {field.name: field.type for field in fields(section)}


def sections_in(annotation: Any) -> list[type]:
    """The section classes that a setting of this type can hold."""
    if isinstance(annotation, type):
        is_section = is_dataclass(annotation) or issubclass(annotation, Section)
        return [annotation] if is_section else []
    if get_origin(annotation) is Annotated:
        return sections_in(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [inner for option in get_args(annotation) for inner in sections_in(option)]
    return []


_OUT_OF_RANGE = {
    "greater_than": "above {}",
    "greater_than_equal": "{} or more",
    "less_than": "below {}",
    "less_than_equal": "{} or less",
}


def _without_tags(section: type, location: tuple[Any, ...]) -> tuple[list[Any], list[type]]:
    """A location without the tags by which pydantic names the variant of a section, and the
    sections that its last part can be a setting of."""
    parts: list[Any] = []
    here, parents = [section], [section]
    for part in location:
        if len(here) > 1:  # a tag: the default of the variant's own field
            here = [variant for variant in here if part in vars(variant).values()]
            continue
        parts.append(part)
        parents = here
        here = [inner for one in here for inner in sections_in(annotations_of(one).get(part))]
    return parts, parents


def _explain(section: type[Section], problem: Any) -> str:
    parts, parents = _without_tags(section, problem["loc"])
    name = ".".join(str(part) for part in parts) or "the file"
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = [key for parent in parents for key in annotations_of(parent)]
        return f"{name}: no such setting. {nearest(str(parts[-1]), known)}"
    if problem["type"] == "missing":
        return f"{name}: this setting is required."
    if problem["type"] == "union_tag_invalid":
        known = problem["ctx"]["expected_tags"]
        return f"{name}.process: '{problem['ctx']['tag']}' is not one of {known}."
    if problem["type"] in _OUT_OF_RANGE:
        (bound,) = problem["ctx"].values()
        bound = int(bound) if bound == int(bound) else bound  # 1000, not 1000.0
        must_be = _OUT_OF_RANGE[problem["type"]].format(bound)
        return f"{name}: must be {must_be} (got {problem['input']!r})."
    message = problem["msg"].removeprefix("Value error, ")
    # A rule over a whole section names the setting itself; the section's values would bury it.
    got = "" if isinstance(problem["input"], dict) else f" (got {problem['input']!r})"
    return f"{name}: {message[0].lower()}{message[1:].rstrip('.')}{got}."
