"""Reading configurations: presets, YAML files and `--set` overrides."""

import os
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from difflib import get_close_matches
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import create_model

from sfumato.base.errors import ConfigError, InputError, nearest
from sfumato.base.section import Section, settings_of, validate

S = TypeVar("S", bound=Section)


def preset_names() -> list[str]:
    """The presets that come with sfumato."""
    folder = files("sfumato.config.presets")
    return sorted(
        item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml")
    )


def read_values(name: str) -> tuple[dict[str, Any], str]:
    """The values of a preset or a YAML file, and what to call them in messages."""
    return read_named(
        name,
        kind="preset",
        folder=files("sfumato.config.presets"),
        names=preset_names(),
        hint="`sfumato presets list` shows them; a YAML file of your own is given by its path.",
    )


def read_named(
    name: str, *, kind: str, folder: Traversable, names: Sequence[str], hint: str
) -> tuple[dict[str, Any], str]:
    """The values of one of `names` in `folder`, or of a YAML file of that path, and what to call
    them in messages. `InputError`, or `ConfigError` with the nearest match and a `hint`."""
    if name.endswith((".yaml", ".yml")) or os.sep in name:
        path = Path(name)
        if not path.is_file():
            raise InputError(
                f"{path} is not a file.",
                hint=f"Give a YAML file, or the name of one of the {kind}s that come with sfumato.",
            )
        text, source = read_text(path), str(path)
    elif name in names:
        text, source = (folder / f"{name}.yaml").read_text("utf-8"), f"{kind} '{name}'"
    else:
        raise ConfigError(f"No {kind} named '{name}'.", hint=f"{nearest(name, names)} {hint}")
    return parse_yaml(text, source), source


def build(
    section: type[S], values: dict[str, Any], overrides: Sequence[str] = (), *, source: str
) -> S:
    """An experiment (or any section) from plain values with `section.key=value` overrides.

    Raises one `ConfigError` with every problem, and the nearest match for what is not known.
    """
    before = deepcopy(values)
    problems = [problem for one in overrides if (problem := _apply(section, values, one))]
    named = {override.partition("=")[0] for override in overrides}
    if {"training.images", "training.epochs"} <= named:
        problems.append("training.images and training.epochs: give one of them.")
    if overrides:
        source += f" with --set {' '.join(overrides)}"
    return validate(section, values, source=source, problems=problems, before=before)


def override(sections: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Sections by name with `section.key=value` overrides; `ConfigError` as `build`."""
    fields: dict[str, Any] = {name: (type(one), one) for name, one in sections.items()}
    schema = create_model("Settings", __base__=Section, **fields)
    found = build(schema, schema().model_dump(mode="json"), overrides, source="The command")
    return {name: getattr(found, name) for name in sections}


def read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise ConfigError(
            f"{path} cannot be read as text: {error}.",
            hint="Give a file of text in UTF-8 that you may read.",
        ) from error


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """A mapping from YAML; `ConfigError` with the line where it is not YAML."""
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        raise ConfigError(
            f"{source}{where}: not valid YAML ({problem}).",
            hint="Check indentation, colons and quotes there.",
        ) from error
    if not isinstance(values, dict):
        found = "nothing" if values is None else "something else"
        raise ConfigError(
            f"{source}: expected lines of `key: value`, found {found}.",
            hint="Begin with `name: NAME`, for example.",
        )
    return values


def _apply(section: type[Section], values: dict[str, Any], override: str) -> str:
    """Put one `section.key=value` into nested values; a sentence on what is wrong with it."""
    path, separator, text = override.partition("=")
    if not separator or not path:
        return f"{override}: expected section.key=value, such as training.batch_size=32."
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return f"{path}: {text!r} is not a YAML value."
    known = list(dict.fromkeys([*settings_of(section), *names_in(values)]))
    if path not in known:
        return f"{path}: no such setting. {_nearest_setting(path, known)}".rstrip()
    *parents, last = path.split(".")
    for parent in parents:
        inner = values.get(parent)
        values[parent] = values = inner if isinstance(inner, dict) else {}
    if last == "process":  # the settings of one process are not those of another
        values.clear()
    if last in ("images", "epochs") and parents == ["training"]:
        values.pop("epochs" if last == "images" else "images", None)
    values[last] = value
    return ""


def names_in(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted names of nested values, those of mappings before what is in them."""
    for key, value in values.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from names_in(value, f"{prefix}{key}.")


_ALSO_KNOWN_AS = {"learning_rate": "lr", "scheduler": "sampler"}


def _nearest_setting(path: str, known: list[str]) -> str:
    """The nearest setting by its last part, since sections are often left out; else the settings of
    the section; empty where there is no such section."""
    settings = [name for name in known if not any(one.startswith(f"{name}.") for one in known)]
    last = path.rsplit(".", 1)[-1]
    last = _ALSO_KNOWN_AS.get(last, last)
    keys = {name.rsplit(".", 1)[-1] for name in settings}
    alike = [last] if last in keys else get_close_matches(last, keys, n=3, cutoff=0.7)
    # Of settings whose last parts are alike, the section decides.
    candidates = [name for name in settings if name.rsplit(".", 1)[-1] in alike]
    if near := get_close_matches(path, candidates, n=1, cutoff=0):
        return f"Did you mean '{near[0]}'?"
    section = f"{path.rpartition('.')[0] or path}."
    own = [name.removeprefix(section) for name in known if name.startswith(section)]
    own = [name for name in own if "." not in name]
    return f"Settings of {section[:-1]}: {', '.join(own)}." if own else ""


def differences(a: Section, b: Section) -> dict[str, tuple[Any, Any]]:
    """Settings in which two experiments differ, by dotted name."""
    first, second = flattened(a.model_dump(mode="json")), flattened(b.model_dump(mode="json"))
    return {
        name: (first.get(name), second.get(name))
        for name in {**first, **second}
        if first.get(name) != second.get(name)
    }


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted name."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flattened(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found
