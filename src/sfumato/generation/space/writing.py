"""The folder of a page of Gradio.

    app.py, requirements.txt   the same for every model
    settings.json              what the page offers
    README.md                  with the front matter that Hugging Face Spaces reads
    model/                     what `sfumato export` writes

It runs without sfumato, and its requirements are not ours: Gradio needs pillow < 13.
"""

from collections.abc import Mapping
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from sfumato import __version__
from sfumato.base.files import whole_folder, write_bytes, write_json, write_text
from sfumato.base.words import counted
from sfumato.data.opening import folder_name
from sfumato.diffusion.solvers.registry import Sampling
from sfumato.generation.export import export_model
from sfumato.generation.model import Model
from sfumato.generation.subjects import known_examples

APP, REQUIREMENTS, SETTINGS, CARD, MODEL = (
    "app.py",
    "requirements.txt",
    "settings.json",
    "README.md",
    "model",
)
GRADIO, PYTHON = "6.31.0", "3.11"
"""What the page is tested with (constraints-space.txt), and what a Space is asked for."""
MOST_PICTURES, MOST_STEPS, MOST_GUIDANCE = 8, 100, 10.0
"""Where sliders end, unless the model's own setting lies beyond."""


def export_space(model: Model, folder: Path) -> None:
    """Write `folder` whole or not at all; one already there is replaced."""
    settings = page_settings(model)  # reads the data set, where the examples come from
    model = replace(model, provenance=published(model.provenance))
    with whole_folder(folder) as temporary:
        export_model(model, temporary / MODEL)
        for name in (APP, REQUIREMENTS):
            content = (files("sfumato.generation.space") / name).read_bytes()
            write_bytes(temporary / name, content)
        write_json(temporary / SETTINGS, settings)
        write_text(temporary / CARD, space_card(model, settings))


def published(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The provenance for others to read: of folders of this machine the names, without the paths to
    them."""
    found = dict(provenance)
    if (data := found.get("data")) is not None:
        also = [folder_name(source) for source in data["also_train"]]
        found["data"] = {**data, "source": folder_name(data["source"]), "also_train": also}
    if (origin := found.get("origin")) is not None:
        found["origin"] = folder_name(origin)
    return found


def page_settings(model: Model) -> dict[str, Any]:
    """`settings.json`: what the page offers; None for what the model leaves no choice of."""
    _, height, width = model.image_shape
    sampling = model.sampling
    most_steps = getattr(model.process, "num_train_timesteps", MOST_STEPS)
    most_steps = max(min(MOST_STEPS, most_steps), sampling.steps)
    takes_negative = not (sampling.form.folded or sampling.form.needs_weak_network)
    return {
        "title": _title(model.provenance),
        "about": f"Makes pictures of {width} x {height} pixels from captions, in "
        f"{counted(model.nfe(), 'network evaluation')} each.",
        "image_px": max(height, width),
        "examples": known_examples(model),
        "negative_prompt": takes_negative,
        "guidance": _guidance(sampling),
        "steps": None
        if sampling.form.folded
        else {"value": sampling.steps, "low": 1, "high": most_steps},
        "count": {"value": 4, "low": 1, "high": MOST_PICTURES},
    }


def _title(provenance: Mapping[str, Any]) -> str:
    """The experiment, after the model that it began with: a student's own name says little."""
    names = [folder_name(provenance.get("origin", "")), provenance.get("experiment")]
    return ", ".join(str(name) for name in names if name) or "sfumato"


def _guidance(sampling: Sampling) -> dict[str, float] | None:
    """The scales that the model can be sampled at."""
    scale = sampling.guidance_scale
    low, high = 0.0, max(MOST_GUIDANCE, scale)
    if sampling.form.folded:
        known = dict(sampling.form.parameters)
        low, high = known["low"], known["high"]
    return None if low == high else {"value": scale, "low": low, "high": high}


def space_card(model: Model, settings: dict[str, Any]) -> str:
    """`README.md`: the front matter of a Space, how to start the page, where the model is from."""
    _, height, width = model.image_shape
    front = {
        "title": settings["title"],
        "sdk": "gradio",
        "sdk_version": GRADIO,
        "python_version": PYTHON,
        "app_file": APP,
        "license": "apache-2.0",
        "short_description": f"Pictures of {width} x {height} pixels from captions",
        "tags": ["text-to-image"],
    }
    matter = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    return f"---\n{matter}---\n\n# {settings['title']}\n{_BODY}{_facts(model)}"


_BODY = f"""
A page of Gradio that makes pictures from captions with the model in `{MODEL}`.
sfumato {__version__} wrote it, and it runs without sfumato.

## On your machine

    python -m venv ../page-env
    ../page-env/bin/pip install -r {REQUIREMENTS}
    ../page-env/bin/python {APP}

It listens on this machine alone, at the address that it prints, and asks nothing of other machines.
`{SETTINGS}` has what it offers: title, examples, the ends of the sliders.

## On Hugging Face

Create a Space with the SDK Gradio, then, in this folder:

    hf upload YOU/SPACE . --repo-type space

The lines at the top of this file are what the Space reads. Before you publish, look at
`{SETTINGS}`, which has captions of the data, and at `{MODEL}/model_index.json`, which names
the data. The licence at the top is that of the code, `{APP}` and `{MODEL}/pipeline.py`; which
one the weights have is yours to say.

## The model
"""


def _facts(model: Model) -> str:
    known, sampling = model.provenance, model.sampling
    facts = {
        "Experiment": known.get("experiment", ""),
        "Begun with": known.get("origin", ""),
        "Trained on": "" if model.data is None else folder_name(model.data.source),
        "Sees": _seen(model),
        "Images seen in training": f"{known['images_seen']:,}" if "images_seen" in known else "",
        "Seed": str(known.get("seed", "")),
        "Text encoder": known.get("text_encoder", ""),
        "Weights": known.get("weights_sha256", ""),
        "Sampling": f"{sampling.sampler}, {counted(sampling.steps, 'step')}, guidance "
        f"{sampling.guidance}, w = {sampling.guidance_scale:g}",
    }
    lines = [f"- {name}: {value}" for name, value in facts.items() if value]
    return "\n".join(["", *lines, ""])


def _seen(model: Model) -> str:
    """What the network sees of an image, where that is not its pixels."""
    if model.codec.factor == 1:
        return ""
    numbers = " x ".join(map(str, model.shape))
    return f"{numbers} numbers of the codec '{model.codec.to_dict()['codec']}', not pixels"
