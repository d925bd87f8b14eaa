"""`sfumato evaluate`, and what the commands that measure share."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.base.errors import InputError
from sfumato.base.progress import Progress
from sfumato.cli.card import print_card
from sfumato.cli.options import Data, Form, HeldOut, MeasureOptions, Scales, stoppable
from sfumato.cli.show import log, log_wrapped, open_model, warn_of_sampling
from sfumato.config.overrides import override
from sfumato.config.sections import DataConfig, EvaluationConfig
from sfumato.diffusion.solvers.registry import Sampling
from sfumato.generation.bundle_names import beside, check_model, is_model

if TYPE_CHECKING:
    import torch

    from sfumato.evaluation.measure import Evaluated
    from sfumato.evaluation.target import Target
    from sfumato.generation.model import Model


def evaluate(
    what: Annotated[
        Path,
        typer.Argument(help="A run, a pipeline, bundled:mnist, a folder of images or an .npz."),
    ],
    *,
    measure: MeasureOptions,
    scales: Scales = None,
    form: Form = None,
    held_out: HeldOut = False,
    data: Data = None,
    untrained: Annotated[
        bool,
        typer.Option("--untrained", help="Use an untrained classifier: the paper's protocol."),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for card.json and pictures; else with the model.")
    ] = None,
) -> None:
    """Measure images against real ones: every metric with its interval, baseline and provenance.

    Interrupted and started again, it resumes. --set takes `evaluation.*`, `sampling.*` and `data.*`
    (docs/evaluation.md).
    """
    overrides = measure.overrides(
        evaluation__guidance_scales=scales,
        data__source=data,
        evaluation__classifier="untrained" if untrained else None,
    )
    settings = checked_settings(overrides)
    with stoppable():
        if is_model(what):
            evaluated = evaluate_model(
                what, measure, overrides, form=form, held_out=held_out, out=out
            )
        else:
            evaluated = _evaluate_images(what, settings, out)
    if evaluated.found:
        log(f"From the cache, measured {evaluated.card.date}; --out FOLDER measures again.")
    print_card(evaluated.card)
    for pictures in ("samples", "nearest"):
        if any(evaluated.folder.glob(f"{pictures}-*.png")):
            log(f"{pictures.capitalize():<8}{evaluated.folder / f'{pictures}-*.png'}")
    log(f"Card    {evaluated.folder / 'card.json'}")


def checked_settings(overrides: Sequence[str]) -> dict[str, Any]:
    """The default sections with `overrides`; mistakes are reported before a model is opened."""
    sections = {"data": DataConfig(), "sampling": Sampling(), "evaluation": EvaluationConfig()}
    return override(sections, overrides)


def _evaluate_images(what: Path, settings: dict[str, Any], out: Path | None) -> "Evaluated":
    """Measure a folder or an .npz file."""
    if not what.exists():
        check_model(what)
    if not settings["data"].source:
        raise InputError(
            f"{what} does not say which real images it is to be compared with.",
            hint="Name them: --data FOLDER, --data OWNER/NAME or --data digits.",
        )
    from sfumato.evaluation.measure import evaluate as measure_images
    from sfumato.evaluation.pictures import write_pictures
    from sfumato.evaluation.target import files_target

    evaluated = measure_images(
        files_target(what, settings["data"]),
        settings["evaluation"],
        base=out or what.with_name(f"{what.stem}-evaluation"),
        say=log,
        on_images=Progress(),
    )
    write_pictures(evaluated)
    return evaluated


def evaluate_model(
    path: Path,
    measure: MeasureOptions,
    overrides: Sequence[str],
    *,
    form: str | None = None,
    held_out: bool = False,
    out: Path | None = None,
    scale: float | None = None,
) -> "Evaluated":
    """Sample and measure; at `scale` alone where it is given."""
    from sfumato.evaluation.measure import evaluate as measure_images
    from sfumato.evaluation.pictures import write_pictures

    target, config, device = model_to_measure(
        path, measure, overrides, form=form, held_out=held_out, scale=scale
    )
    evaluated = measure_images(
        target,
        config,
        base=out or beside(path, "evaluation-held-out" if held_out else "evaluation"),
        device=device,
        say=log,
        on_images=Progress(),
    )
    write_pictures(evaluated)
    return evaluated


def model_to_measure(
    path: Path,
    measure: MeasureOptions,
    overrides: Sequence[str],
    *,
    form: str | None = None,
    held_out: bool = False,
    scale: float | None = None,
) -> "tuple[Target, EvaluationConfig, torch.device]":
    """What will be sampled, how it is measured, and where; at `scale` alone where it is given."""
    from sfumato.evaluation.target import model_target

    model = open_model(path, measure.device, form=form)
    settings = model_settings(model, path, overrides)
    config = settings["evaluation"]
    if scale is not None:
        config = config.model_copy(update={"guidance_scales": (scale,)})
    model = replace(model, sampling=settings["sampling"])
    warn_of_sampling(model, config.guidance_scales)
    target = model_target(model, path, config, first_seed=measure.seed, held_out=held_out)
    return target, config, model.device


def model_settings(model: "Model", path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """The model's own data, sampling and evaluation settings with `overrides`.

    Real images of another source than the model names are reported: nothing else would show it.
    """
    from sfumato.generation.loading import experiment_of_run

    run = model.folder
    sections = {
        "data": model.data or DataConfig(),
        "sampling": model.sampling,
        "evaluation": EvaluationConfig() if run is None else experiment_of_run(run).evaluation,
    }
    settings = override(sections, overrides)
    source = settings["data"].source
    if model.data is not None and source != model.data.source:
        log_wrapped(
            f"Real images of {source}; the model was trained on {model.data.source}. Metrics hold "
            "only if that is the same data set."
        )
    return settings


def with_data(model: "Model", path: Path, data: str | None) -> "Model":
    """`model`, compared with the real images of the source `data` where it is given."""
    if data is None:
        return model
    settings = model_settings(model, path, [f"data.source={json.dumps(data)}"])
    return replace(model, data=settings["data"])
