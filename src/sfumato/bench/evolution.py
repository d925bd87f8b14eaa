"""Evolution measured with simulated users, beside random search at the same number of pictures.

A user wants an image with given attributes and sees only how near each picture seems, with noise.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sfumato import __version__
from sfumato.base.environment import command, environment, now
from sfumato.base.errors import InputError, nearest
from sfumato.base.files import write_json
from sfumato.base.randomness import derived_seed, generator_for
from sfumato.base.words import counted
from sfumato.bench.attributes import ATTRIBUTES, CLASS, Attribute, attributes_of
from sfumato.evaluation.metrics.intervals import Estimate, bootstrap_mean, wilson
from sfumato.evaluation.metrics.paired import share_difference
from sfumato.generation.genome import Genome, deviation, sample_genomes
from sfumato.generation.model import Model
from sfumato.interactive.operators import Operators

if TYPE_CHECKING:
    from sfumato.evaluation.classifier import ImageClassifier

FEWEST_TARGETS = 20
SUCCESS = 0.5
"""A user who ends no farther from the target, in spreads of an attribute, has succeeded."""
Judge = Callable[[Tensor], Tensor]
"""Which of uint8 (N, C, H, W) show what was asked for: (N,) bool."""


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
        there = [*ATTRIBUTES, CLASS]
        if unknown := [name for name in self.attributes if name not in there]:
            raise InputError(
                f"There is no attribute '{unknown[0]}'.", hint=nearest(unknown[0], there)
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
    either way; `deviation`: of the noise of the last generations, their mean.

    `successes`: users who end within `SUCCESS`, by evolution and by search, and `more_successes`
    the difference, over the same users. `accuracies`, where a classifier was given: class accuracy
    of the children of the last generations, with an interval over users, and of as many plain
    samples, the last of the search.
    """

    evolution: tuple[float, ...]
    search: tuple[float, ...]
    start: tuple[float, ...]
    difference: Estimate
    nearer: Estimate
    successes: tuple[Estimate, Estimate]
    more_successes: Estimate
    accuracies: tuple[Estimate, Estimate] | None
    pictures: tuple[int, ...]
    deviation: float
    settings: dict[str, Any]


class User:
    """One simulated user. Both ways see with the same noise, page by page."""

    def __init__(
        self,
        target: Tensor,
        scales: Tensor,
        study: Study,
        number: int,
        likelihood: Attribute | None = None,
    ) -> None:
        """`target`, `scales`: (A,) attributes wanted and their spread; `likelihood`: see
        `attributes_of`."""
        self.target, self.scales, self.study, self.number = target, scales, study, number
        self.likelihood = likelihood

    def distances(self, images: Tensor) -> Tensor:
        """(N,) root mean square over attributes, of uint8 (N, C, H, W)."""
        found = attributes_of(images, self.study.attributes, self.likelihood)
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
    judge: Judge | None = None,
    likelihood: Attribute | None = None,
    on_user: Callable[[int, int], None] = lambda done, total: None,
) -> Found:
    """Every user evolves and searches, from the same first page and with as many pictures.

    `InputError` for a sampler that draws noise, for picks and newcomers that leave no room for
    children, the attribute of a classifier without a `likelihood`, and for attributes that no two
    images differ in.
    """
    model.text_encoder.check([prompt])
    if CLASS in study.attributes and likelihood is None:
        raise InputError(
            f"The attribute '{CLASS}' is what a classifier sees.",
            hint="Give --classifier auto, or a run of a classifier.",
        )
    if study.picks + operators.newcomers >= study.size:
        raise InputError(
            f"{study.picks} picks and {counted(operators.newcomers, 'newcomer')} leave no room for "
            f"children among {study.size} images.",
            hint="Give fewer picks or newcomers, or a larger --size.",
        )
    seeds = [derived_seed("target", study.seed, i) for i in range(study.population)]
    population = sample_genomes(model, [Genome.of_seed(seed, prompt) for seed in seeds]).tensor
    known = attributes_of(population, study.attributes, likelihood)
    scales = known.std(0)
    if bool((scales <= 1e-9).any()):
        raise InputError(
            f"All images of '{prompt}' have the same {study.attributes[int(scales.argmin())]}.",
            hint="Leave that attribute out, or use a trained model.",
        )
    users = []
    for number in range(study.targets):
        user = User(known[number], scales, study, number, likelihood)
        users.append(_one_user(model, prompt, user, operators, judge))
        on_user(number + 1, study.targets)
    settings = {"prompt": prompt, **asdict(study), "operators": operators.plain()}
    return _found(users, {**settings, **model.settings()})


@dataclass(frozen=True, kw_only=True)
class _Ended:
    """One user in the end: distances, pictures, deviation of the noise; (N,) bool, which of the
    last children and of as many plain samples are right, where there is a judge."""

    evolution: float
    search: float
    start: float
    pictures: int
    deviation: float
    right: Tensor | None
    plain_right: Tensor | None


def _found(users: Sequence[_Ended], settings: dict[str, Any]) -> Found:
    evolution, search = (
        torch.tensor([getattr(one, name) for one in users], dtype=torch.float64)
        for name in ("evolution", "search")
    )
    gain, reached, found = search - evolution, evolution <= SUCCESS, search <= SUCCESS
    rights = [(one.right, one.plain_right) for one in users]
    return Found(
        evolution=tuple(evolution.tolist()),
        search=tuple(search.tolist()),
        start=tuple(one.start for one in users),
        difference=bootstrap_mean(gain),
        nearer=wilson(int((gain > 0).sum()), len(gain)),
        successes=(_share([reached]), _share([found])),
        more_successes=share_difference(reached, found),
        accuracies=None
        if rights[0][0] is None
        else (
            share_of_users([right for right, _ in rights if right is not None]),
            _share([right for _, right in rights if right is not None]),
        ),
        pictures=tuple(one.pictures for one in users),
        deviation=sum(one.deviation for one in users) / len(users),
        settings=settings,
    )


def share_of_users(right: Sequence[Tensor]) -> Estimate:
    """As `_share`, with an interval over users: the children of one are relatives, and no
    independent images. Where all users have the same share it is that of the images."""
    shares = torch.stack([own.double().mean() for own in right])
    if bool((shares == shares[0]).all()):
        return _share(right)
    return replace(bootstrap_mean(shares), percent=True)


def _share(right: Sequence[Tensor]) -> Estimate:
    whole = torch.cat(list(right))
    return wilson(int(whole.sum()), len(whole))


def _one_user(
    model: Model, prompt: str, user: User, operators: Operators, judge: Judge | None
) -> _Ended:
    study, key = user.study, f"user/{user.study.seed}/{user.number}"
    genomes = [operators.founder(derived_seed(key, i), prompt) for i in range(study.size)]
    first = user.distances(sample_genomes(model, genomes).tensor)
    known, last = list(genomes), first.new_empty(0)

    def children(best: list[int], number: int) -> Tensor:
        nonlocal last
        genomes[:] = operators.following(
            [known[i] for i in best],
            [prompt],
            size=study.size,
            key=f"{key}/{number}",
            depth=number,
        )
        new = genomes[len(best) :]
        known.extend(new)
        images = sample_genomes(model, new).tensor
        last = images[: len(images) - operators.newcomers]
        return user.distances(images)

    evolved, pictures = user.walk(first, children)
    others = [Genome.of_seed(derived_seed(key, i), prompt) for i in range(study.size, pictures)]
    samples = sample_genomes(model, others).tensor
    random = user.distances(samples).split(study.size - study.picks)
    searched, _ = user.walk(first, lambda best, number: random[number])
    return _Ended(
        evolution=evolved,
        search=searched,
        start=user.last_choice(first, [range(study.size)]),
        pictures=pictures,
        deviation=deviation(genomes, model.shape),
        right=None if judge is None else judge(last),
        plain_right=None if judge is None else judge(samples[-len(last) :]),
    )


def class_judge(classifier: "ImageClassifier", prompt: str) -> Judge:
    """Whether the classifier sees the class that the prompt names; `InputError` where it names
    none."""
    wanted = _class_of(classifier, prompt)
    return lambda images: classifier.predict(images) == wanted


def class_likelihood(classifier: "ImageClassifier", prompt: str) -> Attribute:
    """float64 (N,): the log odds of the class that the prompt names, in which a little more of a
    style counts as much when it is rare as when it is nearly certain. `InputError` as
    `class_judge`."""
    wanted = _class_of(classifier, prompt)

    def log_odds(images: Tensor) -> Tensor:
        share = classifier.probabilities(images)[:, wanted].double()
        return torch.logit(share.clamp(1e-6, 1 - 1e-6)).cpu()

    return log_odds


def _class_of(classifier: "ImageClassifier", prompt: str) -> int:
    from sfumato.generation.can import ClassReader

    return ClassReader(classifier.class_names, classifier.class_names).label(prompt)


def save_evolution(found: Found, path: Path) -> None:
    record = {
        **asdict(found),
        "environment": environment(),
        "sfumato": __version__,
        "date": now(),
        "command": command(),
    }
    write_json(path, record)
