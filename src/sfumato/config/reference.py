"""The settings in words: a preset as commented YAML, and the reference of all settings."""

import json
import textwrap
from collections.abc import Iterator
from typing import Any

import yaml

from sfumato.base.section import JsonSchema, Section, settings_of
from sfumato.config.schema import SCHEMAS, Experiment

WIDTH = 100


def commented_yaml(experiment: Experiment) -> str:
    """Every setting of an experiment below its documentation; it loads again as an experiment."""
    values = experiment.model_dump(mode="json")
    return "\n".join(_lines(values, settings_of(type(experiment)), "")) + "\n"


def _lines(values: dict[str, Any], documented: dict[str, JsonSchema], prefix: str) -> Iterator[str]:
    indent = "  " * prefix.count(".")
    for key, value in values.items():
        name = prefix + key
        is_section = isinstance(value, dict) and any(
            one.startswith(f"{name}.") for one in documented
        )
        if is_section:
            yield ""
        about = documented.get(name, {}).get("description", "")
        for paragraph in about.split("\n\n")[: 1 if is_section else None]:
            yield from textwrap.wrap(
                paragraph, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
            )
        if is_section:
            yield f"{indent}{key}:"
            yield from _lines(value, documented, f"{name}.")
        else:
            yield from textwrap.indent(_item(key, value, WIDTH - len(indent)), indent).splitlines()
            if value is None:
                yield from _absent(documented, f"{name}.", f"{indent}#   ")


def _absent(documented: dict[str, JsonSchema], section: str, start: str) -> Iterator[str]:
    """The settings of a section that an experiment is without."""
    for name, setting in documented.items():
        if name.startswith(section):
            about = f"{name.removeprefix(section)}: {setting['description']}"
            yield from textwrap.wrap(
                about, WIDTH, initial_indent=start, subsequent_indent=f"{start}  "
            )


def _item(key: str, value: Any, width: int) -> str:
    """`key: value`, lists in one line where they fit."""
    options: dict[str, Any] = {"sort_keys": False, "allow_unicode": True, "width": width}
    if isinstance(value, list):
        line = f"{key}: " + yaml.safe_dump(
            value, default_flow_style=True, allow_unicode=True, width=10**6
        )
        if len(line) <= width:
            return line
    return yaml.safe_dump({key: value}, **options)


# The reference ------------------------------------------------------------------------------------

HEADER = """\
# Settings

Every setting of `experiment.yaml`, by method of training. Change one with
`--set section.key=value`; `sfumato presets show NAME` prints a preset in full. This page is written
by `sfumato presets settings > docs/settings.md`.
"""


def settings_reference() -> str:
    """Every setting of every method in Markdown: name, type, default, meaning."""
    parts, shown = [HEADER], {}
    for method, schema in SCHEMAS.items():
        parts.append(f"## {method.capitalize()}\n\n{_paragraph(schema)}\n")
        for section, rows in _by_section(schema).items():
            title = section or "Top level"
            if (place := shown.setdefault((section, tuple(rows)), method)) != method:
                parts.append(f"### {title}\n\nAs under {place}.\n")
                continue
            table = ["| setting | type | default | meaning |", "| --- | --- | --- | --- |", *rows]
            about = settings_of(schema).get(section, {}).get("description", "")
            parts.append(
                "\n".join([f"### {title}", "", *([_one_line(about), ""] if about else []), *table])
                + "\n"
            )
    return "\n".join(parts)


def _by_section(schema: type[Section]) -> dict[str, list[str]]:
    """Rows of the settings of each section that are not sections themselves."""
    settings = settings_of(schema)
    sections: dict[str, list[str]] = {}
    for name, setting in settings.items():
        section, _, key = name.rpartition(".")
        if not any(other.startswith(f"{name}.") for other in settings):
            default = f"`{_text(setting['default'])}`" if "default" in setting else "required"
            cells = (f"`{key}`", _type(setting), default, _one_line(setting["description"]))
            row = " | ".join(cell.replace("|", "\\|") for cell in cells)
            sections.setdefault(section, []).append(f"| {row} |")
    return sections


def _paragraph(section: type[Section]) -> str:
    return _one_line((section.__doc__ or "").split("\n\n")[0])


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _text(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


_NAMES = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false"}


def _type(setting: JsonSchema) -> str:
    """The type of a setting in words, with its range."""
    if "anyOf" in setting:
        return " or ".join(_type(option) for option in setting["anyOf"])
    if "enum" in setting or "const" in setting:
        return ", ".join(f"`{_text(one)}`" for one in setting.get("enum", [setting.get("const")]))
    if "prefixItems" in setting:
        return f"{len(setting['prefixItems'])} values: {_type(setting['prefixItems'][0])}"
    kind = setting.get("type", "any")
    if kind == "array":
        return f"list of: {_type(setting['items'])}"
    if kind == "object":
        return "mapping"
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    ranges = [f"{sign} {setting[key]:g}" for key, sign in bounds.items() if key in setting]
    return f"{_NAMES.get(kind, kind)} {', '.join(ranges)}".strip()
