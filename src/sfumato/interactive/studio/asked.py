"""What can be asked of the studio, with its limits: the bodies of its API."""

from typing import Annotated, Any, Literal

from pydantic import Field

from sfumato.base.section import GuidanceScale, Section

MOST_SEEDS = 64
MOST_CELLS = 144
MOST_STEPS = 1000
_TEXT = 2000
"""Characters of a prompt; a text encoder reads some hundreds."""

Seed = Annotated[int, Field(ge=0, lt=2**63)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Prompt = Annotated[str, Field(max_length=_TEXT)]


class Settings(Section):
    """How a model samples; what is not given is the model's own."""

    model: Name
    """As it was named on the command line."""
    guidance: GuidanceScale | None = None
    """Guidance scale w: 0 is unconditional, 1 without guidance."""
    form: Annotated[str, Field(max_length=200)] | None = None
    """Form of guidance with its parameters, such as `apg:eta=0`."""
    sampler: Annotated[str, Field(max_length=40)] | None = None
    steps: Annotated[int, Field(ge=1, le=MOST_STEPS)] | None = None
    timestep_spacing: Literal["trailing", "leading", "linspace"] | None = None

    def changes(self) -> dict[str, Any]:
        """As `Model.with_` takes them, without what is not given."""
        given = self.model_dump(
            include={"guidance", "form", "sampler", "steps", "timestep_spacing"}
        )
        return {name: value for name, value in given.items() if value is not None}


class Picture(Settings):
    """One picture. The same values give the same bits, here and from the command line."""

    prompt: Prompt = ""
    negative_prompt: Prompt = ""
    seed: Seed = 0
    alone: bool = True
    """Sampled as an only picture; false gives the bits that it has in a set."""


class Sample(Settings):
    """Pictures of one prompt, one for each seed."""

    prompt: Prompt = ""
    negative_prompt: Prompt = ""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1, max_length=MOST_SEEDS)] = (0,)
    alone: bool = True
    """As in a picture."""
    keep: bool = True
    """Whether they go into the gallery; else they come in the events, as data URLs."""

    def pictures(self) -> list[Picture]:
        shared = self.model_dump(exclude={"seeds", "keep"})
        return [Picture(**shared, seed=seed) for seed in self.seeds]


class Cells(Section):
    """Pictures of different settings, for a grid or a comparison. Each is made once and kept."""

    pictures: Annotated[tuple[Picture, ...], Field(min_length=1, max_length=MOST_CELLS)]


class NewEvolution(Settings):
    """An evolution to begin."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,59}$")]
    """Of its folder."""
    prompts: Annotated[tuple[Prompt, ...], Field(max_length=32)] = ()
    """Of a CAN none are needed: then it draws every class."""
    seed: Seed = 0
    size: Annotated[int, Field(ge=6, le=36)] = 16
    """Pictures of a generation."""
    angle: Annotated[float, Field(gt=0, le=90)] = 45.0
    """Mutation of the first generation in degrees: the larger, the less children are like their
    parents. Less in each that follows (`Operators`)."""


class Picks(Section):
    """Whose children are next."""

    generation: Annotated[int, Field(ge=0)]
    picks: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(max_length=36)] = ()
    """Numbers from 1; none for all new ones."""
