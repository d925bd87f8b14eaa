"""Evolution measured with simulated users, beside random search at the same number of pictures.

A user wants an image with given attributes and sees only how near each picture seems, with noise.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato import __version__
from sfumato.base.environment import command, environment, now
from sfumato.base.errors import InputError, nearest
from sfumato.base.files import write_json
from sfumato.base.randomness import derived_seed, generator_for
from sfumato.bench.attributes import ATTRIBUTES, attributes_of
from sfumato.evaluation.metrics.intervals import Estimate, bootstrap_mean, wilson
from sfumato.generation.genome import Genome, deviation, sample_genomes
from sfumato.generation.model import Model
from sfumato.interactive.operators import Operators

FEWEST_TARGETS = 20


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is simulated: `targets` users, each from a start of its own that both ways share.

    `generations` after the first, `size` images each; a user picks `picks` of them. `noise`: its
    deviation when a distance is seen, in the unit of distances: the spread of an attribute over
    `population` images of the model, the first of which are the targets.
    """

    attributes: tuple[str, ...] = ("slant", "stroke", "brightness")
    targets: int = 40
    generations: int = 8
    size: int = 16
    picks: int = 3
    noise: float = 0.25
    population: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        if unknown := [name for name in self.attributes if name not in ATTRIBUTES]:
            raise InputError(
                f"There is no attribute '{unknown[0]}'.", hint=nearest(unknown[0], [*ATTRIBUTES])
            )
        if not self.attributes or len(set(self.attributes)) < len(self.attributes):
            raise InputError("Attributes are one or more, each once.")
        if not FEWEST_TARGETS <= self.targets <= self.population:
            raise InputError(
                f"{self.targets} targets of {self.population} images are not possible.",
                hint=f"Give {FEWEST_TARGETS} targets or more, and at least as many images.",
            )
        if not 1 <= self.picks <= self.size // 2:
            raise InputError(
                f"{self.picks} picks of {self.size} images are not possible.",
                hint=f"Give 1 to {self.size // 2}.",
            )


@dataclass(frozen=True, kw_only=True)
class Found:
    """`evolution`, `search`, `start`: distance to the target of each user's last choice, and of
    its choice on the first page; `difference`: search - evolution over users, with the interval of
    its mean; `nearer`: users for whom evolution ends nearer; `pictures`: sampled for each user,
    either way; `deviation`: of the noise of the last generations, their mean."""

    evolution: tuple[float, ...]
    search: tuple[float, ...]
    start: tuple[float, ...]
    difference: Estimate
    nearer: Estimate
    pictures: tuple[int, ...]
    deviation: float
    settings: dict[str, Any]


class User:
    """One simulated user. Both ways see with the same noise, page by page."""

    def __init__(self, target: Tensor, scales: Tensor, study: Study, number: int) -> None:
        """`target`, `scales`: (A,) attributes wanted and their spread."""
        self.target, self.scales, self.study, self.number = target, scales, study, number

    def distances(self, images: Tensor) -> Tensor:
        """(N,) root mean square over attributes, of uint8 (N, C, H, W)."""
        found = attributes_of(images, self.study.attributes)
        return ((found - self.target) / self.scales).square().mean(1).sqrt()

    def seen(self, distances: Tensor, page: int) -> Tensor:
        """(N,) distances with the noise of that page."""
        generator = generator_for("user", self.study.seed, self.number, page)
        noise = torch.randn(len(distances), generator=generator, dtype=torch.float64)
        return distances + self.study.noise * noise

    def walk(
        self, first: Tensor, following: Callable[[list[int], int], Tensor]
    ) -> tuple[float, int]:
        """The true distance of the last choice, and how many pictures were seen.

        `first`: (N,) distances of the first page. The best picks of a page are on the next one
        too, before new pictures: `following` gives their distances from the picks' places among
        all pictures and the page's number. The last choice is among the favourites of all pages,
        each picture once.
        """
        distances, page, pages = first, list(range(len(first))), []
        for number in range(self.study.generations):
            pages.append(page)
            order = self.seen(distances[page], number).argsort()[: self.study.picks]
            best = [page[place] for place in order.tolist()]
            new = following(best, number)
            page = [*best, *range(len(distances), len(distances) + len(new))]
            distances = torch.cat([distances, new])
        return self.last_choice(distances, [*pages, page]), len(distances)

    def last_choice(self, distances: Tensor, pages: Sequence[Sequence[int]]) -> float:
        """The true distance of the favourite among those of all pages, which hold places in the
        (N,) `distances` of all pictures."""
        favourites = [
            page[int(self.seen(distances[list(page)], number).argmin())]
            for number, page in enumerate(pages)
        ]
        chosen = distances[list(dict.fromkeys(favourites))]
        return float(chosen[self.seen(chosen, -1).argmin()])


def measure_evolution(
    model: Model,
    prompt: str,
    study: Study,
    operators: Operators,
    *,
    on_user: Callable[[int, int], None] = lambda done, total: None,
) -> Found:
    """Every user evolves and searches, from the same first page and with as many pictures.

    `InputError` for a sampler that draws noise, and for attributes that no two images differ in.
    """
    model.text_encoder.check([prompt])
    seeds = [derived_seed("target", study.seed, i) for i in range(study.population)]
    population = sample_genomes(model, [Genome.of_seed(seed, prompt) for seed in seeds]).tensor
    known = attributes_of(population, study.attributes)
    scales = known.std(0)
    if bool((scales <= 1e-9).any()):
        raise InputError(
            f"All images of '{prompt}' have the same {study.attributes[int(scales.argmin())]}.",
            hint="Leave that attribute out, or use a trained model.",
        )
    rows = []
    for number in range(study.targets):
        user = User(known[number], scales, study, number)
        rows.append(_one_user(model, prompt, user, operators))
        on_user(number + 1, study.targets)
    evolution, search, start, pictures, spreads = zip(*rows, strict=True)
    gain = torch.tensor(search, dtype=torch.float64) - torch.tensor(evolution, dtype=torch.float64)
    settings = {"prompt": prompt, **asdict(study), "operators": operators.plain()}
    return Found(
        evolution=evolution,
        search=search,
        start=start,
        difference=bootstrap_mean(gain),
        nearer=wilson(int((gain > 0).sum()), len(gain)),
        pictures=pictures,
        deviation=sum(spreads) / len(spreads),
        settings={**settings, **model.settings()},
    )


def _one_user(
    model: Model, prompt: str, user: User, operators: Operators
) -> tuple[float, float, float, int, float]:
    """Distances by evolution, by search and at the start; pictures; deviation at the end."""
    study, key = user.study, f"user/{user.study.seed}/{user.number}"
    genomes = [operators.founder(derived_seed(key, i), prompt) for i in range(study.size)]
    first = user.distances(sample_genomes(model, genomes).tensor)
    known = list(genomes)

    def children(best: list[int], number: int) -> Tensor:
        genomes[:] = operators.following(
            [known[i] for i in best], [prompt], size=study.size, key=f"{key}/{number}"
        )
        new = genomes[len(best) :]
        known.extend(new)
        return user.distances(sample_genomes(model, new).tensor)

    evolved, pictures = user.walk(first, children)
    others = [Genome.of_seed(derived_seed(key, i), prompt) for i in range(study.size, pictures)]
    random = user.distances(sample_genomes(model, others).tensor).split(study.size - study.picks)
    searched, _ = user.walk(first, lambda best, number: random[number])
    start = user.last_choice(first, [range(study.size)])
    return evolved, searched, start, pictures, deviation(genomes, model.shape)


def save_evolution(found: Found, path: Path) -> None:
    record = {
        **asdict(found),
        "environment": environment(),
        "sfumato": __version__,
        "date": now(),
        "command": command(),
    }
    write_json(path, record)
