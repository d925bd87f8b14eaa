"""Sampling many prompts into a folder, each image once: what is there already is not made again."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sfumato.base.errors import InputError
from sfumato.base.files import write_bytes
from sfumato.base.images import settings_in_png
from sfumato.generation.model import Model
from sfumato.generation.prompts_file import PromptLine
from sfumato.generation.start import Start
from sfumato.text.encoder import NULL

BATCH = 64
"""Images that are sampled before they are written."""
_FOLLOWS = ("first_t", "nfe", "rows", "sfumato")
"""Settings in a PNG that follow from the others, or do not say which image it is."""
Key = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Images that one model samples with the same settings: (prompt, seed) of each; `start`: the
    one image that all of them start from."""

    model: Model
    negative_prompt: str
    images: Sequence[tuple[str, int]]
    start: Start | None = None

    def key(self, prompt: str, seed: int) -> Key:
        """What makes an image of this group the one it is."""
        settings = {"prompt": prompt, "seed": seed, **self.model.settings()}
        if self.negative_prompt != NULL:
            settings["negative_prompt"] = self.negative_prompt
        if self.start is not None:
            settings |= self.start.settings(0)
        return _key(settings)


def _key(settings: dict[str, Any]) -> Key:
    return tuple(sorted((k, str(v)) for k, v in settings.items() if k not in _FOLLOWS))


def groups_of(
    model: Model,
    lines: Sequence[tuple[int, PromptLine]],
    *,
    seed: int,
    count: int,
    negative_prompt: str,
    start: Start | None = None,
) -> list[Group]:
    """The images of a file of prompts, those of equal settings together, each image once.

    `lines`: each with its number in its file, 0 without one; `seed`, `count` and `negative_prompt`:
    of lines that have none; `start`: of all images. `InputError` with the number of
    the line for settings that the model cannot sample with.
    """
    found: dict[tuple[Any, ...], Group] = {}
    images: dict[tuple[Any, ...], dict[tuple[str, int], None]] = {}
    for number, line in lines:
        negative = negative_prompt if line.negative_prompt is None else line.negative_prompt
        settings = (line.guidance, line.steps, line.sampler, negative)
        if settings not in found:
            own = _model_of(model, line, number, 1.0 if start is None else start.strength)
            found[settings] = Group(model=own, negative_prompt=negative, images=(), start=start)
        first = seed if line.seed is None else line.seed
        seeds = range(first, first + (count if line.count is None else line.count))
        if seeds[-1] >= 2**63:
            where = f"Line {number}: seed" if number else "Seed"
            raise InputError(f"{where} {seeds[-1]} is out of range.", hint="Give 0 to 2**63 - 1.")
        images.setdefault(settings, {}).update({(line.prompt, own): None for own in seeds})
    return [replace(group, images=list(images[key])) for key, group in found.items()]


def _model_of(model: Model, line: PromptLine, number: int, strength: float) -> Model:
    try:
        own = model.with_(guidance=line.guidance, steps=line.steps, sampler=line.sampler)
        own.nfe(strength)  # more steps than the process has levels are refused here, and none
    except InputError as error:
        where = f"Line {number}: " if number else ""
        raise InputError(f"{where}{error.what}", hint=error.hint) from error
    return own


def without_those_in(folder: Path, groups: Sequence[Group]) -> list[Group]:
    """The groups without images that lie in `folder` with the same settings, by what PNGs say."""
    there = set(_keys_in(folder))
    return [
        replace(group, images=[one for one in group.images if group.key(*one) not in there])
        for group in groups
    ]


def _keys_in(folder: Path) -> Iterator[Key]:
    for file in folder.glob("*.png"):
        try:
            yield _key(dict(settings_in_png(file)))
        except InputError:  # no image: it is made again, under another name
            continue


def sample_groups(
    groups: Sequence[Group],
    path_of: Callable[[dict[str, Any]], Path],
    *,
    on_image: Callable[[Path], None],
    alone: bool = False,
) -> None:
    """Sample and write every image; `path_of`: the file of an image by its settings; `alone`: as
    in `Model.sample`."""
    for group in groups:
        for start in range(0, len(group.images), BATCH):
            part = group.images[start : start + BATCH]
            samples = group.model.sample(
                [prompt for prompt, _ in part],
                [seed for _, seed in part],
                negative_prompt=group.negative_prompt,
                alone=alone,
                **({} if group.start is None else group.start.arguments()),
            )
            for index, settings in enumerate(samples.settings):
                path = path_of(settings)
                write_bytes(path, samples.png(index))
                on_image(path)
