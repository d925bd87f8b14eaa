"""`sfumato tune`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sfumato.base.errors import InputError
from sfumato.base.progress import Progress
from sfumato.base.words import counted
from sfumato.cli.checks import checked_samplers
from sfumato.cli.evaluate import data_of
from sfumato.cli.options import (
    SAMPLER_HELP,
    Data,
    Device,
    Forms,
    ModelPath,
    Scales,
)
from sfumato.cli.show import log, new_table, open_model, percent, print_table

if TYPE_CHECKING:
    from sfumato.generation.model import Model
    from sfumato.studies.tuning import Candidate, Score, Tuning


@dataclass(frozen=True, kw_only=True)
class Space:
    """What is tried."""

    scales: Scales = "1,1.25,1.5,2,3,5"
    forms: Forms = None
    samplers: Annotated[
        list[str] | None,
        typer.Option(
            "--sampler", callback=checked_samplers, help=f"{SAMPLER_HELP} May be repeated."
        ),
    ] = None
    nfe: Annotated[
        int | None,
        typer.Option(min=1, help="Most network evaluations an image; else as the run's own."),
    ] = None
    averages: Annotated[
        bool, typer.Option("--averages", help="Try every average that the run has kept.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """What is searched for, and with how many images."""

    goal: Annotated[
        Literal["accuracy", "frechet", "front"],
        typer.Option(
            "--for",
            help="accuracy (of the classes), frechet, or front: the least distance among those "
            "whose accuracy is high enough.",
        ),
    ] = "front"
    at_least: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Accuracy of a `front` choice; else 0.01 below the best."),
    ] = None
    budget: Annotated[int, typer.Option(min=1, help="Images to sample in all.")] = 4000
    classifier: Annotated[
        str, typer.Option(help="Classifier of the class accuracy, as evaluation.classifier.")
    ] = ""


def tune(
    run: ModelPath,
    *,
    search: SearchOptions,
    space: Space,
    data: Data = None,
    device: Device = "auto",
) -> None:
    """Find the guidance to sample with, and write it into the run."""
    folder = Path(run)
    if not (folder / "experiment.yaml").is_file():
        raise InputError(
            f"{run} is a pipeline; a choice is written into a run.",
            hint="Give the folder of the run that it came from.",
        )
    from sfumato.generation.runs import TUNED, experiment_of_run
    from sfumato.studies.tuning import Search
    from sfumato.studies.tuning import tune as find_setting

    model = open_model(run, device, student=False)
    candidates = _candidates(model, space)
    log(f"{counted(len(candidates), 'candidate')}, {counted(search.budget, 'image')} in all.")
    found = find_setting(
        folder,
        model,
        candidates,
        Search(
            goal=search.goal,
            budget=search.budget,
            classifier=search.classifier or experiment_of_run(folder).evaluation.classifier,
            least_accuracy=search.at_least,
        ),
        data=data_of(model, data),
        log=log,
        on_images=Progress(),
    )
    print_tuning(found)
    log(f"Front   {folder / 'tuning' / 'front.png'}")
    log(f"Record  {folder / 'tuning' / 'tuning.json'}")
    log(f"Chosen  {found.choice.candidate.title}: written to {folder / TUNED}, used from now on.")


def _candidates(model: "Model", space: Space) -> "list[Candidate]":
    from sfumato.generation.runs import AVERAGE, averages_in, chosen_checkpoint
    from sfumato.studies.tuning import candidates_of

    assert model.folder is not None
    averages = averages_in(chosen_checkpoint(model.folder, None)) if space.averages else (AVERAGE,)
    return candidates_of(
        model,
        scales=space.scales,
        forms=space.forms or (model.sampling.guidance,),
        samplers=space.samplers or [model.sampling.sampler],
        nfe=model.with_(guidance=2).nfe() if space.nfe is None else space.nfe,
        averages=averages,
    )


def print_tuning(found: "Tuning") -> None:
    names = ["candidate", "images", "accuracy", "95 % interval", "Frechet", "NFE", ""]
    table = new_table(names, left=(0, 6))
    for score in found.scores:
        notes = ["front"] * (score in found.front) + ["chosen"] * (score is found.choice)
        table.add_row(*_row(score), ", ".join(notes))
    print_table(table)


def _row(score: "Score") -> list[str]:
    accuracy, distance = score.class_accuracy, score.frechet
    low, high = accuracy.interval
    return [
        score.candidate.title,
        f"{score.count:,}",
        percent(accuracy.value),
        f"{percent(low)} - {percent(high)}",
        f"{distance.value:.3f} ± {distance.interval[1] - distance.value:.3f}",
        str(score.candidate.nfe),
    ]
