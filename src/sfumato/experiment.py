"""An experiment: every section of the configuration, and how they become a training run."""

import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import model_validator

from sfumato.base.errors import ConfigError, InputError, nearest
from sfumato.base.files import (
    is_temporary,
    make_folder,
    read_json,
    remove_incomplete,
    write_text,
)
from sfumato.base.section import Section, validate
from sfumato.data.config import DataConfig
from sfumato.data.loading import DeviceBatches
from sfumato.data.sources import BUNDLED, Records, load_records
from sfumato.data.survey import Survey, resolve
from sfumato.diffusion.guidance import GuidanceConfig
from sfumato.diffusion.schedule import DiffusionConfig
from sfumato.evaluation import EvaluationConfig
from sfumato.generation import ImageGenerator, build_pipeline, resolve_device
from sfumato.models.schedulers import SamplingConfig
from sfumato.models.unet import UNetConfig, build_unet
from sfumato.report.pictures import labelled_grid
from sfumato.text.encoder import ClipTextEncoder, TextConfig, load_text_encoder
from sfumato.text.prompts import PromptBank
from sfumato.training.checkpoint import Checkpoints
from sfumato.training.hooks import (
    CheckpointHook,
    LogHook,
    SampleHook,
    cut_back_records,
    stopping_on_signals,
)
from sfumato.training.loop import Hook, Run, TrainingConfig, train
from sfumato.training.objectives import DiffusionObjective

CHANGEABLE_ON_RESUME = {
    "about": "a description",
    "sampling": "used after training",
    "evaluation": "used after training",
    "training.images": "length",
    "training.epochs": "length",
    "training.log_every_images": "cadence",
    "training.sample_every_images": "cadence",
    "training.checkpoint_every_images": "cadence",
    "training.checkpoint_epochs": "cadence",
    "training.keep_checkpoints": "output",
}
"""Settings that may differ when a run goes on; any other difference is another experiment."""


class Experiment(Section):
    """Everything a run depends on; `experiment.yaml` in its folder holds it, resolved."""

    name: str
    """The preset's name."""
    about: str = ""
    """One line for people."""
    seed: int = 0
    """Seed of weights, order, noise and dropped captions."""
    data: DataConfig
    text: TextConfig = TextConfig()
    model: UNetConfig
    diffusion: DiffusionConfig = DiffusionConfig()
    training: TrainingConfig
    sampling: SamplingConfig = SamplingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _in_range(self) -> "Experiment":
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed lies between 0 and 2**63 - 1 (got {self.seed})")
        levels = self.diffusion.num_train_timesteps
        if not 1 <= self.sampling.steps <= levels:
            raise ValueError(
                f"sampling.steps lies between 1 and {levels} (got {self.sampling.steps})"
            )
        if not 0 <= self.sampling.guidance_scale <= 1000:
            raise ValueError(
                "sampling.guidance_scale lies between 0 and 1000 "
                f"(got {self.sampling.guidance_scale:g})"
            )
        return self

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def preset_names() -> list[str]:
    """The presets that come with sfumato."""
    folder = files("sfumato.presets")
    return sorted(
        item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml")
    )


def load_experiment(name: str, overrides: Sequence[str] = ()) -> Experiment:
    """An experiment from a preset's name or a YAML file, with `section.key=value` overrides.

    Raises `ConfigError` with the nearest match for whatever is not known.
    """
    if name.endswith((".yaml", ".yml")) or os.sep in name:
        path = Path(name)
        if not path.is_file():
            raise InputError(f"{path} is not a file.", mend="Give a preset's name or a YAML file.")
        text, source = _read_text(path), str(path)
    elif name in preset_names():
        text = (files("sfumato.presets") / f"{name}.yaml").read_text("utf-8")
        source = f"preset '{name}'"
    else:
        raise ConfigError(
            f"No preset named '{name}'.",
            mend=f"{nearest(name, preset_names())} `sfumato presets list` shows them; a YAML file "
            "of your own is given by its path.",
        )
    values = parse_yaml(text, source)
    for override in overrides:
        _apply(values, override)
    if overrides:
        source += f" with --set {' '.join(overrides)}"
    return validate(Experiment, values, source=source)


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path} cannot be read as text: {error}.") from error


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """A mapping from YAML; `ConfigError` with the line where it is not YAML."""
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        raise ConfigError(
            f"{source}{where}: not valid YAML ({problem}).",
            mend="Check indentation, colons and quotes there.",
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: expected `key: value` lines, found {type(values).__name__}.")
    return values


def _apply(values: dict[str, Any], override: str) -> None:
    """Put one `section.key=value` into nested values; `ConfigError` for unknown keys."""
    path, separator, text = override.partition("=")
    if not separator or not path:
        raise ConfigError(
            f"--set {override}: expected section.key=value.",
            mend="For example: --set training.batch_size=32",
        )
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: {text!r} is not a YAML value.") from error
    known = setting_names(Experiment)
    if path not in known:
        raise ConfigError(f"--set {path}: no such setting. {_nearest_setting(path, known)}")
    *parents, last = path.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
    if last in ("images", "epochs") and parents == ["training"]:
        values.pop("epochs" if last == "images" else "images", None)
    values[last] = value


def _nearest_setting(path: str, known: list[str]) -> str:
    """Sections are often forgotten, so the last part alone may name the setting."""
    same_key = [name for name in known if name.rsplit(".", 1)[-1] == path.rsplit(".", 1)[-1]]
    if same_key:
        return f"Did you mean '{same_key[0]}'?"
    near = difflib.get_close_matches(path, known, n=1, cutoff=0.5)
    if near:
        return f"Did you mean '{near[0]}'?"
    return "`sfumato presets show digits` lists all settings."


def setting_names(section: type[Section], prefix: str = "") -> list[str]:
    """Every setting's dotted name, sections included."""
    names = []
    for name, field in section.model_fields.items():
        names.append(prefix + name)
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            names += setting_names(annotation, f"{prefix}{name}.")
    return names


def differences(a: Experiment, b: Experiment) -> dict[str, tuple[Any, Any]]:
    """Settings in which two experiments differ, by dotted name."""

    def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, item in value.items():
            if isinstance(item, Mapping):
                result.update(flat(item, f"{prefix}{key}."))
            else:
                result[prefix + key] = item
        return result

    first, second = flat(a.model_dump(mode="json")), flat(b.model_dump(mode="json"))
    return {
        name: (first.get(name), second.get(name))
        for name in {**first, **second}
        if first.get(name) != second.get(name)
    }


def resolve_experiment(experiment: Experiment, found: Survey | None = None) -> Experiment:
    """The experiment with every `auto` of its data made concrete, and a folder's path absolute, so
    that its experiment.yaml holds from anywhere. `found` saves a second look at the data."""
    data = resolve(experiment.data, found)
    folder = Path(data.source).expanduser()
    if data.source not in BUNDLED and folder.is_dir():
        data = data.model_copy(update={"source": str(folder.resolve())})
    return experiment.model_copy(update={"data": data})


def claim_folder(experiment: Experiment, folder: Path) -> None:
    """Make `folder` this experiment's, or check that it is; nothing of another is overwritten."""
    file = folder / "experiment.yaml"
    if file.exists():
        there = validate(Experiment, parse_yaml(_read_text(file), str(file)), source=str(file))
        other = {
            name: values
            for name, values in differences(there, experiment).items()
            if not any(name == key or name.startswith(f"{key}.") for key in CHANGEABLE_ON_RESUME)
        }
        if other:
            shown = "; ".join(f"{n} is {a!r} there, {b!r} here" for n, (a, b) in other.items())
            raise ConfigError(
                f"{folder} holds another experiment: {shown}.",
                mend="Choose another --out, or the settings of that folder to go on with it.",
            )
    elif folder.exists() and not all(is_temporary(path) for path in folder.iterdir()):
        raise ConfigError(
            f"{folder} exists and is not a run of sfumato.",
            mend="Choose a new or empty folder with --out; nothing there was touched.",
        )
    _refuse_a_length_already_passed(experiment, folder)
    make_folder(folder)
    for place in (folder, folder / "samples", folder / "checkpoints"):
        remove_incomplete(place)
    text = experiment.to_yaml()
    if not file.exists() or file.read_text("utf-8") != text:
        write_text(file, text)


def _refuse_a_length_already_passed(experiment: Experiment, folder: Path) -> None:
    """A run cannot be shortened to before its newest checkpoint; its record would be untrue."""
    training = experiment.training
    there = Checkpoints(folder / "checkpoints").all()
    if training.images is None or not there:
        return
    seen = int(there[-1].path.name.removeprefix("images-"))  # its files may be damaged
    if seen - training.batch_size >= training.images:
        raise ConfigError(
            f"{folder} has trained on {seen:,} images already, more than training.images="
            f"{training.images:,}.",
            mend="Give a larger number to train on, or another --out; nothing there was touched.",
        )


def prepare_run(
    experiment: Experiment, folder: Path, *, device: str = "auto", hooks: Sequence[Hook] = ()
) -> Run:
    """Build the run of an experiment in `folder`, resumed where it has a checkpoint."""
    where = resolve_device(device)
    experiment = resolve_experiment(experiment)
    claim_folder(experiment, folder)
    records = load_records(experiment.data, "train")
    encoder = load_text_encoder(experiment.text)
    if encoder.dim != experiment.model.cross_attention_dim:
        raise ConfigError(
            f"model.cross_attention_dim is {experiment.model.cross_attention_dim}, but the text "
            f"encoder '{encoder.name}' is {encoder.dim} wide.",
            mend=f"Set model.cross_attention_dim={encoder.dim}, or choose another encoder.",
        )
    encoder.model.to(where)
    bank = PromptBank(encoder, records.captions, device=where)
    encoder.model.to("cpu")
    unet = build_unet(
        experiment.model,
        resolution=experiment.data.resolution,
        channels=experiment.data.channels,
        seed=experiment.seed,
    ).to(where)
    objective = DiffusionObjective(
        unet,
        bank,
        diffusion=experiment.diffusion,
        optimizer=experiment.training.optimizer,
        averaging=experiment.training.averaging,
        value_range=experiment.data.value_range,
        caption_dropout=experiment.training.caption_dropout,
        loss_weight=experiment.training.loss_weight,
        min_snr_gamma=experiment.training.min_snr_gamma,
        precision=experiment.training.precision,
    )
    training = experiment.training
    run = Run(
        folder=folder,
        objective=objective,
        batches=DeviceBatches(
            with_bank_rows(records, bank),
            seed=experiment.seed,
            batch_size=training.batch_size,
            device=where,
        ),
        seed=experiment.seed,
        total_images=training.total_images(len(records)),
        device=where,
        micro_batches=training.micro_batches,
        keep_checkpoints=training.keep_checkpoints,
        milestones=training.milestones(len(records)),
        provenance={"experiment": experiment.name, "text_encoder": encoder.identity},
    )
    run.hooks = [
        LogHook(folder / "metrics.jsonl", every_images=training.log_every_images),
        *hooks,
        SampleHook(
            folder / "samples",
            every_images=training.sample_every_images,
            draw=sample_grid(experiment, objective, encoder, records),
        ),
        CheckpointHook(every_images=training.checkpoint_every_images),
    ]
    run.resume()
    cut_back_records(run)
    return run


def with_bank_rows(records: Records, bank: PromptBank) -> Records:
    """The same records with `prompts` counted in rows of the bank."""
    rows = bank.index(records.captions).cpu()
    return replace(records, prompts=rows[records.prompts])


def sample_grid(
    experiment: Experiment,
    objective: DiffusionObjective,
    encoder: ClipTextEncoder,
    records: Records,
    *,
    most_captions: int = 16,
) -> Callable[[], bytes]:
    """A function that draws the averaged network's samples: captions by guidance scale.

    Autoguidance needs an earlier checkpoint, so that plain guidance stands in for it here.
    """
    sampling = experiment.sampling
    if sampling.guidance.needs_weak_network:
        sampling = sampling.model_copy(update={"guidance": GuidanceConfig()})
    pipeline = build_pipeline(
        objective.average.module,
        encoder,
        data=experiment.data,
        diffusion=experiment.diffusion,
        sampling=sampling,
    )
    generator = ImageGenerator(pipeline, data=experiment.data)
    captions, labels = records.examples(most_captions)
    scales = [1.0, sampling.guidance_scale]

    def draw() -> bytes:
        return labelled_grid(
            [
                list(generator.draw(captions, range(len(captions)), guidance_scale=scale))
                for scale in scales
            ],
            row_labels=[f"w = {scale:g}" for scale in scales],
            column_labels=labels,
        )

    return draw


def run_experiment(
    experiment: Experiment,
    folder: Path,
    *,
    device: str = "auto",
    hooks: Sequence[Hook] = (),
    on_start: Callable[[Run], None] = lambda run: None,
) -> Run:
    """Train an experiment to its end (or to a request to stop) and export its pipeline.

    `on_start` is told of the run before its first step.
    """
    run = prepare_run(experiment, folder, device=device, hooks=hooks)
    on_start(run)
    if not run.finished:
        with stopping_on_signals(run):
            train(run)
    if run.finished and exported_images(folder) != run.images_seen:
        ImageGenerator.open(folder, device="cpu").export(folder / "pipeline")
    return run


def exported_images(folder: Path) -> int | None:
    """After how many images the weights in a run's `pipeline/` were taken; None without one."""
    index = folder / "pipeline" / "model_index.json"
    return read_json(index)["provenance"].get("images_seen") if index.exists() else None
