"""`survey build`: a folder with the page that people see, and beside it the key.

survey/
  public/            all that anybody may read: index.html, plan.js, pictures under random names
  key.json           which picture is whose; answers mean nothing without it
  answers.sqlite     the answers, once `survey serve` runs
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sfumato import __version__
from sfumato.base.environment import command, now
from sfumato.base.errors import DataWarning, InputError
from sfumato.base.files import whole_folder, write_bytes, write_json, write_text
from sfumato.base.images import png_bytes, to_pil
from sfumato.base.randomness import derived_seed, generator_for
from sfumato.interactive.survey.designs import Design, Question, design_of, with_tie
from sfumato.interactive.survey.forms import SCRAMBLED, Settings, Trial, make_layout
from sfumato.interactive.survey.key import FORMAT, KEY, PLAN, PUBLIC, Key
from sfumato.interactive.survey.pictures import Arm, alike, scrambled

if TYPE_CHECKING:
    from torch import Tensor

PICTURES, PAGE = "pictures", "index.html"
PAGE_FILES = (PAGE, "survey.js", "survey.css")
PLAN_START = "window.SURVEY = "
CONSENT = (
    "You will see pictures and be asked what you think of them. There are no right or wrong "
    "opinions. Your answers are stored under a random number, with the time that each took, and "
    "without your name or address. Taking part is voluntary: you may stop at any time by closing "
    "this page."
)


@dataclass(frozen=True, kw_only=True)
class Words:
    """What people read before the pictures."""

    title: str = "A survey about pictures"
    consent: str = CONSENT


WORDS = Words()


def build_survey(
    arms: Sequence[Arm],
    settings: Settings,
    out: Path,
    *,
    seed: int,
    words: Words = WORDS,
    real: Arm | None = None,
) -> Key:
    """Write a survey of the `arms` into `out`, which must be new; `seed` decides order, sides and
    names, so it is as secret as the key.

    `InputError` for what the design needs and the pictures have not: captions, several models.
    """
    design = design_of(settings.design)
    every = [*arms, real] if real is not None else list(arms)
    if design.real and real is None:
        raise InputError("This design needs real images.", hint="Name them with --real SOURCE.")
    _check_captions(design, arms)
    rng = np.random.default_rng(derived_seed("survey", seed))
    layout = make_layout(design, len(arms), settings, rng)
    names = _Names(rng)
    pictures: dict[tuple[int, int], str] = {}
    trials = [names.new() for _ in layout.trials]
    key = Key.of(layout, [arm.name for arm in every], trials, names.new())
    captions = _Captions(design, arms, settings, rng)
    shown = [_shown(design, trial, captions, names, pictures) for trial in layout.trials]
    plan = _plan(key, words, dict(zip(trials, shown, strict=True)))
    with whole_folder(out, private=(KEY,)) as folder:
        _write_public(folder / PUBLIC, plan, _bytes_of(every, pictures, seed))
        _write_key(folder / KEY, key, every, pictures, seed)
    return key


def _check_captions(design: Design, arms: Sequence[Arm]) -> None:
    """`InputError` where captions that are shown are missing or differ within a pair; a warning
    where they differ and are not shown."""
    for arm in arms if design.shows != "nothing" else ():
        if arm.prompts is None:
            raise InputError(
                f"The design '{design.name}' shows captions, and {arm.name} has none.",
                hint="Give a model, or PNGs that sfumato wrote, which carry them.",
            )
    known = [arm.prompts for arm in arms if arm.prompts is not None]
    if not design.pair or all(prompts == known[0] for prompts in known):
        return
    what = "The subjects do not have the same captions in the same order"
    hint = "Give models, which are sampled from the same captions, or folders with the same."
    if design.shows != "nothing":
        raise InputError(f"{what}, and two pictures share one caption here.", hint=hint)
    warnings.warn(
        f"{what}: two pictures beside each other may show different things. {hint}",
        DataWarning,
        stacklevel=3,
    )


class _Names:
    """Random names; none is given twice."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._given: set[str] = set()

    def new(self) -> str:
        name = self._rng.bytes(8).hex()
        return self.new() if name in self._given else self._given.add(name) or name


# What is shown ------------------------------------------------------------------------------------


class _Captions:
    """The captions of pictures, and others to choose from."""

    def __init__(
        self, design: Design, arms: Sequence[Arm], settings: Settings, rng: np.random.Generator
    ) -> None:
        self._arms, self._settings, self._rng = arms, settings, rng
        self._known: dict[str, int | str] = {}
        for arm in arms if design.shows != "nothing" else ():
            for place, prompt in enumerate(arm.prompts or ()):
                self._known.setdefault(prompt, arm.labels[place] if arm.labels else prompt)

    def of(self, trial: Trial) -> str:
        prompts = self._arms[max(trial.arms)].prompts
        assert prompts is not None
        return prompts[trial.item]

    def choices(self, trial: Trial) -> list[str]:
        """Captions of other classes around the right one, or the answer that is asked for."""
        own = self.of(trial)
        others = [text for text, of in self._known.items() if of != self._known[own]]
        count = self._settings.captions - 1
        if len(others) < count:
            raise InputError(
                f"There are {len(others) + 1} different captions, and people choose among "
                f"{count + 1}.",
                hint="Give more captions with --prompt.",
            )
        drawn = self._rng.permutation(len(others))[:count].tolist()
        found = [others[place] for place in drawn]
        assert trial.right is not None
        asked = "Please choose this text" if trial.kind == "attention" else own
        return [*found[: trial.right], asked, *found[trial.right :]]


def _shown(
    design: Design,
    trial: Trial,
    captions: _Captions,
    names: _Names,
    pictures: dict[tuple[int, int], str],
) -> dict[str, Any]:
    """A trial as the page has it; `pictures` gets a name for each (model, item) that is shown."""
    shown: dict[str, Any] = {"question": trial.question, "pictures": []}
    for arm in trial.arms:
        if (arm, trial.item) not in pictures:
            pictures[arm, trial.item] = names.new()
        shown["pictures"].append(pictures[arm, trial.item])
    if design.shows == "caption":
        shown["caption"] = captions.of(trial)
    elif design.shows == "captions":
        shown["choices"] = captions.choices(trial)
    elif trial.kind == "attention" and trial.right is not None:
        shown["text"] = f"To show that you read the questions, please choose {trial.right + 1}."
    if trial.kind == "practice":
        shown["practice"] = True
    return shown


def _plan(key: Key, words: Words, trials: dict[str, Any]) -> dict[str, Any]:
    """All that the page knows. Trials are sorted by their random names."""
    questions = list(key.design.questions)
    if key.design.pair and key.settings.ties:
        questions = with_tie(questions)
    return {
        "format": FORMAT,
        "survey": key.survey,
        **asdict(words),
        "questions": [_question(one) for one in questions],
        "trials": dict(sorted(trials.items())),
        "forms": [[[name, int(flip)] for name, flip in form] for form in key.forms],
    }


def _question(question: Question) -> dict[str, Any]:
    return {"text": question.text, "choices": question.choices, "ends": question.ends}


# Writing ------------------------------------------------------------------------------------------


def _bytes_of(
    arms: Sequence[Arm], names: Mapping[tuple[int, int], str], seed: int
) -> dict[str, bytes]:
    """The PNG of each name, made from pixels alone: no text, time or profile of a file is left."""
    pictures = alike(arms)
    made = {}
    for (arm, item), name in names.items():
        image = pictures[max(arm, 0)][item]
        made[name] = png_bytes(to_pil(_scrambled(image, seed, item) if arm == SCRAMBLED else image))
    return made


def _scrambled(image: "Tensor", seed: int, item: int) -> "Tensor":
    import torch

    generator = generator_for("scrambled", seed, item)
    return scrambled(image, lambda n: torch.randperm(n, generator=generator))


def _write_public(folder: Path, plan: dict[str, Any], pictures: Mapping[str, bytes]) -> None:
    import os

    room = files("sfumato.interactive.survey") / "page"
    for name in PAGE_FILES:
        write_bytes(folder / name, (room / name).read_bytes())
    text = json.dumps(plan, ensure_ascii=False, separators=(",", ":"))
    write_text(folder / PLAN, f"{PLAN_START}{text};\n")
    for name in sorted(pictures):
        write_bytes(folder / PICTURES / f"{name}.png", pictures[name])
    for file in folder.rglob("*.*"):  # times of writing would tell the order of the models
        os.utime(file, (0, 0))


def _write_key(
    file: Path,
    key: Key,
    arms: Sequence[Arm],
    pictures: Mapping[tuple[int, int], str],
    seed: int,
) -> None:
    def picture(arm: int, item: int) -> dict[str, Any]:
        prompts = arms[max(arm, 0)].prompts
        name = "scrambled" if arm == SCRAMBLED else arms[arm].name
        return {"arm": name, "item": item, "prompt": None if prompts is None else prompts[item]}

    about = {
        "sfumato": __version__,
        "date": now(),
        "command": command(),
        "seed": seed,
        "models": {arm.name: arm.about for arm in arms},
        "pictures": {name: picture(*whose) for whose, name in pictures.items()},
    }
    write_json(file, replace(key, about=about).plain())
