"""From a run to a bundle, a trained model as sfumato can carry it, and its model card.

Written in two steps, since what is measured is to be what is shipped: `write_bundle` rounds the
weights, `sfumato evaluate` measures the bundle, and `add_cards` puts the figures into its README.
"""

import json
import shlex
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from sfumato.base.environment import now
from sfumato.base.errors import ConfigError, InputError
from sfumato.base.files import read_json, sha256_of_file, whole_folder, write_json, write_text
from sfumato.config.overrides import differences, preset_names
from sfumato.config.schema import DiffusionExperiment, load_experiment
from sfumato.data.records import BUNDLED, load_records, source_name
from sfumato.data.sources.hub import is_hub_name
from sfumato.evaluation.card import MetricCard, Row, read_card
from sfumato.generation.bundle_names import INDEX, is_bundle
from sfumato.generation.bundles import (
    CARD,
    FIGURES,
    SCHEDULER,
    UNET_CONFIG,
    UNET_WEIGHTS,
    verified,
    write_hashes,
)
from sfumato.generation.model import ImageGenerator
from sfumato.training.checkpoint import Checkpoint, Checkpoints
from sfumato.training.records import read_records

FORMAT = 1
JUDGED_BY = "judge"
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
    draws with autoguidance, or data without a public name; `ConfigError` for cards of others.
    """
    generator = ImageGenerator.open(run, device="cpu")
    if generator.run_folder is None:
        raise InputError(f"{run} is not a run.", hint="Give the folder of the run it came from.")
    experiment = load_experiment(str(run / "experiment.yaml"))
    _check(experiment, generator, run)
    data = experiment.data
    public = data.model_copy(update={"source": public_source(data.source, source)})
    captions, labels = generator.examples()
    trained_on = load_records(data, "train").description
    there = Checkpoints(run / "checkpoints")
    checkpoint = Checkpoint(there.path(generator.provenance["images_seen"]))
    with whole_folder(folder) as temporary:
        _write_network(generator, temporary)
        weights_sha256 = sha256_of_file(temporary / UNET_WEIGHTS)
        provenance = {
            **generator.provenance,
            "weights_sha256": weights_sha256,
            "rounded_from_sha256": generator.provenance["weights_sha256"],
            "data": public.model_dump(mode="json"),
            "examples": dict(zip(captions, labels, strict=True)),
        }
        config = generator.pipeline.config
        kept = ("value_range", "max_tokens", "guidance_scale", "num_inference_steps", "guidance")
        index = {
            "format": FORMAT,
            "pipeline": {**{key: config[key] for key in kept}, "provenance": provenance},
            "training": {
                "command": training_command(experiment.model_copy(update={"data": public})),
                "experiment": {**experiment.model_dump(mode="json"), "data": provenance["data"]},
                "data": public.source + trained_on.removeprefix(source_name(data)),
                "note": note,
                "parameters": sum(p.numel() for p in generator.pipeline.unet.parameters()),
                "images_per_second": _median_speed(run),
                "environment": checkpoint.state["environment"],
                "libraries": {name: version(name) for name in ("diffusers", "transformers")},
                "date": now()[:10],
            },
        }
        write_json(temporary / INDEX, index)
        _describe(temporary, index, evaluations_of(cards, weights_sha256), name=folder.name)


def add_cards(folder: Path, cards: Sequence[Path]) -> None:
    """Put the figures of `cards` (evaluations' folders, or their card.json) into a bundle's README,
    in place of those that are there.

    `ConfigError` for a card of other weights: the figures are to be of what is shipped.
    `DamagedDataError` where a file of the bundle was altered.
    """
    if not is_bundle(folder):
        raise InputError(f"{folder} is not a bundle.", hint="Write one with `sfumato bundle`.")
    content = verified(folder)
    index = json.loads(content[INDEX])
    weights_sha256 = index["pipeline"]["provenance"]["weights_sha256"]
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
            f"'{public}' is a place on this machine, or no name of a data set.",
            hint="Say where others find the data: --source OWNER/NAME.",
        )
    return public


def training_command(experiment: DiffusionExperiment) -> str:
    """The command that trains `experiment`: its preset and all that differs from it.

    What the preset leaves to the images (`auto`) is not named, nor how it is evaluated.
    """
    if experiment.name not in preset_names():
        return f"sfumato train {experiment.name}.yaml"
    preset = load_experiment(experiment.name)
    words = ["sfumato", "train", experiment.name]
    if experiment.data.source != preset.data.source:
        words += ["--data", experiment.data.source]
    for name, (before, after) in differences(preset, experiment).items():
        by_itself = before in ("auto", ["auto"]) or name in ("data.source", "about")
        if not by_itself and not name.startswith("evaluation."):
            words += ["--set", f"{name}={json.dumps(after)}"]
    return shlex.join(words)


def _check(experiment: DiffusionExperiment, generator: ImageGenerator, run: Path) -> None:
    if experiment.text.encoder != "bundled":
        raise InputError(
            f"{run} was trained with the text encoder '{experiment.text.encoder}'; a bundle holds "
            "none, and is drawn with the one that comes with sfumato.",
            hint="`sfumato export` writes a folder with its own.",
        )
    if generator.guidance.needs_weak_network:
        raise InputError(
            f"{run} draws with autoguidance, which needs a second network; a bundle holds one.",
            hint="Set another sampling.guidance, or use `sfumato export`.",
        )


def _write_network(generator: ImageGenerator, folder: Path) -> None:
    from safetensors.torch import save_file

    pipeline = generator.pipeline
    pipeline.unet.save_config(folder / Path(UNET_CONFIG).parent)
    pipeline.scheduler.save_config(folder / Path(SCHEDULER).parent)
    rounded = {name: v.half().contiguous() for name, v in pipeline.unet.state_dict().items()}
    save_file(rounded, folder / UNET_WEIGHTS)


def _median_speed(run: Path) -> float | None:
    speeds = [one["images_per_second"] for one in read_records(run / "timing.jsonl")]
    return round(median(speeds), 1) if speeds else None


def _describe(
    folder: Path, index: dict[str, Any], evaluations: list[dict[str, Any]], *, name: str
) -> None:
    """Figures, model card, and the hashes of all files."""
    write_json(folder / FIGURES, {"evaluations": evaluations})
    scheduler = read_json(folder / SCHEDULER)
    write_text(folder / CARD, model_card(name, index, evaluations, scheduler))
    write_hashes(folder)


# Figures ------------------------------------------------------------------------------------------


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


def _evaluation(card: MetricCard) -> dict[str, Any]:
    floor = card.floors.get(JUDGED_BY)
    data = card.subject.provenance["data"]
    return {
        "captions": card.subject.captions,
        "held_out": bool(card.subject.captions)
        and set(card.subject.captions) <= set(data["held_out"]),
        "reference": card.reference.description,
        "judge": None if card.judge is None else card.judge.model_dump(mode="json"),
        "real_agreement": _plain(card.real.agreement),
        "floor": None if floor is None else _plain(floor.frechet),
        "yardsticks": [_plain(one) for one in card.yardsticks.get(JUDGED_BY, [])],
        "rows": [_row(row) for row in card.rows],
        "environment": card.hardware,
        "sfumato": card.sfumato,
        "date": card.date,
    }


def _row(row: Row) -> dict[str, Any]:
    features = row.features.get(JUDGED_BY)
    kept = ("guidance_scale", "guidance", "scheduler", "timestep_spacing", "steps", "seeds")
    return {
        "count": row.count,
        "agreement": _plain(row.agreement),
        "frechet": None if features is None else _plain(features.frechet),
        "calls": row.calls,
        **{key: row.settings[key] for key in kept},
    }


def _plain(section: Any) -> dict[str, Any] | None:
    return None if section is None else section.model_dump(mode="json")


# The model card -----------------------------------------------------------------------------------


def model_card(
    name: str,
    index: dict[str, Any],
    evaluations: Sequence[dict[str, Any]],
    scheduler: dict[str, Any],
) -> str:
    """The README of a bundle: what it draws, how it was trained, what was measured, its limits."""
    provenance, training = index["pipeline"]["provenance"], index["training"]
    data = provenance["data"]
    caption, _ = next(iter(provenance["examples"].items()))
    lines = [
        f"# {name}: {data['resolution']}x{data['resolution']} images from captions",
        "",
        f'    sfumato sample bundled:{name} "{caption}"',
        "",
        f"A U-Net of {training['parameters']:,} parameters, conditioned on the text encoder that "
        "comes with sfumato.",
        "",
        "## Training",
        "",
        *_training_lines(index),
        "",
        "## Quality",
        "",
        *(_quality_lines(evaluations) or ["Not measured yet."]),
        "",
        "## Drawing",
        "",
        f"Unless asked otherwise: {scheduler['_class_name']}, "
        f"{index['pipeline']['num_inference_steps']} steps ({scheduler['timestep_spacing']}), "
        f"guidance {index['pipeline']['guidance']}, w = {index['pipeline']['guidance_scale']:g}.",
        "",
        "## What it is not",
        "",
        *_limits(provenance),
        "",
        "## Captions",
        "",
        *_captions("Trained on", data["caption"]),
        *_captions("Held out, never trained on", data["held_out"]),
    ]
    return "\n".join(lines) + "\n"


def _training_lines(index: dict[str, Any]) -> list[str]:
    provenance, training = index["pipeline"]["provenance"], index["training"]
    machine, libraries = training["environment"], training["libraries"]
    speed, seen = training["images_per_second"], provenance["images_seen"]
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    took = f", {speed:g} images/s, {seen / speed / 3600:.1f} hours" if speed else ""
    return [
        " ".join([f"- Data: {training['data']}.", training["note"]]).strip(),
        f"- Command: `{training['command']}`",
        f"- {seen:,} images seen, seed {provenance['seed']}; the running average of the weights.",
        f"- On {machine['accelerator'] or machine['machine'] + ' CPU'} "
        f"({machine['instruction_set']}, {threads}{took}); "
        f"torch {machine['torch']}, Python {machine['python']}.",
        f"- Rounded to float16 and written on {training['date']} by sfumato "
        f"{provenance['sfumato']}, diffusers {libraries['diffusers']}, "
        f"transformers {libraries['transformers']}.",
        f"- Text encoder: {provenance['text_encoder']}.",
        f"- Weights: sha256 `{provenance['weights_sha256']}`, rounded from "
        f"`{provenance['rounded_from_sha256']}`.",
    ]


def _quality_lines(evaluations: Sequence[dict[str, Any]]) -> list[str]:
    """One table over all evaluations; what they share is said below it."""
    if not evaluations:
        return []
    lines = [
        "Of the rounded weights. Agreement: the share of images in which a judge, a classifier "
        "trained on real images,",
        "sees the class that was asked for. Frechet: distance to real images on the judge's "
        "features; real: of as many real images.",
        "",
        "| captions | w | agreement | 95 % interval | Frechet | real | images | seeds | calls "
        "| sampler |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for one in evaluations:
        floor = one["floor"]
        real = "" if floor is None else f"{floor['mean']:.3g} ± {floor['std']:.2g}"
        for row in one["rows"]:
            cells = [
                "held out" if one["held_out"] else "trained on",
                f"{row['guidance_scale']:g}",
                *_agreement(row["agreement"]),
                "" if row["frechet"] is None else f"{row['frechet']['value']:.3g}",
                real,
                f"{row['count']:,}",
                f"{row['seeds'][0]}-{row['seeds'][1]}",
                str(row["calls"]),
                f"{row['scheduler']}, {row['steps']} steps, {row['guidance']}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    for one in evaluations:
        kind = "Held-out" if one["held_out"] else "Trained"
        lines.append(f"- {kind} captions: {'; '.join(f'`{text}`' for text in one['captions'])}.")
    described: dict[str, None] = {}
    for one in evaluations:
        judge, real = one["judge"], one["real_agreement"]
        described[f"- Real images: {one['reference']}."] = None
        if one["yardsticks"]:
            told = "; ".join(f"{y['title']} {y['frechet']:.3g}" for y in one["yardsticks"])
            described[f"- Yardsticks, the Frechet distance of altered real images: {told}."] = None
        if judge is not None and real is not None:
            described[
                f"- Judge: {judge['description']}; right on {100 * real['value']:.1f} % of these "
                "real images."
            ] = None
        described[f"- Measured by sfumato {one['sfumato']}, {one['date'][:10]}."] = None
    return [*lines, *described]


def _agreement(figure: dict[str, Any] | None) -> tuple[str, str]:
    if figure is None:
        return "", ""
    interval = f"{100 * figure['low']:.1f} - {100 * figure['high']:.1f} %"
    return f"{100 * figure['value']:.1f} %", interval


def _limits(provenance: dict[str, Any]) -> list[str]:
    data = provenance["data"]
    colours = "greyscale" if data["channels"] == 1 else "RGB"
    shown = "; ".join(list(provenance["examples"].values())[:16])
    return [
        f"- It draws {data['resolution']}x{data['resolution']} {colours} images like those of "
        f"{data['source']} ({shown}), and nothing else. Any other caption gives something of the "
        "same kind, whatever it says.",
        "- It is no proof of identity or authorship, and no source of training data whose labels "
        "may be trusted unseen: the agreement above says how often a caption is missed.",
        "- A judge learned from the same data set as the model, so agreement says little of what "
        "people would read.",
        "- It was trained on one machine with one seed; how figures vary from run to run was not "
        "measured.",
    ]


def _captions(title: str, templates: Sequence[str]) -> list[str]:
    return [f"- {title}: {'; '.join(f'`{text}`' for text in templates)}"] if templates else []
