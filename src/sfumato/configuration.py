"""Reading configurations: presets, YAML files, overrides; and whose a run folder is."""

import difflib
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import Field

from sfumato.base.errors import ConfigError, InputError, nearest
from sfumato.base.files import is_temporary, make_folder, remove_incomplete, write_text
from sfumato.base.section import Section, validate
from sfumato.training.checkpoint import Checkpoints


class Recipe(Section):
    """What `sfumato train` can train: `experiment.yaml` in the run folder holds it, resolved.

    A method of training is a subclass and an entry in `methods.METHODS`.
    """

    changeable_on_resume: ClassVar[Mapping[str, str]]
    """Settings that may differ when a run goes on; any other difference is another experiment."""

    name: str
    """The preset's name."""
    about: str = ""
    """One line for people."""
    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    """Seed of weights, order, noise and dropped captions."""

    def length(self, data_set_size: int) -> tuple[int, int]:
        """Length of the run and of a batch, in images."""
        raise NotImplementedError

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


S = TypeVar("S", bound=Section)


def preset_names() -> list[str]:
    """The presets that come with sfumato."""
    folder = files("sfumato.presets")
    return sorted(
        item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml")
    )


def read_values(name: str) -> tuple[dict[str, Any], str]:
    """The values of a preset or a YAML file, and what to call them in messages."""
    return read_named(
        name,
        kind="preset",
        folder=files("sfumato.presets"),
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
            raise InputError(f"{path} is not a file.", mend=f"Give the name of a {kind} or a file.")
        text, source = _read_text(path), str(path)
    elif name in names:
        text, source = (folder / f"{name}.yaml").read_text("utf-8"), f"{kind} '{name}'"
    else:
        raise ConfigError(f"No {kind} named '{name}'.", mend=f"{nearest(name, names)} {hint}")
    return parse_yaml(text, source), source


def build(
    section: type[S], values: dict[str, Any], overrides: Sequence[str] = (), *, source: str
) -> S:
    """A recipe (or any section) from plain values with `section.key=value` overrides.

    Raises `ConfigError` with the nearest match for whatever is not known.
    """
    named = {override.partition("=")[0] for override in overrides}
    if {"training.images", "training.epochs"} <= named:
        raise ConfigError(
            "--set names training.images and training.epochs.", mend="Give one of them."
        )
    for override in overrides:
        _apply(section, values, override)
    if overrides:
        source += f" with --set {' '.join(overrides)}"
    return validate(section, values, source=source)


def _read_text(path: Path) -> str:
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
            mend="Check indentation, colons and quotes there.",
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
            mend="For example: --set training.batch_size=32",
        )
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: {text!r} is not a YAML value.") from error
    known = list(dict.fromkeys([*setting_names(section), *_names_in(values)]))
    if path not in known:
        raise ConfigError(
            f"--set {path}: no such setting.",
            mend=_nearest_setting(path, known)
            or (f"`sfumato presets show {section.example}` lists all." if section.example else ""),
        )
    *parents, last = path.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
    if last in ("images", "epochs") and parents == ["training"]:
        values.pop("epochs" if last == "images" else "images", None)
    values[last] = value


def _names_in(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The dotted names of nested values: parts of a mapping whose keys are the preset's own."""
    names = []
    for key, value in values.items():
        names.append(f"{prefix}{key}")
        if isinstance(value, Mapping):
            names += _names_in(value, f"{prefix}{key}.")
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


def setting_names(section: type[Section], prefix: str = "") -> list[str]:
    """Every setting's dotted name, sections included."""
    names = []
    for name, field in section.model_fields.items():
        names.append(prefix + name)
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            names += setting_names(annotation, f"{prefix}{name}.")
    return names


def differences(a: Recipe, b: Recipe) -> dict[str, tuple[Any, Any]]:
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


def claim_folder(recipe: Recipe, folder: Path) -> None:
    """Make `folder` this recipe's, or check that it is; nothing of another is overwritten."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file.", mend="Give --out a new folder.")
    file = folder / "experiment.yaml"
    if file.exists():
        values = parse_yaml(_read_text(file), str(file))
        written = _names_in(values)
        there = build(type(recipe), values, source=str(file))
        other = {
            name: values
            for name, values in differences(there, recipe).items()
            if not any(
                name == key or name.startswith(f"{key}.") for key in recipe.changeable_on_resume
            )
        }
        if other:
            shown = "; ".join(f"{n} is {a!r} there, {b!r} here" for n, (a, b) in other.items())
            hints = (
                f" Images that only moved: write their new place into data.source of {file}."
                if set(other) == {"data.source"}
                else ""
            )
            newer = [name for name in other if name not in written]
            if newer:
                hints += (
                    f" {file} was written before there was {', '.join(newer)}: to go on, write "
                    "there what the run was trained with."
                )
            raise ConfigError(
                f"{folder} holds another experiment: {shown}.",
                mend="Choose another --out, or the settings of that folder to go on with it."
                + hints,
            )
    elif folder.exists() and not all(is_temporary(path) for path in folder.iterdir()):
        raise ConfigError(
            f"{folder} exists and is not a run of sfumato.",
            mend="Choose a new or empty folder with --out; nothing there was touched.",
        )
    _refuse_a_length_already_passed(recipe, folder)
    make_folder(folder)
    for place in (folder, folder / "samples", folder / "checkpoints"):
        remove_incomplete(place)
    text = recipe.to_yaml()
    if not file.exists() or file.read_text("utf-8") != text:
        write_text(file, text)


def _refuse_a_length_already_passed(recipe: Recipe, folder: Path) -> None:
    """A run cannot be shortened to before its newest checkpoint; its record would be untrue."""
    checkpoints = Checkpoints(folder / "checkpoints")
    images, batch_size = recipe.length(checkpoints.data_set_size() or sys.maxsize)
    seen = max(checkpoints.counts(), default=0)
    if seen - batch_size >= images:
        raise ConfigError(
            f"{folder} has trained on {seen:,} images already, more than the {images:,} asked for.",
            mend="Give a larger training.images (or training.epochs), or another --out; nothing "
            "there was touched.",
        )
