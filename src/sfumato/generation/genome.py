"""The first noise of an image as a genome: text that fits into a PNG and is sampled anywhere."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import cos, radians, sin, sqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.base.errors import InputError
from sfumato.base.images import settings_in_png
from sfumato.base.randomness import generator_for
from sfumato.diffusion.sampling import OnStep, Sampled, initial_noise
from sfumato.diffusion.solvers.registry import SAMPLERS
from sfumato.generation.asked import generators_from_seeds
from sfumato.generation.model import Model
from sfumato.generation.samples import Samples

MOST_SEEDS = 64
"""Seeds of a genome; of more, those with the largest weights stay."""
Drawn = Callable[[int], Tensor]
"""The noise (C, H, W) float64 of a seed: what `Model.sample` starts from."""


def drawn_for(shape: tuple[int, int, int]) -> Drawn:
    """The noise of seeds for images of `shape` (C, H, W), each drawn once."""
    return cache(lambda seed: initial_noise(shape, generators_from_seeds([seed]))[0].double())


@dataclass(frozen=True)
class Weights:
    """z = sum of w_i n(seed_i) with sum of w_i^2 = 1, so z is N(0, I) for any fixed weights.

    The correlation of two of them is the scalar product of their weights. `parts`: (seed, weight)
    by seed.
    """

    parts: tuple[tuple[int, float], ...]

    @classmethod
    def of(cls, weights: Mapping[int, float]) -> "Weights":
        """Of any weights that are not all zero, brought to length 1; at most `MOST_SEEDS` stay."""
        largest = sorted(weights.items(), key=lambda part: (-abs(part[1]), part[0]))[:MOST_SEEDS]
        length = sqrt(sum(weight**2 for _, weight in largest))
        return cls(tuple(sorted((seed, weight / length) for seed, weight in largest)))

    @classmethod
    def parsed(cls, known: Any) -> "Weights":
        """From the plain values of `plain`; `ValueError` for others."""
        parts = tuple(sorted(zip(known["seeds"], known["weights"], strict=True)))
        seeds = [seed for seed, _ in parts]
        if not all(type(seed) is int and 0 <= seed < 2**63 for seed in seeds):
            raise ValueError("seeds are whole numbers from 0 to 2**63 - 1")
        if len(set(seeds)) != len(seeds):
            raise ValueError("a seed is there twice")
        if not abs(sum(float(weight) ** 2 for _, weight in parts) - 1) < 1e-6:
            raise ValueError("the squares of its weights do not add up to 1")
        return cls(tuple((seed, float(weight)) for seed, weight in parts))

    def plain(self) -> dict[str, Any]:
        return {"seeds": [s for s, _ in self.parts], "weights": [w for _, w in self.parts]}

    def noise(self, drawn: Drawn) -> Tensor:
        """(C, H, W) float64."""
        return torch.stack([weight * drawn(seed) for seed, weight in self.parts]).sum(0)

    def crossed(self, other: "Weights") -> "Weights":
        """The sum of both, brought to length 1; of opposite ones, which have no middle, this."""
        both = dict(self.parts)
        for seed, weight in other.parts:
            both[seed] = both.get(seed, 0.0) + weight
        return Weights.of(both) if any(abs(weight) > 1e-9 for weight in both.values()) else self

    def rotated(self, seed: int, degrees: float) -> "Weights":
        """Turned by an angle towards the noise of a seed that it does not have yet, for which the
        smallest weight of `MOST_SEEDS` makes room."""
        kept, new = cos(radians(degrees)), sin(radians(degrees))
        own = self
        if len(self.parts) >= MOST_SEEDS:
            smallest = min(self.parts, key=lambda part: abs(part[1]))
            own = Weights.of(dict(part for part in self.parts if part != smallest))
        return Weights.of({one: kept * weight for one, weight in own.parts} | {seed: new})

    def correlation(self, other: "Weights") -> float:
        """Of the noise of both, at every pixel."""
        own = dict(self.parts)
        return sum(own.get(seed, 0.0) * weight for seed, weight in other.parts)


_REFERS = {"seed": 0, "cross": 2, "add": 1}
"""Of a step of a recipe: how many of its values are places of steps before it."""


@dataclass(frozen=True)
class Recipe:
    """How DeepIE (Bontrager et al. 2018) makes noise, which weights over seeds cannot say.

    `steps`, of which the last is the noise: ("seed", seed); ("cross", i, j, key), where each value
    is that of step i or j, as a fair coin falls; ("add", i, key, scale), where half of the values
    of step i get normal noise of that scale. Steps refer to those before them.
    """

    steps: tuple[tuple[Any, ...], ...]

    @classmethod
    def parsed(cls, known: Any) -> "Recipe":
        """From the plain values of `plain`; `ValueError` for others."""
        steps = tuple(tuple(step) for step in known["steps"])
        if not steps:
            raise ValueError("it has no steps")
        for place, step in enumerate(steps):
            _check_step(step, place)
        return cls(steps)

    def plain(self) -> dict[str, Any]:
        return {"steps": [list(step) for step in self.steps]}

    def crossed(self, other: "Recipe", key: int) -> "Recipe":
        """Each value of one of both, as the coins of `key` fall. Equal steps are there once."""
        steps = list(self.steps)
        places = {step: place for place, step in enumerate(steps)}
        here: list[int] = []
        for name, *values in other.steps:
            refers = _REFERS[name]
            moved = (name, *(here[one] for one in values[:refers]), *values[refers:])
            here.append(places.setdefault(moved, len(steps)))
            if here[-1] == len(steps):
                steps.append(moved)
        return Recipe((*steps, ("cross", len(self.steps) - 1, here[-1], key)))

    def added(self, key: int, scale: float) -> "Recipe":
        """Normal noise of that scale is added to half of the values."""
        return Recipe((*self.steps, ("add", len(self.steps) - 1, key, scale)))

    def noise(self, drawn: Drawn) -> Tensor:
        """(C, H, W) float64."""
        made: list[Tensor] = []
        for name, *values in self.steps:
            if name == "seed":
                made.append(drawn(values[0]))
            elif name == "cross":
                first, second, key = made[values[0]], made[values[1]], values[2]
                made.append(torch.where(_coins(key, first.shape), first, second))
            else:
                before, key, scale = made[values[0]], *values[1:]
                made.append(before + _coins(key, before.shape) * scale * drawn(key))
        return made[-1]


def _check_step(step: tuple[Any, ...], place: int) -> None:
    """`ValueError` for what `Recipe.noise` cannot do as step `place`."""
    name, *values = step
    refers = _REFERS.get(name)
    if refers is None or len(values) != {"seed": 1, "cross": 3, "add": 3}[name]:
        raise ValueError(f"step {place} is not a step")
    scale = values.pop() if name == "add" else 0.0
    if not isinstance(scale, int | float) or any(type(one) is not int for one in values):
        raise ValueError(f"step {place} has values that are no numbers")
    if any(not 0 <= one < place for one in values[:refers]) or not 0 <= values[-1] < 2**63:
        raise ValueError(f"step {place} has values that are out of range")


def _coins(key: int, shape: torch.Size) -> Tensor:
    generator = generator_for("coins", key)
    return torch.rand(shape, generator=generator, dtype=torch.float64) < 0.5


@dataclass(frozen=True)
class Genome:
    """What an image is sampled from: its first noise, and the captions whose encodings are mixed.

    `captions`: (caption, weight) with weights of 0 or more that add up to 1.
    """

    first: Weights | Recipe
    captions: tuple[tuple[str, float], ...]

    @classmethod
    def of_seed(cls, seed: int, caption: str) -> "Genome":
        """The genome of the image that `Model.sample(caption, seed)` gives in a set."""
        return cls(Weights(((seed, 1.0),)), ((caption, 1.0),))

    def __str__(self) -> str:
        """JSON; `parse_genome` reads it."""
        plain = {**self.first.plain(), "captions": dict(self.captions)}
        return json.dumps(plain, separators=(",", ":"), ensure_ascii=False)

    @property
    def settings(self) -> dict[str, Any]:
        """Of the image: the caption with the largest weight, its seed where it has one, and all."""
        caption = max(self.captions, key=lambda one: one[1])[0]
        first = self.first
        alone = isinstance(first, Weights) and len(first.parts) == 1
        seed = first.parts[0][0] if alone else ""
        return {"prompt": caption, "seed": seed, "genome": str(self)}


_BESIDE_NOISE = ("init_image_sha256", "to_prompt", "strength", "negative_prompt")
"""Settings of a picture that a genome does not have."""


def parse_genome(text: str) -> Genome:
    """What `str` of a genome wrote; `InputError` for other text."""
    try:
        known = json.loads(text)
        first = (Recipe if "steps" in known else Weights).parsed(known)
        captions = tuple((str(one), float(weight)) for one, weight in known["captions"].items())
        shares = [weight for _, weight in captions]
        if not all(weight >= 0 for weight in shares) or not abs(sum(shares) - 1) < 1e-6:
            raise ValueError("the weights of its captions do not add up to 1")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        what = f"{error}" if type(error) is ValueError else "it is not what sfumato wrote"
        raise InputError(
            f"This is no genome: {what}.", hint="Use the `genome` of a PNG of `sfumato evolve`."
        ) from error
    return Genome(first, captions)


def genome_in_png(path: Path) -> Genome:
    """The genome of a PNG that sfumato sampled; without one, that of its prompt and seed.

    `InputError` for other files, and for pictures that need more than a genome: those that began
    with a picture or had a negative prompt, and those whose sampler drew noise.
    """
    known = settings_in_png(path)
    if "genome" in known:
        return parse_genome(known["genome"])
    others = [name for name in _BESIDE_NOISE if name in known]
    noisy = any(
        name == known.get("sampler") and one.draws_noise
        for own in SAMPLERS.values()
        for name, one in own.items()
    )
    if "prompt" not in known or not known.get("seed", "").isdecimal() or others or noisy:
        raise InputError(
            f"{path} has no genome.",
            hint="Give a PNG of `sfumato evolve`, or of `sfumato sample` from noise and a prompt "
            "alone, by a sampler that draws no noise.",
        )
    return Genome.of_seed(int(known["seed"]), known["prompt"])


def check_deterministic(model: Model) -> None:
    """`InputError` for a sampler that draws noise: a genome has the first noise alone."""
    if model.draws_noise:
        own = SAMPLERS[model.process.process]
        quiet = [name for name, one in own.items() if not one.draws_noise]
        raise InputError(
            f"{model.sampling.sampler} draws noise at every step, which a genome does not have.",
            hint=f"Use --sampler {', '.join(quiet[:-1])} or {quiet[-1]}.",
        )


def sample_genomes(
    model: Model,
    genomes: Sequence[Genome],
    *,
    batch_size: int = 64,
    on_step: OnStep | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> Samples:
    """One image of each genome, the same bits as in any other set; its settings hold the genome.

    `on_step`: as in `Model.sample`; a CAN has no steps. `InputError` for no genomes, and for a
    sampler that draws noise.
    """
    if not genomes:
        raise InputError("There is no genome.", hint="Give at least one.")
    check_deterministic(model)
    captions = list(dict.fromkeys(_captions_of(genomes)))
    model.text_encoder.check(captions)
    encoded = model.tokens(captions)
    drawn = drawn_for(model.shape)

    def denoise(rows: slice) -> Sampled:
        own = genomes[rows]
        cond = torch.stack([_mixed(encoded["cond"], captions, genome) for genome in own])
        uncond = encoded["uncond"][:1].expand_as(cond)
        return model.denoise(
            {"cond": cond, "uncond": uncond, "weak": cond},
            generators_from_seeds([0] * len(own)),  # the sampler draws nothing from them
            noise=torch.stack([genome.first.noise(drawn) for genome in own]).float(),
            on_step=on_step,
        )

    return model.collected([genome.settings for genome in genomes], denoise, batch_size, on_batch)


def _captions_of(genomes: Iterable[Genome]) -> Iterable[str]:
    return (caption for genome in genomes for caption, _ in genome.captions)


def _mixed(encoded: Tensor, captions: Sequence[str], genome: Genome) -> Tensor:
    """(L, D) in the dtype of `encoded` (P, L, D), one row a caption; of one caption its bits."""
    parts = [weight * encoded[captions.index(one)].float() for one, weight in genome.captions]
    return torch.stack(parts).sum(0).to(encoded.dtype)


def deviation(genomes: Sequence[Genome], shape: tuple[int, int, int]) -> float:
    """Root mean square of the noise of genomes for images of `shape`: 1 where it is N(0, I)."""
    drawn = drawn_for(shape)
    squares = [genome.first.noise(drawn).square().mean() for genome in genomes]
    return float(torch.stack(squares).mean().sqrt())
