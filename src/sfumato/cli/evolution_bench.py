"""`sfumato bench evolution`."""

from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.base.progress import Progress
from sfumato.cli.evaluate import data_of
from sfumato.cli.evolve import OperatorOptions
from sfumato.cli.options import Data, Device, ModelPath, Record, SamplingOptions, Seed
from sfumato.cli.show import log, log_wrapped, new_table, open_model, print_table, unused

if TYPE_CHECKING:
    from sfumato.bench.evolution import Found, Study

PROMPT = "A handwritten digit 7"


@dataclass(frozen=True, kw_only=True)
class UserOptions:
    """Who is simulated."""

    attributes: Annotated[
        str, typer.Option(help="What they want, with commas: slant, stroke, brightness, class.")
    ] = "slant,stroke,brightness"
    targets: Annotated[int, typer.Option(help="Users, 20 or more, each with a target.")] = 40
    generations: Annotated[int, typer.Option(min=1, help="Generations after the first.")] = 8
    picks: Annotated[int, typer.Option(min=1, help="Images that a user picks.")] = 3
    noise: Annotated[
        float, typer.Option(min=0, help="Deviation of what they see; 1 is an attribute's spread.")
    ] = 0.25
    population: Annotated[
        int, typer.Option(help="Images that give targets and spreads of the attributes.")
    ] = 128
    classifier: Annotated[
        str | None,
        typer.Option(
            help="Measure the class accuracy of what evolves: auto, or a run of a classifier."
        ),
    ] = None

    def study(self, *, size: int, seed: int) -> "Study":
        from sfumato.bench.evolution import Study

        return Study(
            attributes=tuple(one.strip() for one in self.attributes.split(",")),
            targets=self.targets,
            generations=self.generations,
            size=size,
            picks=self.picks,
            noise=self.noise,
            population=self.population,
            seed=seed,
        )


def evolution(
    model: ModelPath,
    prompt: Annotated[
        str | None,
        typer.Argument(
            help=f"In quotes; else '{PROMPT}', or none for a CAN without classes.",
            show_default=False,
        ),
    ] = None,
    *,
    users: UserOptions,
    operators: OperatorOptions,
    sampling: SamplingOptions,
    data: Data = None,
    seed: Seed = 0,
    out: Record = None,
    device: Device = "auto",
) -> None:
    """Simulated users evolve images towards a target; random search with as many pictures."""
    study, chosen = users.study(size=operators.size, seed=seed), operators.chosen()
    opened = open_model(model, device, can=True, **sampling.changes())
    from sfumato.bench.evolution import measure_evolution, save_evolution

    if prompt is None:
        prompt = PROMPT if getattr(opened, "conditional", True) else opened.examples()[0][0]
    judge = likelihood = None
    if users.classifier is not None:
        from sfumato.bench.evolution import class_judge, class_likelihood
        from sfumato.evaluation.classifier import load_classifier

        real = data_of(opened, data)
        classifier = load_classifier(real, users.classifier, log=log)
        judge = class_judge(classifier, prompt)
        likelihood = class_likelihood(classifier, prompt)
    found = measure_evolution(
        opened,
        prompt,
        study,
        chosen,
        judge=judge,
        likelihood=likelihood,
        on_user=Progress().of("users"),
    )
    by_evolution, by_search = found.successes
    table = new_table(["", "distance to the target", "users who succeed"])
    for name, values, success in (
        ("first page", found.start, ""),
        ("random search", found.search, str(by_search)),
        (f"evolution ({chosen.name})", found.evolution, str(by_evolution)),
    ):
        table.add_row(name, f"{mean(values):.3f}", success)
    print_table(table)
    log_wrapped(_summary(found, study, prompt))
    if out is not None:
        path = unused(out)
        save_evolution(found, path)
        log(f"Record  {path}")


def _summary(found: "Found", study: "Study", prompt: str) -> str:
    from sfumato.bench.evolution import SUCCESS

    whose = f"images of '{prompt}'" if prompt else "its images"
    accuracy = ""
    if found.accuracies is not None:
        evolved, plain = found.accuracies
        accuracy = f" Class accuracy of the last children {evolved}, of plain samples {plain}."
    return (
        f"{study.targets} users, {min(found.pictures)} to {max(found.pictures)} pictures each, "
        f"either way. Nearer by evolution: {found.difference}, interval over users, where 1 is the "
        f"spread of an attribute over {whose}; for {found.nearer} of the users. "
        f"A user succeeds who ends within {SUCCESS:g}: {found.more_successes} more by evolution. "
        f"Deviation of the noise at the end {found.deviation:.3f}.{accuracy}"
    )
