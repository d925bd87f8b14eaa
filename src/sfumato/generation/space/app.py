"""A page that makes pictures from captions with the model in `model/`.

    pip install -r requirements.txt
    python app.py

`sfumato export --space` wrote this folder. `settings.json` has what the page offers; change it as
you like. Everything is read from this folder, and nothing is asked of other machines.

SPDX-License-Identifier: Apache-2.0
"""

import json
import os
import secrets
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import gradio as gr  # reads the environment
import torch
from diffusers import DiffusionPipeline

HERE = Path(__file__).resolve().parent
SETTINGS = json.loads((HERE / "settings.json").read_text("utf-8"))
MOST_CHARACTERS = 500
"""Of a prompt; a text encoder reads fewer."""
MOST_WAITING = 16
LARGEST_SEED = 2**32 - 1
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
STYLE = "#pictures .grid-wrap { max-height: none; }"
if SETTINGS["image_px"] <= 64:  # shown larger than they are, without a blur
    STYLE += " #pictures img { image-rendering: pixelated; }"


def open_pipeline() -> Any:
    folder = str(HERE / "model")
    code = {"custom_pipeline": folder, "trust_remote_code": True}  # its pipeline.py, of sfumato
    pipeline = DiffusionPipeline.from_pretrained(
        folder, local_files_only=True, low_cpu_mem_usage=False, **code
    )
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")


def make(
    prompt: str,
    negative_prompt: str | None,
    seed: int,
    count: int,
    guidance: float | None,
    steps: int | None,
    progress: gr.Progress = gr.Progress(),  # noqa: B008, how Gradio is asked for one
) -> list[tuple[Any, str]]:
    """Pictures, each with its seed. None is what the model does not take."""
    if seed is None:
        raise gr.Error("Give a seed.")
    if max(len(prompt), len(negative_prompt or "")) > MOST_CHARACTERS:
        raise gr.Error(f"A prompt may have {MOST_CHARACTERS} characters.")
    seeds = [seed + number for number in range(count)]

    def on_step(pipeline: Any, index: int, *_: Any) -> dict[str, Any]:
        progress((index + 1, pipeline.num_timesteps), unit="steps")
        return {}

    how = {"negative_prompt": negative_prompt, "guidance_scale": guidance}
    how |= {"num_inference_steps": steps, "num_images_per_prompt": count, "seeds": seeds}
    how |= {"callback_on_step_end": on_step, "callback_on_step_end_tensor_inputs": []}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        images = PIPELINE(prompt, **how).images
    for warning in caught:  # a prompt that was cut, words that the text encoder does not know
        gr.Warning(str(warning.message))
    return [(image, f"seed {one}") for image, one in zip(images, seeds, strict=True)]


def random_seed() -> int:
    return secrets.randbelow(LARGEST_SEED + 1)


def slider(name: str, label: str, step: float) -> gr.Slider | gr.State:
    """One of the settings; without a slider where the model leaves no choice."""
    known = SETTINGS[name]
    if known is None:
        return gr.State(None)
    how = {"step": step, "precision": 0 if step == 1 else None}
    return gr.Slider(known["low"], known["high"], known["value"], label=label, **how)


def page() -> gr.Blocks:
    examples, takes = SETTINGS["examples"], SETTINGS["negative_prompt"]
    with gr.Blocks(title=SETTINGS["title"], analytics_enabled=False) as blocks:
        gr.Markdown(f"# {SETTINGS['title']}\n\n{SETTINGS['about']}")
        with gr.Row():
            with gr.Column(scale=2):
                text = {"lines": 2, "max_length": MOST_CHARACTERS}
                prompt = gr.Textbox(next(iter(examples), ""), label="Prompt", **text)
                negative = gr.Textbox(label="Negative prompt", **text) if takes else gr.State(None)
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=LARGEST_SEED)
                count = slider("count", "Pictures, with seeds that count up", 1)
                guidance = slider("guidance", "Guidance scale", 0.05)
                steps = slider("steps", "Steps", 1)
                with gr.Row():
                    other = gr.Button("Random seed")
                    go = gr.Button("Make pictures", variant="primary")
            with gr.Column(scale=3):
                pictures = gr.Gallery(format="png", show_label=False, elem_id="pictures")
        if examples:
            gr.Examples([[one] for one in examples], [prompt], label="Captions it knows")
        other.click(random_seed, None, seed, api_visibility="private")
        asked = [prompt, negative, seed, count, guidance, steps]
        gr.on([go.click, prompt.submit], make, asked, pictures, api_name="make")
    return blocks.queue(max_size=MOST_WAITING, default_concurrency_limit=1)


if __name__ == "__main__":
    PIPELINE = open_pipeline()
    page().launch(theme=THEME, css=STYLE, show_error=True)
