"""What a run takes over from the trained model that it begins with. Imports no torch."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from sfumato.base.errors import ConfigError, DamagedDataError
from sfumato.base.files import read_json
from sfumato.config.overrides import build, flattened, parse_yaml, read_text, read_values
from sfumato.config.schema import DiffusionExperiment, load_experiment
from sfumato.config.sections import CodecConfig, DataConfig
from sfumato.diffusion.process import process_from_dict
from sfumato.diffusion.solvers.registry import Sampling
from sfumato.generation.bundle_names import INDEX, check_model, is_bundle, model_folder
from sfumato.models.codec import vae_factor
from sfumato.models.unet import unet_config_of

TUNED = "tuned.json"
"""In a run folder: the sampling settings that `sfumato tune` chose."""
NEW_INPUT = "model.scale_embedding"
"""The one setting of the network in which a student may differ from its origin."""
Sections = dict[str, Any]
HELD = {
    "model": None,
    "diffusion": None,
    "text": None,
    "codec": None,
    "data": ("resolution", "channels", "value_range"),
}
"""Sections, and settings of them, that a run has in common with its origin."""


def load_from(
    origin: str, preset: str | Path, overrides: Sequence[str], folder: Path | None = None
) -> DiffusionExperiment:
    """The experiment of a preset that begins with the model `origin`, whose network, process,
    codec, text encoder and sampling take the place of the preset's.

    A run in `folder` that began with `origin` is resumed, whatever became of that model since.
    `ConfigError` that names the overrides which contradict the origin.
    """
    begun = None if folder is None else _begun(origin, folder)
    sections = sections_of(origin) if begun is None else _of_experiment(begun)
    values, source = read_values(str(preset))
    if values.get("method", "diffusion") != "diffusion":
        load_experiment(preset, schema=DiffusionExperiment)  # refuses it
    taken = deepcopy(sections)  # overrides are put into it in place
    values |= {**taken, "data": {**(values.get("data") or {}), **taken["data"]}}
    values["origin"] = {"model": origin}
    if begun is not None and begun.origin is not None:
        values["origin"]["weights_sha256"] = begun.origin.weights_sha256
    experiment = build(DiffusionExperiment, values, overrides, source=source)
    check_agrees(experiment, sections)
    return experiment


def check_agrees(experiment: DiffusionExperiment, sections: Sections) -> None:
    """`ConfigError` that names the settings in which an experiment is not as its origin."""
    assert experiment.origin is not None
    own = flattened(_held(experiment.model_dump(mode="json")))
    theirs = flattened(_held(sections))
    if experiment.distillation is not None:  # it may take w as an input, its origin need not
        own.pop(NEW_INPUT, None), theirs.pop(NEW_INPUT, None)
    wrong = [
        f"{name} is {theirs.get(name)!r} there, {own.get(name)!r} here"
        for name in {**theirs, **own}
        if own.get(name) != theirs.get(name)
    ]
    if wrong:
        raise ConfigError(
            f"The run begins with {experiment.origin.model}, but {'; '.join(wrong)}.",
            hint="Leave these settings out: network, process, codec and text encoder are those of "
            "the model. To change them, train without --from.",
        )


def sections_of(origin: str) -> Sections:
    """The sections that a run takes over from a model: a run, an exported folder or a bundle.
    `InputError` for what is none."""
    check_model(origin)
    folder = model_folder(origin)
    if (folder / "experiment.yaml").is_file():
        experiment = load_experiment(folder / "experiment.yaml", schema=DiffusionExperiment)
        sections = _of_experiment(experiment)
        if (folder / TUNED).is_file():
            sections["sampling"] = read_json(folder / TUNED)["sampling"]
    else:
        index = folder / (INDEX if is_bundle(origin) else "model_index.json")
        try:
            sections = _of_export(folder, index)
        except (KeyError, TypeError, IndexError) as error:
            raise DamagedDataError(
                f"{index} does not describe a model of sfumato: {error!r}.",
                hint="Export the model again.",
            ) from error
    sampling = Sampling(**sections["sampling"])
    if sampling.form.needs_weak_network:  # an earlier checkpoint, which this run has not yet
        sections["sampling"] = {**sections["sampling"], "guidance": "cfg"}
    return sections


def _begun(origin: str, folder: Path) -> DiffusionExperiment | None:
    """The experiment of a run in `folder` that began with `origin`."""
    file = folder / "experiment.yaml"
    if not file.is_file():
        return None
    recorded = parse_yaml(read_text(file), str(file)).get("origin")
    if not isinstance(recorded, dict) or recorded.get("model") != origin:
        return None
    return load_experiment(file, schema=DiffusionExperiment)


def _of_experiment(experiment: DiffusionExperiment) -> Sections:
    values = experiment.model_dump(mode="json")
    return {**_held(values), "sampling": values["sampling"]}


def _held(values: Mapping[str, Any]) -> Sections:
    return {
        section: {
            key: value for key, value in values[section].items() if keys is None or key in keys
        }
        for section, keys in HELD.items()
    }


def _images_of_export(codec: Mapping[str, Any], unet: Mapping[str, Any], folder: Path) -> Sections:
    """The sections of an exported codec and of the images that it takes."""
    channels, side = unet["in_channels"], unet["sample_size"]
    section = CodecConfig()
    data = {"resolution": side, "channels": channels}
    if codec["codec"] == "linear":
        section = CodecConfig(kind="linear", factor=codec["factor"], channels=channels)
        data = {"resolution": side * codec["factor"], "channels": codec["image_channels"]}
    elif codec["codec"] == "vae":
        vae = read_json(folder / "vae" / "config.json")
        section = CodecConfig(
            kind="vae",
            factor=vae_factor(vae),
            channels=channels,
            vae=f"sha256:{codec['sha256']}",  # the model may be moved; its own VAE is used
            posterior="sample" if codec["samples"] else "mode",
        )
        data = {"resolution": side * section.factor, "channels": vae["out_channels"]}
    value_range = list(codec.get("value_range", DataConfig().value_range))
    return {
        "codec": section.model_dump(mode="json"),
        "data": {**data, "value_range": value_range},
    }


def _of_export(folder: Path, index: Path) -> Sections:
    """Of a bundle or of a folder that diffusers reads."""
    values = read_json(index)
    values = values["model"] if index.name == INDEX else values
    file = folder / "unet" / "config.json"
    unet = read_json(file)
    return {
        "model": unet_config_of(unet, where=str(file)).model_dump(mode="json"),
        "diffusion": process_from_dict(values["process"]).to_dict(),
        "text": {
            "encoder": values["provenance"]["text_encoder"].rpartition(" sha256:")[0],
            "max_tokens": values["max_tokens"],
        },
        **_images_of_export(values["codec"], unet, folder),
        "sampling": dict(values["sampling"]),
    }
