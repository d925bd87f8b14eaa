"""The CLIP that comes with sfumato: small, trained by `sfumato train clip`, frozen.

The folder `clip/` beside this file holds it as open formats: the text tower and its tokenizer as
transformers reads them, the image tower and the projections as safetensors, and the model card.
"""

import copy
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sfumato.base.errors import DamagedDataError
from sfumato.base.files import read_json, write_json
from sfumato.config.sections import TowersConfig
from sfumato.text.towers import ClipTowers, ImageTower

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

TOWERS_FILE, IMAGE_FILE = "towers.json", "image_tower.safetensors"


def bundled_folder() -> Path:
    """Where the bundled CLIP lies."""
    return Path(str(files("sfumato.text") / "clip"))


def bundled_clip() -> tuple["CLIPTextModel", "CLIPTokenizer"]:
    """The bundled text tower and its tokenizer, float32 holding the shipped float16 values."""
    return load_text_tower(bundled_folder())


def load_text_tower(folder: Path) -> tuple["CLIPTextModel", "CLIPTokenizer"]:
    """A text tower and its tokenizer from a folder that `save_towers` wrote."""
    from transformers import CLIPTextModel, CLIPTokenizer

    model = CLIPTextModel.from_pretrained(folder, dtype=torch.float32)
    return model, CLIPTokenizer.from_pretrained(folder)


def save_towers(
    towers: ClipTowers, tokenizer: "CLIPTokenizer", config: TowersConfig, folder: Path
) -> None:
    """Write both towers into `folder`, rounded to float16; those in memory stay as they are."""
    from safetensors.torch import save_file

    copy.deepcopy(towers.text).half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    rest = {
        name: value.half().contiguous() if value.is_floating_point() else value
        for name, value in towers.state_dict().items()
        if not name.startswith("text.")
    }
    save_file(rest, folder / IMAGE_FILE)
    write_json(folder / TOWERS_FILE, config.model_dump(mode="json"))


def load_towers(folder: Path) -> tuple[ClipTowers, "CLIPTokenizer"]:
    """Both towers, frozen, and the tokenizer, from a folder that `save_towers` wrote."""
    from safetensors.torch import load_file

    config = TowersConfig.model_validate(read_json(folder / TOWERS_FILE))
    text, tokenizer = load_text_tower(folder)
    with torch.random.fork_rng(devices=[]):  # the constructors draw weights that are replaced
        image = ImageTower(config.image_widths, config.embedding)
        towers = ClipTowers(text, image, embedding=config.embedding)
    values = {
        name: value.float() if value.is_floating_point() else value
        for name, value in load_file(folder / IMAGE_FILE).items()
    }
    missing, unexpected = towers.load_state_dict(values, strict=False)
    if unexpected or any(not name.startswith("text.") for name in missing):
        raise DamagedDataError(f"{folder / IMAGE_FILE} does not belong to {folder / TOWERS_FILE}.")
    return towers.eval().requires_grad_(False), tokenizer


@lru_cache(maxsize=1)
def bundled_towers() -> tuple[ClipTowers, "CLIPTokenizer"]:
    """Both bundled towers and the tokenizer: what CLIP scores are measured with."""
    return load_towers(bundled_folder())
