"""Reading configurations: presets, YAML files, overrides; and whose a run folder is."""

import difflib
import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from sfumato.base.errors import ConfigError, InputError, nearest
from sfumato.base.section import Section, annotations_of, sections_in, validate

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
            raise InputError(f"{path} is not a file.", hint=f"Give the name of a {kind} or a file.")
        text, source = read_text(path), str(path)
    elif name in names:
        text, source = (folder / f"{name}.yaml").read_text("utf-8"), f"{kind} '{name}'"
    else:
        raise ConfigError(f"No {kind} named '{name}'.", hint=f"{nearest(name, names)} {hint}")
    return parse_yaml(text, source), source


def build(
    section: type[S], values: dict[str, Any], overrides: Sequence[str] = (), *, source: str
) -> S:
    """A experiment (or any section) from plain values with `section.key=value` overrides.

    Raises `ConfigError` with the nearest match for whatever is not known.
    """
    named = {override.partition("=")[0] for override in overrides}
    if {"training.images", "training.epochs"} <= named:
        raise ConfigError(
            "--set names training.images and training.epochs.", hint="Give one of them."
        )
    for override in overrides:
        _apply(section, values, override)
    if overrides:
        source += f" with --set {' '.join(overrides)}"
    return validate(section, values, source=source)


def read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path} cannot be read as text: {error}.") from error


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
        raise ConfigError(f"{source}: expected `key: value` lines, found {type(values).__name__}.")
    return values


def _apply(section: type[Section], values: dict[str, Any], override: str) -> None:
    """Put one `section.key=value` into nested values; `ConfigError` for unknown keys."""
    path, separator, text = override.partition("=")
    if not separator or not path:
        raise ConfigError(
            f"--set {override}: expected section.key=value.",
            hint="For example: --set training.batch_size=32",
        )
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: {text!r} is not a YAML value.") from error
    known = list(dict.fromkeys([*setting_names(section), *names_in(values)]))
    if path not in known:
        raise ConfigError(
            f"--set {path}: no such setting.",
            hint=_nearest_setting(path, known)
            or (f"`sfumato presets show {section.example}` lists all." if section.example else ""),
        )
    *parents, last = path.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
    if last == "process":  # the settings of one process are not those of another
        values.clear()
    if last in ("images", "epochs") and parents == ["training"]:
        values.pop("epochs" if last == "images" else "images", None)
    values[last] = value


def names_in(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The dotted names of nested values: parts of a mapping whose keys are the preset's own."""
    names = []
    for key, value in values.items():
        names.append(f"{prefix}{key}")
        if isinstance(value, Mapping):
            names += names_in(value, f"{prefix}{key}.")
    return names


_ALSO_KNOWN_AS = {"learning_rate": "lr"}


def _nearest_setting(path: str, known: list[str]) -> str:
    """Sections are often forgotten, so the last part alone may name the setting; where none is
    near the settings of the section, empty where there is no such section either.
    """
    settings = [name for name in known if not any(one.startswith(f"{name}.") for one in known)]
    last = path.rsplit(".", 1)[-1]
    last = _ALSO_KNOWN_AS.get(last, last)
    keys = {name.rsplit(".", 1)[-1] for name in settings}
    alike = [last] if last in keys else difflib.get_close_matches(last, keys, n=3, cutoff=0.7)
    # Of settings whose last parts are alike, the section decides.
    near = difflib.get_close_matches(
        path, [name for name in settings if name.rsplit(".", 1)[-1] in alike], n=1, cutoff=0
    )
    if near:
        return f"Did you mean '{near[0]}'?"
    section = f"{path.rpartition('.')[0] or path}."
    own = [name.removeprefix(section) for name in known if name.startswith(section)]
    own = [name for name in own if "." not in name]
    return f"Settings of {section[:-1]}: {', '.join(own)}." if own else ""


def setting_names(section: type, prefix: str = "") -> list[str]:
    """Every setting's dotted name, sections included."""
    names = []
    for name, annotation in annotations_of(section).items():
        names.append(prefix + name)
        for inner in sections_in(annotation):
            names += setting_names(inner, f"{prefix}{name}.")
    return list(dict.fromkeys(names))


def differences(a: Section, b: Section) -> dict[str, tuple[Any, Any]]:
    """Settings in which two experiments differ, by dotted name."""

    def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, item in value.items():
            if isinstance(item, Mapping):
                result.update(flat(item, f"{prefix}{key}."))
            else:
                result[prefix + key] = item
        return result

    first, second = flat(a.model_dump(mode="json")), flat(b.model_dump(mode="json"))
    return {
        name: (first.get(name), second.get(name))
        for name in {**first, **second}
        if first.get(name) != second.get(name)
    }
