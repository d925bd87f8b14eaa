"""What `sfumato tune` prints."""

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from rich.table import Table

from sfumato.base.errors import InputError, nearest
from sfumato.cli.evaluation import ImagesLine, model_settings
from sfumato.cli.show import (
    open_generator,
    parse_forms,
    parse_scales,
    percent,
    print_table,
    say,
)
from sfumato.diffusion.sampling import network_calls
from sfumato.diffusion.schedule import NoiseSchedule
from sfumato.diffusion.solvers.schedulers import (
    build_solver,
    diffusion_of,
    sampler_name,
    sampler_of,
)
from sfumato.generation.model import AVERAGE, TUNED, ImageGenerator, averages_in
from sfumato.studies.tuning import Goal, Score, Tuning, candidates_of, tune
from sfumato.training.checkpoint import Checkpoints


def tune_and_print(
    run: Path,
    *,
    goal: str,
    at_least: float | None,
    scales: str | None,
    forms: Sequence[str] | None,
    samplers: Sequence[str] | None,
    calls: int | None,
    averages: bool,
    budget: int,
    judge: str,
    data: str | None,
    device: str,
) -> None:
    """Search, and print every candidate and the choice."""
    goals: tuple[Goal, ...] = get_args(Goal)
    chosen_goal = next((one for one in goals if one == goal), None)
    if chosen_goal is None:
        raise InputError(f"--for {goal} is no goal.", hint=nearest(goal, list(goals)))
    if at_least is not None and not 0 < at_least <= 1:
        raise InputError(
            f"--at-least {at_least:g} is no share.", hint="Give one above 0, up to 1: 0.98."
        )
    generator = open_generator(str(run), device=device)
    if generator.run_folder is None:
        raise InputError(
            f"{run} is a pipeline; a choice is written into a run.",
            hint="Give the folder of the run that it came from.",
        )
    settings = [] if data is None else [f"data.source={data}"]
    measured = model_settings(generator, run, settings)
    generator.data = measured.data
    candidates = candidates_of(
        generator,
        scales=parse_scales(scales) or (),
        forms=parse_forms(forms) or (generator.guidance,),
        schedulers=[sampler_name(name) for name in samplers or ()]
        or [sampler_of(generator.pipeline.scheduler)[0]],
        calls=_own_calls(generator) if calls is None else calls,
        averages=_averages(generator) if averages else (AVERAGE,),
    )
    say(f"{len(candidates)} candidates, {budget:,} images in all.")
    line = ImagesLine()
    found = tune(
        run,
        generator,
        candidates,
        goal=chosen_goal,
        budget=budget,
        judge=judge or measured.evaluation.classifier,
        least_agreement=at_least,
        say=say,
        on_images=lambda done, total: line("images", done, total),
    )
    print_tuning(found)
    say(f"Front   {run / 'tuning' / 'front.png'}")
    say(f"Record  {run / 'tuning' / 'tuning.json'}")
    say(
        f"Chosen  {found.choice.candidate.title}: written to {run / TUNED}, drawn with from now on."
    )


def _own_calls(generator: ImageGenerator) -> int:
    """Network evaluations of a guided image with the run's own sampler and steps."""
    scheduler = generator.pipeline.scheduler
    solver = build_solver(
        scheduler, steps=generator.pipeline.config["num_inference_steps"], generators=[]
    )
    schedule = NoiseSchedule.from_config(diffusion_of(scheduler))
    return network_calls(solver.timesteps, schedule, generator.guidance.build(scale=2))


def _averages(generator: ImageGenerator) -> list[str]:
    assert generator.run_folder is not None
    checkpoint = Checkpoints(generator.run_folder / "checkpoints").latest()
    assert checkpoint is not None  # the generator was opened from it
    return averages_in(checkpoint)


def print_tuning(found: Tuning) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, column in enumerate(
        ("candidate", "images", "agreement", "95 % interval", "Frechet", "calls", "")
    ):
        table.add_column(column, justify="right" if 0 < place < 6 else "left", no_wrap=True)
    for score in found.scores:
        table.add_row(*_row(score, found))
    print_table(table)


def _row(score: Score, found: Tuning) -> list[str]:
    agreement, distance = score.agreement, score.frechet
    assert agreement.low is not None
    assert agreement.high is not None
    assert distance.high is not None
    notes = ["front"] * (score in found.front) + ["chosen"] * (score is found.choice)
    return [
        score.candidate.title,
        f"{score.count:,}",
        percent(agreement.value),
        f"{percent(agreement.low)} - {percent(agreement.high)}",
        f"{distance.value:.3f} ± {distance.high - distance.value:.3f}",
        str(score.candidate.calls),
        ", ".join(notes),
    ]
