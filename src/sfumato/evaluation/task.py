"""What an evaluation is of: the sets of images, the real ones beside them, and the settings."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sfumato.base.errors import InputError
from sfumato.base.files import cache_folder
from sfumato.config.overrides import override
from sfumato.config.sections import DataConfig, EvaluationConfig
from sfumato.data.annotations import classes_of_captions
from sfumato.data.opening import same_source
from sfumato.data.records import load_records
from sfumato.evaluation.card import Subject
from sfumato.evaluation.image_set import ImageSet
from sfumato.evaluation.prompt_set import PromptSet
from sfumato.evaluation.sampled_images import sampled_set
from sfumato.evaluation.store import digest_of
from sfumato.generation.bundle_names import beside, is_model
from sfumato.generation.can import CanModel
from sfumato.generation.loading import load, resolve_device
from sfumato.generation.model import Model
from sfumato.generation.runs import experiment_of_run
from sfumato.text.encoder import NULL

Evaluated = str | Path | Model | ImageSet | Sequence[ImageSet]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is evaluated, how, and where the card goes."""

    sets: Sequence[ImageSet]
    data: DataConfig
    config: EvaluationConfig
    subject: Subject
    base: Path
    device: Any


def open_task(
    subject: Evaluated,
    data: DataConfig | str | None,
    overrides: Sequence[str],
    loading: Mapping[str, Any],
    log: Callable[[str], None],
) -> Task:
    """The task of `evaluate`'s arguments; `overrides` are of data, sampling and evaluation."""
    if isinstance(data, str):
        overrides = [f"data.source={json.dumps(data)}", *overrides]
    own = data if isinstance(data, DataConfig) else None
    if isinstance(subject, Model):
        return _model_task(subject, own, overrides, subject.folder, log)
    if isinstance(subject, str | Path) and is_model(subject):
        return _model_task(load(subject, **loading), own, overrides, subject, log)
    return _images_task(subject, own, overrides, loading["device"])


def _model_task(
    model: Model,
    data: DataConfig | None,
    overrides: Sequence[str],
    path: str | Path | None,
    log: Callable[[str], None],
) -> Task:
    model, data, config = with_overrides(model, overrides, data=data, log=log)
    if config.held_out and not data.held_out:
        raise InputError(
            "This model's data set names no held-out captions (data.held_out).",
            hint="Evaluate without --held-out.",
        )
    what = "evaluation-held-out" if config.held_out else "evaluation"
    name = Path(path).resolve().name if path is not None else model.provenance["experiment"]
    prompts = prompts_of(data, config, model)
    has_classes = prompts.labels is not None
    # A CAN sees the class alone, in whatever words.
    captions = prompts.templates or data.caption[:1]
    return Task(
        sets=sampled_sets(model, prompts, config),
        data=data,
        config=config,
        subject=Subject(
            kind="run" if model.folder is not None else "pipeline",
            name=name,
            provenance=dict(model.provenance),
            captions=[] if isinstance(model, CanModel) else list(captions),
            labels=config.labels if has_classes else "random",
        ),
        base=Path(f"{name}-{what}") if path is None else beside(path, what),
        device=model.device,
    )


def prompts_of(data: DataConfig, config: EvaluationConfig, model: Model | None = None) -> PromptSet:
    """What an evaluation asks a model for; of a CAN without classes as many images."""
    if isinstance(model, CanModel) and not model.conditional:
        return PromptSet(prompts=[NULL] * config.count)
    if config.captions:
        classes = classes_of_captions(data, config.captions)
        return PromptSet.of_captions(config.captions, classes, config.count)
    return PromptSet.of(
        load_records(data, "reference"),
        config.count,
        labels=config.labels,
        templates=data.held_out if config.held_out else (),
        seed=config.first_seed,
    )


def sampled_sets(model: Model, prompts: PromptSet, config: EvaluationConfig) -> list[ImageSet]:
    """One set for each guidance scale, of the same prompts and seeds; one of a CAN."""
    seeds = range(config.first_seed, config.first_seed + len(prompts))
    if isinstance(model, CanModel):
        return [sampled_set(model, prompts, seeds)]
    return [sampled_set(model, prompts, seeds, guidance=scale) for scale in config.guidance_scales]


def with_overrides(
    model: Model,
    overrides: Sequence[str],
    *,
    data: DataConfig | None = None,
    log: Callable[[str], None] = lambda text: None,
) -> tuple[Model, DataConfig, EvaluationConfig]:
    """The model with `section.key=value` changes of its sampling section; the data, its own unless
    given, and the evaluation section of its run with such changes.

    Real images of another source than the model names are logged: nothing else would show it.
    `InputError` for settings of sampling and guidance scales of a CAN, which has none.
    """
    if isinstance(model, CanModel):
        _refuse_sampling(overrides)
    sections: dict[str, Any] = {
        "data": data or model.data or DataConfig(),
        "sampling": model.sampling,
        "evaluation": _evaluation_of(model),
    }
    settings = override(sections, overrides) if overrides else sections
    changed_data: DataConfig = settings["data"]
    sampling = settings["sampling"]
    if not changed_data.source:
        raise InputError(
            "This model does not say which data set it was trained on.",
            hint="Evaluate the run folder it came from, or name the images with data.",
        )
    if model.data is not None and not same_source(changed_data.source, model.data.source):
        log(
            f"Real images of {changed_data.source}; the model was trained on "
            f"{model.data.source}. Metrics hold only if that is the same data set."
        )
    scheduler = model.scheduler if sampling == model.sampling else None
    changed = replace(model, sampling=sampling, scheduler=scheduler)
    if sampling.guidance != model.sampling.guidance:  # autoguidance loads its weaker network
        changed = changed.with_(form=sampling.guidance)
    return changed, changed_data, settings["evaluation"]


def _refuse_sampling(overrides: Sequence[str]) -> None:
    """`InputError` for what a CAN does not have."""
    for one in overrides:
        if one.startswith(("sampling.", "evaluation.guidance_scales=")):
            raise InputError(
                f"{one}: a CAN has no guidance scale and no sampler; its generator is evaluated "
                "once.",
                hint="Leave that out.",
            )


def _evaluation_of(model: Model) -> EvaluationConfig:
    """The section of its run, else the default at scales that it can be sampled at."""
    if isinstance(model, CanModel):
        return EvaluationConfig()
    if model.folder is not None:
        return experiment_of_run(model.folder).evaluation
    config = EvaluationConfig()
    scales = model.sampling.scales_among(config.guidance_scales)
    return config.model_copy(update={"guidance_scales": scales})


def _images_task(
    subject: str | Path | ImageSet | Sequence[ImageSet],
    data: DataConfig | None,
    overrides: Sequence[str],
    device: str,
) -> Task:
    from sfumato.evaluation.image_files import read_images, sized

    sections = {"data": data or DataConfig(), "evaluation": EvaluationConfig()}
    settings = override(sections, [one for one in overrides if not one.startswith("sampling.")])
    given: DataConfig = settings["data"]
    if isinstance(subject, str | Path):
        path = Path(subject)
        sets = [read_images(path, given if given.source else None)]
        base, name = path.with_name(f"{path.stem}-evaluation"), path.resolve().name
    else:
        sets = [subject] if isinstance(subject, ImageSet) else list(subject)
        name = sets[0].title
        base = cache_folder() / "evaluations" / digest_of([one.key for one in sets])
    if not given.source:
        raise InputError(
            f"{name} does not say which real images it is to be measured against.",
            hint="Name them: --data FOLDER, --data OWNER/NAME or --data digits.",
        )
    return Task(
        sets=sets,
        data=sized(given, sets[0].images([0]).shape[1:], name),
        config=settings["evaluation"],
        subject=Subject(kind="images", name=name, provenance={"images": [s.key for s in sets]}),
        base=base,
        device=resolve_device(device),
    )
