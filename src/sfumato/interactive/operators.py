"""How genomes of a generation become those of the next."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from sfumato.base.errors import InputError, nearest
from sfumato.base.randomness import derived_seed
from sfumato.generation.genome import Genome, Recipe, Weights

OPERATORS = ("rotation", "deepie")
LEAST_ANGLE = 5.0
"""Degrees that a decaying angle does not go below; a smaller one that is given stays as it is."""


@dataclass(frozen=True, kw_only=True)
class Operators:
    """`rotation`: crossover adds weights over seeds and brings the sum to length 1, mutation turns
    it towards a new seed, so noise stays N(0, I): by `angle` degrees at first, by `decay` of that
    in every generation after, but no less than `LEAST_ANGLE`, so that a search ends near what it
    has found and children still differ.

    `deepie`: uniform crossover and additive Gaussian mutation of `scale` of DeepIE (Bontrager et
    al. 2018), whose noise grows. Every second child has two parents, where two were picked;
    every child is mutated. `newcomers`: new ones in every generation.
    """

    name: str = "rotation"
    angle: float = 45.0
    decay: float = 0.8
    scale: float = 0.5
    newcomers: int = 0

    def __post_init__(self) -> None:
        if self.name not in OPERATORS:
            raise InputError(
                f"There are no operators '{self.name}'.", hint=nearest(self.name, OPERATORS)
            )
        if not 0 < self.angle <= 90:
            raise InputError(
                f"An angle of {self.angle:g} degrees is out of range.",
                hint="Give more than 0, where children are their parents, to 90, where they are "
                "all new.",
            )
        if not 0 < self.decay <= 1:
            raise InputError(
                f"A decay of {self.decay:g} is out of range.",
                hint="Give more than 0, up to 1, where all generations mutate alike.",
            )
        if not 0 < self.scale <= 10:
            raise InputError(
                f"A scale of {self.scale:g} is out of range.", hint="Give more than 0, up to 10."
            )
        if self.newcomers < 0:
            raise InputError(
                f"{self.newcomers} newcomers are not possible.", hint="Give 0 or more."
            )

    def plain(self) -> dict[str, Any]:
        return asdict(self)

    def founder(self, seed: int, caption: str) -> Genome:
        """A genome of one seed: the image of `Model.sample(caption, seed)`."""
        if self.name == "rotation":
            return Genome.of_seed(seed, caption)
        return Genome(Recipe((("seed", seed),)), ((caption, 1.0),))

    def following(
        self,
        parents: Sequence[Genome],
        prompts: Sequence[str],
        *,
        size: int,
        key: str,
        depth: int = 0,
    ) -> list[Genome]:
        """The next generation: the first parents, up to half of `size`, then children, then
        newcomers with `prompts` in turn; without parents all are newcomers. First parents of the
        children are those that are not kept, then those that are, in turn. `depth`: generations
        between one of new images alone and the parents' (see `decay`)."""
        kept = list(parents[: size // 2])
        newcomers = self.newcomers if parents else size
        order = [*parents[len(kept) :], *kept]
        children = [self.child(order, i, key, depth) for i in range(size - len(kept) - newcomers)]
        new = [
            self.founder(derived_seed(key, index, "newcomer"), prompts[index % len(prompts)])
            for index in range(newcomers)
        ]
        return kept + children + new

    def child(self, parents: Sequence[Genome], index: int, key: str, depth: int = 0) -> Genome:
        """Child `index` of a generation, whose randomness is that of `key`: of the parents in turn,
        every second one with another parent too."""
        generator = torch.Generator().manual_seed(derived_seed(key, index, "parents"))
        turn, place = divmod(index, len(parents))
        first = parents[place]
        others = [one for one in parents if one is not first]
        if others and (turn + place) % 2 == 0:  # the other half of the parents in the next turn
            other = others[int(torch.randint(len(others), (1,), generator=generator))]
            first = self._crossed(first, other, derived_seed(key, index, "crossover"))
        return self._mutated(first, derived_seed(key, index, "mutation"), depth)

    def _crossed(self, one: Genome, other: Genome, key: int) -> Genome:
        if isinstance(one.first, Weights) and isinstance(other.first, Weights):
            noise: Weights | Recipe = one.first.crossed(other.first)
        else:
            noise = _recipe(one).crossed(_recipe(other), key)
        shares = {caption: weight / 2 for caption, weight in one.captions}
        for caption, weight in other.captions:
            shares[caption] = shares.get(caption, 0.0) + weight / 2
        return Genome(noise, tuple(sorted(shares.items())))

    def _mutated(self, one: Genome, key: int, depth: int) -> Genome:
        if isinstance(one.first, Weights):
            angle = max(self.angle * self.decay**depth, min(self.angle, LEAST_ANGLE))
            return Genome(one.first.rotated(key, angle), one.captions)
        return Genome(one.first.added(key, self.scale), one.captions)


def _recipe(genome: Genome) -> Recipe:
    assert isinstance(genome.first, Recipe)  # a history has one kind of genomes
    return genome.first
