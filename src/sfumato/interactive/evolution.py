"""Interactive evolution: a person picks images, and their noise has children.

The history is a folder with a tree of generations: any of them can be gone on from. An image is a
function of the first seed and of the picks that led to it, so the same picks give the same bytes.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.base.errors import DamagedDataError, InputError
from sfumato.base.files import read_json, remove_incomplete, write_bytes, write_json
from sfumato.base.images import png_bytes
from sfumato.base.randomness import derived_seed
from sfumato.base.words import counted
from sfumato.generation.genome import (
    Genome,
    Weights,
    check_deterministic,
    deviation,
    genome_in_png,
    sample_genomes,
)
from sfumato.generation.model import Model
from sfumato.interactive.operators import Operators
from sfumato.report.grids import numbered_grid

HISTORY, IMAGES = "evolution.json", "images"
"""The tree, and the folder of its images, each once, whichever generations it is in."""
FORMAT = 2
"""Counts how children are made: a history of another number is not gone on with."""
_ABOUT = ("prompts", "seed", "size", "operators", "settings")
"""What a history says of itself."""
_SAMPLING = {
    "guidance": "guidance_scale",
    "form": "guidance",
    "sampler": "sampler",
    "steps": "steps",
    "timestep_spacing": "timestep_spacing",
}
"""Names of settings in `Model.with_` and in a history."""
SIZE = 16
"""Images of a generation."""


Check = Callable[[], None]
"""Called at every step and before anything is written: what it raises ends a generation, of which
nothing is kept."""


def _wanted() -> None:
    """The check of a generation that nobody cancels."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """`parent`: the generation that it came from, None for the first; `picks`: what was picked
    there, by number from 1; `images`: names of its images, the `kept` favourites first;
    `deviation`: root mean square of their noise; `key`: of its randomness."""

    parent: int | None
    picks: tuple[int, ...]
    kept: int
    images: tuple[str, ...]
    deviation: float
    key: str


class Evolution:
    """The history of an evolution in a folder, and the model that it samples with."""

    def __init__(
        self, model: Model, folder: Path, operators: Operators, about: dict[str, Any]
    ) -> None:
        """See `begin` and `resume`."""
        self.model = model
        self.folder = folder
        self.operators = operators
        self.about = about
        self.generations: list[Generation] = []

    @classmethod
    def begin(
        cls,
        model: Model,
        prompts: Sequence[str],
        folder: Path,
        *,
        seed: int = 0,
        size: int = SIZE,
        operators: Operators | None = None,
        start: Sequence[Path] = (),
        check: Check = _wanted,
    ) -> "Evolution":
        """Sample generation 0 into a new folder: `start`, PNGs with genomes, then the images of
        `seed` and the next ones, of the `prompts` in turn. `check`: see `Check`.

        `InputError` for no prompt, a sampler that draws noise, sizes that are too small, and a
        folder that has a history.
        """
        operators = operators or Operators()
        _check_start(model, prompts, size, operators, start)
        if (folder / HISTORY).exists():
            raise InputError(
                f"{folder} has a history of an evolution.",
                hint="Go on with it, or give another folder.",
            )
        about = {
            "format": FORMAT,
            "prompts": list(prompts),
            "seed": seed,
            "size": size,
            "operators": operators.plain(),
            "settings": _settings(model),
        }
        history = cls(model, folder, operators, about)
        given = [_with_weights(path) for path in start]
        seeds = range(seed, seed + size - len(given))
        new = [operators.founder(one, prompts[i % len(prompts)]) for i, one in enumerate(seeds)]
        about = {"parent": None, "picks": (), "kept": 0, "key": f"evolution/{seed}"}
        history._add(given + new, check, **about)
        return history

    @classmethod
    def resume(cls, model: Model, folder: Path) -> "Evolution":
        """The history in a folder; `InputError` where there is none, or where the model or its
        settings are not those that it began with."""
        if not (folder / HISTORY).is_file():
            raise InputError(
                f"{folder} has no history of an evolution.", hint="Give a prompt to begin one."
            )
        about, generations = _history(folder)
        settings = about["settings"]
        check_deterministic(model)
        for name, value in _settings(model).items():
            if settings.get(name) != value:
                raise InputError(
                    f"{folder} was evolved with {name.replace('_', ' ')} "
                    f"'{settings.get(name)}', not '{value}'.",
                    hint="Give the model and the options that it began with, or another folder.",
                )
        history = cls(model, folder, Operators(**about["operators"]), about)
        history.generations = generations
        return history

    def advance(
        self, picks: Sequence[int], *, generation: int | None = None, check: Check = _wanted
    ) -> int:
        """Sample the generation that follows from `picks`, numbers from 1, of a generation, the
        newest unless given. Returns its number: that of the one there already for the same picks.
        `check`: see `Check`.

        Up to half of a generation's size of the picked are kept; they are parents in turn, those
        that are not kept first. No picks: all are new. `InputError` for a number that is not there.
        """
        parent = self.number(generation)
        size = self.about["size"]
        for pick in picks:
            if not 1 <= pick <= size:
                raise InputError(
                    f"There is no image {pick}.", hint=f"Pick numbers from 1 to {size}."
                )
        chosen = tuple(sorted(set(picks)))
        for number, one in enumerate(self.generations):
            if (one.parent, one.picks) == (parent, chosen):
                self.write_grid(number)
                return number
        before = self.generations[parent]
        key = f"{before.key}/{','.join(map(str, chosen)) or 'none'}"
        parents = [self.genome(before.images[pick - 1]) for pick in chosen]
        return self._add(
            self.operators.following(
                parents, self.about["prompts"], size=size, key=key, depth=self._depth(parent)
            ),
            check,
            parent=parent,
            picks=chosen,
            kept=min(len(parents), size // 2),
            key=key,
        )

    def number(self, generation: int | None = None) -> int:
        """`generation`, the newest unless given; `InputError` for one that is not there."""
        newest = len(self.generations) - 1
        number = newest if generation is None else generation
        if not 0 <= number <= newest:
            raise InputError(f"There is no generation {number}.", hint=f"Give 0 to {newest}.")
        return number

    def _depth(self, number: int) -> int:
        """Generations between one of new images alone and this one."""
        depth, one = 0, self.generations[number]
        while one.picks and one.parent is not None:
            depth, one = depth + 1, self.generations[one.parent]
        return depth

    def _add(self, genomes: Sequence[Genome], check: Check, **about: Any) -> int:
        """Sample the images that are not there yet, then write the tree and the grid."""
        remove_incomplete(self.folder / IMAGES)
        names = [f"{derived_seed(str(genome)):016x}" for genome in genomes]
        new = {n: g for n, g in zip(names, genomes, strict=True) if not self.path(n).exists()}
        pngs: list[bytes] = []
        if new:
            samples = sample_genomes(self.model, list(new.values()), on_step=lambda step: check())
            pngs = [samples.png(index) for index in range(len(new))]
        spread = deviation(genomes, self.model.shape)
        check()
        for name, png in zip(new, pngs, strict=True):
            write_bytes(self.path(name), png)
        self.generations.append(Generation(images=tuple(names), deviation=spread, **about))
        number = len(self.generations) - 1
        self.write_grid(number)
        known = [asdict(generation) for generation in self.generations]
        write_json(self.folder / HISTORY, {**self.about, "generations": known})
        return number

    # What there is --------------------------------------------------------------------------------

    def path(self, image: str) -> Path:
        """The PNG of an image by its name."""
        return self.folder / IMAGES / f"{image}.png"

    def genome(self, image: str) -> Genome:
        """Of an image, from its PNG; `DamagedDataError` without it."""
        path = self.path(image)
        if not path.is_file():
            raise DamagedDataError(
                f"{path} is missing.",
                hint="The same prompts, seed and picks in a new folder make it again.",
            )
        return genome_in_png(path)

    def pixels(self, number: int) -> Tensor:
        """uint8 (N, C, H, W) of a generation, from its PNGs."""
        return torch.stack([_pixels(self.path(name)) for name in self.generations[number].images])

    def grid_path(self, number: int) -> Path:
        return self.folder / f"generation-{number:03d}.png"

    def write_grid(self, number: int) -> None:
        """The numbered grid of a generation."""
        one = self.generations[number]
        labels = [f"{i + 1} kept" if i < one.kept else str(i + 1) for i in range(len(one.images))]
        picture = numbered_grid(self.pixels(number), labels=labels, title=self.title(number))
        write_bytes(self.grid_path(number), png_bytes(picture))

    def title(self, number: int) -> str:
        """`Generation 3 from 2 by 4, 7: deviation of the noise 1.002`."""
        one = self.generations[number]
        picked = ", ".join(map(str, one.picks)) or "none"
        origin = "" if one.parent is None else f" from {one.parent} by {picked}"
        return f"Generation {number}{origin}: deviation of the noise {one.deviation:.3f}"


def begun(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The operators, size and seed that the history in a folder began with, by name, and how its
    model samples (`sampling_of`); `DamagedDataError` for a file that sfumato did not write."""
    about, _ = _history(folder)
    own = {**about["operators"], "size": about["size"], "seed": about["seed"]}
    return own, sampling_of(about["settings"])


def _history(folder: Path) -> tuple[dict[str, Any], list[Generation]]:
    """What a history says of itself, and its generations."""
    known = read_json(folder / HISTORY)
    if known.get("format") != FORMAT:
        raise DamagedDataError(
            f"{folder / HISTORY} is of another version of sfumato, which made children in another "
            "way.",
            hint="Begin in another folder; --start takes the PNGs of this one.",
        )
    try:
        about = {name: known[name] for name in ("format", *_ABOUT)}
        generations = [
            Generation(**{**one, "picks": tuple(one["picks"]), "images": tuple(one["images"])})
            for one in known["generations"]
        ]
        Operators(**about["operators"])
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedDataError(
            f"{folder / HISTORY} is not what sfumato wrote.",
            hint="The genomes are in the PNGs too: begin again with --start.",
        ) from error
    return about, generations


def sampling_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """How a history's `settings` say that its model samples, as `Model.with_` takes it."""
    return {ours: settings[theirs] for ours, theirs in _SAMPLING.items() if theirs in settings}


def _settings(model: Model) -> dict[str, Any]:
    """What images of the model depend on beside their genomes."""
    return {name: value for name, value in model.settings().items() if name != "sfumato"}


def _check_start(
    model: Model,
    prompts: Sequence[str],
    size: int,
    operators: Operators,
    start: Sequence[Path],
) -> None:
    if not prompts:
        raise InputError("There is no prompt.", hint="Give at least one, in quotes.")
    check_deterministic(model)
    fewest = max(2 + 2 * operators.newcomers, len(start))
    if size < fewest:
        raise InputError(
            f"A generation of {counted(size, 'image')} is too small for "
            f"{counted(operators.newcomers, 'newcomer')} and {counted(len(start), 'picture')}.",
            hint=f"Give a size of {fewest} or more.",
        )
    if start and operators.name != "rotation":
        raise InputError(
            "--start takes the operators 'rotation'.", hint="Leave one of the two out."
        )


def _with_weights(path: Path) -> Genome:
    """The genome of a PNG; `InputError` for one that the operators `rotation` cannot turn."""
    genome = genome_in_png(path)
    if not isinstance(genome.first, Weights):
        raise InputError(
            f"{path} was made by the operators 'deepie', which --start does not go on with.",
            hint="Go on in its own folder, or start with another picture.",
        )
    return genome


def _pixels(path: Path) -> Tensor:
    """uint8 (C, H, W) of a PNG that sfumato wrote."""
    import numpy as np
    from PIL import Image

    if not path.is_file():
        raise DamagedDataError(
            f"{path} is missing.",
            hint="The same prompts, seed and picks in a new folder make it again.",
        )
    with Image.open(path) as image:
        array = np.asarray(image)
    return torch.from_numpy(array.copy()).reshape(*array.shape[:2], -1).permute(2, 0, 1)


def parse_picks(text: str, size: int) -> tuple[int, ...]:
    """Numbers from 1 to `size`, with spaces or commas; `none` for none. `InputError` for others."""
    words = re.split(r"[\s,]+", text.strip())
    if words == ["none"]:
        return ()
    if words == [""]:
        raise InputError(
            "Nothing is picked.", hint=f"Give numbers from 1 to {size}, or none for all new ones."
        )
    wrong = [word for word in words if not word.isdecimal() or not 1 <= int(word) <= size]
    if wrong:
        raise InputError(
            f"'{wrong[0]}' is not the number of an image.",
            hint=f"Give numbers from 1 to {size}, such as 3 7 12, or none for all new ones.",
        )
    return tuple(sorted({int(word) for word in words}))
