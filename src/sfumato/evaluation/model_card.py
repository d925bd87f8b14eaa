"""The README of a bundle: its model card."""

from collections.abc import Sequence
from typing import Any

from sfumato.base.words import counted


def model_card(
    name: str,
    index: dict[str, Any],
    evaluations: Sequence[dict[str, Any]],
) -> str:
    """The README of a bundle: what it makes, how it was trained, what was measured, its limits."""
    provenance, training = index["model"]["provenance"], index["training"]
    data = provenance["data"]
    caption = next(iter(provenance["examples"]))
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
        "## Sampling",
        "",
        _sampling_line(index["model"]["sampling"]),
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
    return "\n".join([*lines, ""])


def _sampling_line(sampling: dict[str, Any]) -> str:
    return (
        f"By default: {sampling['sampler']}, {counted(sampling['steps'], 'step')} "
        f"({sampling['timestep_spacing']}), guidance {sampling['guidance']}, "
        f"w = {sampling['guidance_scale']:g}."
    )


def _training_lines(index: dict[str, Any]) -> list[str]:
    provenance, training = index["model"]["provenance"], index["training"]
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
        "Of the rounded weights. Class accuracy: the share of images in which a classifier trained "
        "on real images",
        "sees the class of the caption. Frechet: distance to real images on the classifier's "
        "features; real: of as many real images.",
        "",
        "| captions | w | class accuracy | 95 % interval | Frechet | real | images | seeds | NFE "
        "| sampler |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for one in evaluations:
        baseline = one["baseline"]
        real = "" if baseline is None else f"{baseline['mean']:.3g} ± {baseline['std']:.2g}"
        for row in one["rows"]:
            cells = [
                "held out" if one["held_out"] else "trained on",
                f"{row['guidance_scale']:g}",
                *_accuracy(row["class_accuracy"]),
                "" if row["frechet"] is None else f"{row['frechet']['value']:.3g}",
                real,
                f"{row['count']:,}",
                f"{row['seeds'][0]}-{row['seeds'][1]}",
                str(row["nfe"]),
                f"{row['sampler']}, {counted(row['steps'], 'step')}, {row['guidance']}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    for one in evaluations:
        kind = "Held-out" if one["held_out"] else "Trained"
        lines.append(f"- {kind} captions: {'; '.join(f'`{text}`' for text in one['captions'])}.")
    return [*lines, *_conditions(evaluations)]


def _conditions(evaluations: Sequence[dict[str, Any]]) -> dict[str, None]:
    """What evaluations share, each line once."""
    described: dict[str, None] = {}
    for one in evaluations:
        classifier, real = one["classifier"], one["real_accuracy"]
        described[f"- Real images: {one['reference']}."] = None
        if one["perturbations"]:
            values = "; ".join(f"{p['title']} {p['frechet']:.3g}" for p in one["perturbations"])
            described[f"- Frechet distance of slightly changed real images: {values}."] = None
        if classifier is not None and real is not None:
            described[
                f"- Classifier: {classifier['description']}; right on {100 * real['value']:.1f} % "
                "of these real images."
            ] = None
        described[f"- Measured by sfumato {one['sfumato']}, {one['date'][:10]}."] = None
    return described


def _accuracy(found: dict[str, Any] | None) -> tuple[str, str]:
    if found is None:
        return "", ""
    interval = f"{100 * found['low']:.1f} - {100 * found['high']:.1f} %"
    return f"{100 * found['value']:.1f} %", interval


def _limits(provenance: dict[str, Any]) -> list[str]:
    data = provenance["data"]
    colours = "greyscale" if data["channels"] == 1 else "RGB"
    shown = "; ".join(list(provenance["examples"].values())[:16])
    return [
        f"- It makes {data['resolution']}x{data['resolution']} {colours} images like those of "
        f"{data['source']} ({shown}), and nothing else. Any other caption gives something of the "
        "same kind, whatever it says.",
        "- It is no proof of identity or authorship, and no source of training data whose labels "
        "may be trusted unseen: the class accuracy above says how often a caption is missed.",
        "- The classifier learned from the same data set as the model, so class accuracy says "
        "little of what people would read.",
        "- It was trained on one machine with one seed; how metrics vary from run to run was not "
        "measured.",
    ]


def _captions(title: str, templates: Sequence[str]) -> list[str]:
    return [f"- {title}: {'; '.join(f'`{text}`' for text in templates)}"] if templates else []
