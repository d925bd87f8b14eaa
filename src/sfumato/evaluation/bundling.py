"""From a run to a bundle, a trained model as sfumato can carry it, and its model card.

Written in two steps, since what is measured is to be what is shipped: `write_bundle` rounds the
weights, `sfumato evaluate` measures the bundle, and `add_cards` puts the metrics into its README.
"""

import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from sfumato.base.environment import now
from sfumato.base.errors import ConfigError, InputError
from sfumato.base.files import sha256_of_file, whole_folder, write_json, write_text
from sfumato.config.overrides import differences, preset_names
from sfumato.config.schema import DiffusionExperiment, load_experiment
from sfumato.config.sections import DataConfig
from sfumato.data.opening import BUNDLED, source_name
from sfumato.data.records import load_records
from sfumato.data.sources.hub import is_hub_name
from sfumato.data.trajectories import open_trajectories
from sfumato.evaluation.card import Card, read_card
from sfumato.evaluation.model_card import model_card
from sfumato.generation.bundle_names import INDEX, is_bundle
from sfumato.generation.bundles import (
    CARD,
    FIGURES,
    UNET_CONFIG,
    UNET_WEIGHTS,
    model_values,
    verified,
    write_hashes,
)
from sfumato.generation.loading import load
from sfumato.generation.model import Model
from sfumato.generation.runs import experiment_of_run
from sfumato.training.checkpoint import Checkpoint, Checkpoints
from sfumato.training.records import read_records

FORMAT = 2
EXTRACTOR = "classifier"
"""The extractor whose Frechet distance a model card shows."""


def write_bundle(
    run: Path,
    folder: Path,
    *,
    source: str | None = None,
    note: str = "",
    cards: Sequence[Path] = (),
) -> None:
    """Write the newest checkpoint of `run` as a bundle, whole or not at all.

    The averaged weights are rounded to float16; the sampling settings are the run's current ones.
    `source` is the public name of the data, for a run that read them from a folder: a bundle holds
    no path of the machine it was made on. `note`: what else is to be known of the data, such as a
    part of them that was used. `cards`: see `add_cards`. The same run gives the same weights, byte
    for byte.

    `InputError` for what is no run, a run with another text encoder than the bundled one, one that
    samples with autoguidance, or data without a public name; `ConfigError` for cards of others.
    """
    model = load(run, device="cpu")
    if model.folder is None:
        raise InputError(f"{run} is not a run.", hint="Give the folder of the run it came from.")
    experiment = experiment_of_run(run)
    _check(experiment, model, run)
    public = experiment.data.model_copy(
        update={"source": public_source(experiment.data.source, source)}
    )
    captions, labels = model.examples()
    with whole_folder(folder) as temporary:
        _write_network(model, temporary)
        weights_sha256 = sha256_of_file(temporary / UNET_WEIGHTS)
        provenance = {
            **model.provenance,
            "weights_sha256": weights_sha256,
            "rounded_from_sha256": model.provenance["weights_sha256"],
            "data": public.model_dump(mode="json"),
            "examples": dict(zip(captions, labels, strict=True)),
        }
        if "origin" in provenance:
            provenance["origin"] = Path(provenance["origin"]).name
        index = {
            "format": FORMAT,
            "model": model_values(replace(model, provenance=provenance)),
            "training": _training_of(experiment, model, public, note),
        }
        write_json(temporary / INDEX, index)
        _describe(temporary, index, evaluations_of(cards, weights_sha256), name=folder.name)


def _training_of(
    experiment: DiffusionExperiment, model: Model, public: DataConfig, note: str
) -> dict[str, Any]:
    """How the model was trained, for the index and the model card."""
    assert model.folder is not None
    checkpoints = Checkpoints(model.folder / "checkpoints")
    checkpoint = Checkpoint(checkpoints.path(model.provenance["images_seen"]))
    trained_on = load_records(experiment.data, "train").description
    published = _published(experiment, public)
    student = experiment.distillation is not None
    return {
        "command": _distilling(experiment, public) if student else training_command(published),
        "experiment": published.model_dump(mode="json"),
        "data": public.source + trained_on.removeprefix(source_name(experiment.data)),
        "note": note,
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "images_per_second": _median_speed(model.folder),
        "environment": checkpoint.state["environment"],
        "libraries": {name: version(name) for name in ("diffusers", "transformers")},
        "date": now()[:10],
    }


def add_cards(folder: Path, cards: Sequence[Path]) -> None:
    """Put the metrics of `cards` (evaluations' folders, or their card.json) into a bundle's README,
    in place of those that are there.

    `ConfigError` for a card of other weights: the metrics are to be of what is shipped.
    `DamagedDataError` where a file of the bundle was altered.
    """
    if not is_bundle(folder):
        raise InputError(f"{folder} is not a bundle.", hint="Write one with `sfumato bundle`.")
    content = verified(folder)
    index = json.loads(content[INDEX])
    weights_sha256 = index["model"]["provenance"]["weights_sha256"]
    evaluations = evaluations_of(cards, weights_sha256)
    with whole_folder(folder) as temporary:
        for name in content.keys() - {CARD, FIGURES}:
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_bytes(content[name])
        _describe(temporary, index, evaluations, name=folder.resolve().name)


def public_source(source: str, given: str | None) -> str:
    """The name by which others find the data; `InputError` where only a folder is known."""
    public = source if given is None else given
    if public not in BUNDLED and (not is_hub_name(public) or Path(public).expanduser().exists()):
        raise InputError(
            f"'{public}' is a path on this machine, or not the name of a data set.",
            hint="Say where others find the data: --source OWNER/NAME.",
        )
    return public


def _published(experiment: DiffusionExperiment, data: DataConfig) -> DiffusionExperiment:
    """The experiment with the public name of its data, and of other models and files that it names
    the last part of their path."""
    update: dict[str, Any] = {"data": data}
    if (origin := experiment.origin) is not None:
        update["origin"] = origin.model_copy(update={"model": Path(origin.model).name})
    if (student := experiment.distillation) is not None:
        names = {name: Path(getattr(student, name)).name for name in ("teacher", "trajectories")}
        update["distillation"] = student.model_copy(update=names)
    return experiment.model_copy(update=update)


def _distilling(experiment: DiffusionExperiment, data: DataConfig) -> str:
    """The command that distils a student, with those before it as far as their runs are there."""
    student = experiment.distillation
    assert student is not None
    row, before = [student.nfe], experiment.origin
    while before is not None and (Path(before.model) / "experiment.yaml").is_file():
        earlier = experiment_of_run(Path(before.model))
        if earlier.distillation is None:
            break
        row, before = [earlier.distillation.nfe, *row], earlier.origin
    preset = load_experiment("student", schema=DiffusionExperiment)
    kept = ("training.", "distillation.features", "distillation.held_out", "distillation.patience")
    words = ["sfumato", "distil", Path(student.teacher).name, "--data", data.source]
    words += ["--nfe", ",".join(map(str, row))]
    made = open_trajectories(Path(student.trajectories)).about
    request, form = made["request"], made["teacher"]["guidance"]
    words += ["--count", str(request["count"]), "--teacher-steps", str(request["teacher_steps"])]
    low, high = f"{request['low']:g}", f"{request['high']:g}"
    words += ["--guidance", low] if low == high else ["--scales", f"{low},{high}"]
    words += ["--guidance-form", form]
    for name, (_, after) in differences(preset, experiment).items():
        if name.startswith(kept):
            words += ["--set", f"{name}={json.dumps(after)}"]
    return shlex.join(words)


def training_command(experiment: DiffusionExperiment) -> str:
    """The command that trains `experiment`: its preset and all that differs from it.

    What the preset leaves to the images (`auto`) is not named, nor how it is evaluated.
    """
    if experiment.name not in preset_names():
        return f"sfumato train {experiment.name}.yaml"
    preset = load_experiment(experiment.name, schema=DiffusionExperiment)
    words = ["sfumato", "train", experiment.name]
    if experiment.data.source != preset.data.source:
        words += ["--data", experiment.data.source]
    for name, (before, after) in differences(preset, experiment).items():
        by_itself = before in ("auto", ["auto"]) or name in ("data.source", "about")
        if not by_itself and not name.startswith("evaluation."):
            words += ["--set", f"{name}={json.dumps(after)}"]
    return shlex.join(words)


def _check(experiment: DiffusionExperiment, model: Model, run: Path) -> None:
    if experiment.text.encoder != "bundled":
        raise InputError(
            f"{run} was trained with the text encoder '{experiment.text.encoder}'; a bundle holds "
            "none, and samples with the one that comes with sfumato.",
            hint="`sfumato export` writes a folder with its own.",
        )
    if experiment.codec.kind == "vae":
        raise InputError(
            f"{run} samples latents of a VAE, which a bundle does not hold.",
            hint="`sfumato export` writes a folder with it.",
        )
    if model.sampling.form.needs_weak_network:
        raise InputError(
            f"{run} samples with autoguidance, which needs a second network; a bundle holds one.",
            hint="Set another sampling.guidance, or use `sfumato export`.",
        )


def _write_network(model: Model, folder: Path) -> None:
    from safetensors.torch import save_file

    model.network.save_config(folder / Path(UNET_CONFIG).parent)  # pyright: ignore
    rounded = {name: v.half().contiguous() for name, v in model.network.state_dict().items()}
    save_file(rounded, folder / UNET_WEIGHTS)


def _median_speed(run: Path) -> float | None:
    speeds = [one["images_per_second"] for one in read_records(run / "timing.jsonl")]
    return round(median(speeds), 1) if speeds else None


def _describe(
    folder: Path, index: dict[str, Any], evaluations: list[dict[str, Any]], *, name: str
) -> None:
    """Metrics, model card, and the hashes of all files."""
    write_json(folder / FIGURES, {"evaluations": evaluations})
    write_text(folder / CARD, model_card(name, index, evaluations))
    write_hashes(folder)


# Metrics ------------------------------------------------------------------------------------------


def evaluations_of(cards: Sequence[Path], weights_sha256: str) -> list[dict[str, Any]]:
    """What a model card shows of each metric card; `ConfigError` for one of other weights."""
    found = []
    for path in cards:
        card = read_card(path.parent if path.is_file() else path)
        if card.subject.provenance.get("weights_sha256") != weights_sha256:
            raise ConfigError(
                f"{path} measured other weights than those of the bundle, which are rounded to "
                "float16.",
                hint="Evaluate the bundle itself, then give that card.",
            )
        found.append(_evaluation(card))
    return found


def _evaluation(card: Card) -> dict[str, Any]:
    data = card.subject.provenance["data"]
    captions = card.subject.captions
    values = card.model_dump(mode="json")
    baseline = values["baselines"].get(EXTRACTOR, {}).get("metrics", {})
    return {
        "captions": captions,
        "held_out": bool(captions) and set(captions) <= set(data["held_out"]),
        "reference": card.reference.description,
        "classifier": values["classifier"],
        "real_accuracy": values["real"]["metrics"].get("class_accuracy"),
        "baseline": baseline.get("frechet"),
        "perturbations": values["perturbations"].get(EXTRACTOR, []),
        "rows": [_row(row) for row in values["rows"]],
        "environment": card.hardware,
        "sfumato": card.sfumato,
        "date": card.date,
    }


def _row(row: dict[str, Any]) -> dict[str, Any]:
    kept = ("guidance_scale", "guidance", "sampler", "timestep_spacing", "steps", "seeds")
    return {
        "count": row["count"],
        "class_accuracy": row["metrics"].get("class_accuracy"),
        "frechet": row["metrics"].get(f"frechet.{EXTRACTOR}"),
        "nfe": row["nfe"],
        **{key: row["settings"][key] for key in kept},
    }
