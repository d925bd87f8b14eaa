"""The key of a survey: whose picture each is, and what an answer is worth."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sfumato.base.errors import DamagedDataError, InputError
from sfumato.base.files import read_json
from sfumato.interactive.survey.designs import Design, Group, design_of
from sfumato.interactive.survey.forms import Layout, Settings, Trial

PUBLIC, PLAN, KEY = "public", "plan.js", "key.json"
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Key:
    """`arms` are names, the real images the last of them; `trials` by their random names; `forms`
    as in the page: of each person the names of trials, and whether the sides are exchanged."""

    survey: str
    design: Design
    arms: list[str]
    groups: list[Group]
    settings: Settings
    trials: dict[str, Trial]
    forms: list[list[tuple[str, bool]]]
    about: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, layout: Layout, arms: list[str], names: list[str], survey: str) -> "Key":
        """Of a layout; `names` are those of its trials."""
        return cls(
            survey=survey,
            design=layout.design,
            arms=arms,
            groups=layout.groups,
            settings=layout.settings,
            trials=dict(zip(names, layout.trials, strict=True)),
            forms=[[(names[number], flip) for number, flip in form] for form in layout.forms],
        )

    def value(self, trial: str, choice: int, flip: bool) -> float:
        """What a choice is worth: of pairs, 1 for the first model of the group."""
        values = self.trials[trial].values
        return values[len(values) - 1 - choice if flip else choice]

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "format": FORMAT,
            "survey": self.survey,
            "design": self.design.name,
            "settings": asdict(self.settings),
            "arms": self.arms,
            "groups": [asdict(group) for group in self.groups],
            "trials": {name: asdict(trial) for name, trial in self.trials.items()},
            "forms": self.forms,
            "about": dict(self.about),
        }


def title_of(key: Key, number: int) -> str:
    """A group in words: `a over b`, `a`, or `creativity of a`."""
    group = key.groups[number]
    names = [key.arms[arm] for arm in group.arms]
    word = key.design.words[group.question]
    return " over ".join(names) if len(names) > 1 else f"{word} of {names[0]}" if word else names[0]


def read_key(folder: Path) -> Key:
    """The key of a survey's folder; `InputError` where it is none, `DamagedDataError` for a key
    that sfumato did not write."""
    if not (folder / KEY).is_file():
        raise InputError(
            f"{folder} is no survey: it has no {KEY}.",
            hint="Give a folder made by `sfumato survey build`.",
        )
    known = read_json(folder / KEY)
    try:
        return Key(
            survey=known["survey"],
            design=design_of(known["design"]),
            arms=list(known["arms"]),
            groups=[Group(**{**one, "arms": tuple(one["arms"])}) for one in known["groups"]],
            settings=Settings(**known["settings"]),
            trials={name: _trial(one) for name, one in known["trials"].items()},
            forms=[[(name, bool(flip)) for name, flip in form] for form in known["forms"]],
            about=known["about"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedDataError(
            f"{folder / KEY} is not what sfumato wrote.",
            hint="A survey cannot be analysed without its key: restore it from a copy.",
        ) from error


def _trial(plain: dict[str, Any]) -> Trial:
    return Trial(**{**plain, "arms": tuple(plain["arms"]), "values": tuple(plain["values"])})
