"""`sfumato tune`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sfumato.base.errors import InputError
from sfumato.base.progress import Progress
from sfumato.cli.evaluate import model_settings
from sfumato.cli.options import (
    SAMPLER_HELP,
    Data,
    Device,
    Forms,
    ModelPath,
    Scales,
    checked_samplers,
)
from sfumato.cli.show import log, new_table, open_model, percent, print_table

if TYPE_CHECKING:
    from sfumato.generation.model import ImageGenerator
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
class Search:
    """What is searched for, and with how many images."""

    goal: Annotated[
        Literal["agreement", "frechet", "front"],
        typer.Option(
            "--for",
            help="agreement (class accuracy), frechet, or front: the least distance among those "
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
    run: ModelPath, *, search: Search, space: Space, data: Data = None, device: Device = "auto"
) -> None:
    """Find the guidance to sample with, and write it into the run."""
    folder = Path(run)
    if not (folder / "experiment.yaml").is_file():
        raise InputError(
            f"{run} is a pipeline; a choice is written into a run.",
            hint="Give the folder of the run that it came from.",
        )
    from sfumato.generation.model import TUNED
    from sfumato.studies.tuning import tune as find

    model = open_model(run, device)
    settings = model_settings(model, folder, [] if data is None else [f"data.source={data}"])
    model.data = settings["data"]
    candidates = _candidates(model, space)
    log(f"{len(candidates)} candidates, {search.budget:,} images in all.")
    found = find(
        folder,
        model,
        candidates,
        goal=search.goal,
        budget=search.budget,
        judge=search.classifier or settings["evaluation"].classifier,
        least_agreement=search.at_least,
        say=log,
        on_images=Progress().of("images"),
    )
    print_tuning(found)
    log(f"Front   {folder / 'tuning' / 'front.png'}")
    log(f"Record  {folder / 'tuning' / 'tuning.json'}")
    log(f"Chosen  {found.choice.candidate.title}: written to {folder / TUNED}, used from now on.")


def _candidates(model: "ImageGenerator", space: Space) -> "list[Candidate]":
    from sfumato.diffusion.guidance import GuidanceConfig
    from sfumato.diffusion.sampling import network_calls
    from sfumato.diffusion.schedule import NoiseSchedule
    from sfumato.diffusion.solvers.schedulers import build_solver, diffusion_of, sampler_of
    from sfumato.generation.model import AVERAGE, averages_in
    from sfumato.studies.tuning import candidates_of
    from sfumato.training.checkpoint import Checkpoints

    scheduler = model.pipeline.scheduler
    steps = model.pipeline.config["num_inference_steps"]
    solver = build_solver(scheduler, steps=steps, generators=[])
    schedule = NoiseSchedule.from_config(diffusion_of(scheduler))
    own_nfe = network_calls(solver.timesteps, schedule, model.guidance.build(scale=2))
    assert model.run_folder is not None
    checkpoint = Checkpoints(model.run_folder / "checkpoints").latest()
    assert checkpoint is not None  # the model was opened from it
    return candidates_of(
        model,
        scales=space.scales,
        forms=[GuidanceConfig.parse(form) for form in space.forms or ()] or (model.guidance,),
        schedulers=space.samplers or [sampler_of(scheduler)[0]],
        calls=own_nfe if space.nfe is None else space.nfe,
        averages=averages_in(checkpoint) if space.averages else (AVERAGE,),
    )


def print_tuning(found: "Tuning") -> None:
    names = ["candidate", "images", "accuracy", "95 % interval", "Fréchet", "NFE", ""]
    table = new_table(names, left=(0, 6))
    for score in found.scores:
        notes = ["front"] * (score in found.front) + ["chosen"] * (score is found.choice)
        table.add_row(*_row(score), ", ".join(notes))
    print_table(table)


def _row(score: "Score") -> list[str]:
    accuracy, distance = score.agreement, score.frechet
    assert accuracy.low is not None
    assert accuracy.high is not None
    assert distance.high is not None
    return [
        score.candidate.title,
        f"{score.count:,}",
        percent(accuracy.value),
        f"{percent(accuracy.low)} - {percent(accuracy.high)}",
        f"{distance.value:.3f} ± {distance.high - distance.value:.3f}",
        str(score.candidate.calls),
    ]
