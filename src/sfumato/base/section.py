"""Strict configuration sections: an unknown key or a wrong type is an error with a hint."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from functools import cache
from typing import Annotated, Any, ClassVar, TypeVar

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


# Ranges are in a setting's type, so that all settings out of range are reported at once; a
# validator is for rules between settings.
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
GuidanceScale = Annotated[float, Field(ge=0, le=1000)]
Share = Annotated[float, Field(ge=0, lt=1)]
"""At least 0 and below 1."""

_LEVELS = 3
"""Of sections: the rules of one are checked where those in it are kept."""

S = TypeVar("S", bound=Section)
JsonSchema = dict[str, Any]


def validate(
    section: type[S],
    values: Any,
    *,
    source: str,
    problems: Sequence[str] = (),
    before: Any = None,
) -> S:
    """Build `section` from plain values.

    Raises one `ConfigError` with everything that is wrong, `problems` that were found before first.
    `before`: the values before those that may be wrong were put in.
    """
    found = list(problems)
    try:
        result = section.model_validate(values)
        if not found:
            return result
    except ValidationError as error:
        found += [_explain(section, problem) for problem in error.errors()]
        found += _broken_rules(section, values, before, error)
    hint = f"`sfumato presets show {section.example}` prints a complete configuration."
    raise ConfigError(
        f"{source} has {f'{len(found)} problems' if len(found) > 1 else 'a problem'}:\n  "
        + "\n  ".join(found),
        hint=hint if section.example else "",
    )


def check_rules(problems: Sequence[str]) -> None:
    """`ValueError` with every rule of a section that is broken; for its validator."""
    if problems:
        raise ValueError("; ".join(problems))


def _broken_rules(section: type[S], values: Any, before: Any, error: ValidationError) -> list[str]:
    """Rules between settings that are broken too. They are checked only where all settings are
    right by themselves, so those that are not go back to what they were `before`, or to their
    defaults; a rule that names one of these says nothing."""
    values = deepcopy(values)
    found: list[str] = []
    known: set[tuple[Any, str]] = set()
    names: set[str] = set()
    for _ in range(_LEVELS):
        known |= {(problem["loc"], problem["msg"]) for problem in error.errors()}
        places = [problem["loc"] for problem in error.errors() if problem["loc"]]
        names |= {str(place[-1]) for place in places}
        for place in places:
            _reset(values, before, place)
        try:
            section.model_validate(values)
        except ValidationError as more:
            error = more
        else:
            break
        new = [one for one in error.errors() if (one["loc"], one["msg"]) not in known]
        sentences = [_explain(section, one) for one in new if one["type"] != "missing"]
        found += [one for one in sentences if not any(name in one for name in names)]
    return found


def _reset(values: Any, before: Any, place: Sequence[Any]) -> None:
    """Take a value of nested ones back. The tags of variants in `place` are in no value."""
    for part in place[:-1]:
        if isinstance(values, dict) and part in values:
            values = values[part]
            before = before.get(part) if isinstance(before, dict) else None
    if isinstance(values, dict):
        values.pop(place[-1], None)
        if isinstance(before, dict) and place[-1] in before:
            values[place[-1]] = before[place[-1]]


@cache
def settings_of(section: type[Section]) -> dict[str, JsonSchema]:
    """Every setting's dotted name with its JSON schema, nested sections before their settings.

    A setting that variants of a section share is described by the first, with the choices of all.
    """
    schema = section.model_json_schema()
    found: dict[str, JsonSchema] = {}
    for name, setting in _walk(schema, schema.get("$defs", {}), ""):
        if name not in found:
            found[name] = setting
        elif "const" in setting:
            first = found[name]
            first["enum"] = [*first.get("enum", [first.get("const")]), setting["const"]]
    return found


def _walk(
    node: JsonSchema, definitions: dict[str, JsonSchema], prefix: str
) -> Iterator[tuple[str, JsonSchema]]:
    for name, setting in node.get("properties", {}).items():
        named = [setting, *setting.get("anyOf", ()), *setting.get("oneOf", ())]
        references = [str(one.get("$ref", "")).rpartition("/")[2] for one in named]
        options = [definitions.get(ref) or one for ref, one in zip(references, named, strict=True)]
        about = next((one["description"] for one in options if "description" in one), "")
        yield prefix + name, {"description": about, **setting}
        for option in options:
            yield from _walk(option, definitions, f"{prefix}{name}.")


_OUT_OF_RANGE = {
    "greater_than": "above {}",
    "greater_than_equal": "{} or more",
    "less_than": "below {}",
    "less_than_equal": "{} or less",
}


_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")


def _name_of(section: type[Section], problem: Any) -> str:
    """The dotted name of a setting, without the tags that pydantic adds for variants."""
    settings, name = settings_of(section), ""
    for place, part in enumerate(problem["loc"], start=1):
        inner = f"{name}.{part}".lstrip(".")
        has_settings = any(one.startswith(f"{name}.") for one in settings)
        is_unknown = place == len(problem["loc"]) and problem["type"] in _UNKNOWN
        if not has_settings or inner in settings or is_unknown:
            name = inner
    return name


def _explain(section: type[Section], problem: Any) -> str:
    name = _name_of(section, problem)
    if problem["type"] == "union_tag_invalid":
        tag, known = problem["ctx"]["tag"], problem["ctx"]["expected_tags"]
        return f"{name}.process: '{tag}' is not one of {known}."
    if problem["type"] in _UNKNOWN and name in settings_of(section):
        return f"{name}: the process that was chosen has no such setting."
    if problem["type"] in _UNKNOWN:
        parent, _, key = f".{name}".rpartition(".")
        siblings = [one for one in settings_of(section) if f".{one}".rpartition(".")[0] == parent]
        return f"{name}: no such setting. {nearest(key, [s.rpartition('.')[2] for s in siblings])}"
    if problem["type"] == "model_type":
        return f"{name}: a section of settings cannot be one value (got {problem['input']!r})."
    if problem["type"] == "missing":
        return f"{name}: this setting is required."
    if problem["type"] in _OUT_OF_RANGE:
        (bound,) = problem["ctx"].values()
        bound = int(bound) if bound == int(bound) else bound  # 1000, not 1000.0
        must_be = _OUT_OF_RANGE[problem["type"]].format(bound)
        return f"{name}: must be {must_be} (got {problem['input']!r})."
    message = problem["msg"].removeprefix("Value error, ").partition(", unable to")[0].rstrip(".")
    # A rule over a whole section names the setting itself; the section's values would bury it.
    got = "" if isinstance(problem["input"], dict) else f" (got {problem['input']!r})"
    text = f"{name}: " * bool(name) + f"{message[0].lower()}{message[1:]}{got}"
    return text if text.endswith("?") else f"{text}."
