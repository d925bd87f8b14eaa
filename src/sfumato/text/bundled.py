"""The CLIP that comes with sfumato: small, trained by `sfumato train clip`, frozen.

The folder `clip/` beside this file holds it as open formats: the text tower and its tokenizer as
transformers reads them, the image tower and the projections as safetensors, and the model card.
"""

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer


BUNDLED_FOLDER = Path(str(files("sfumato.text") / "clip"))
"""Where the bundled CLIP lies."""


def load_text_tower(folder: Path = BUNDLED_FOLDER) -> tuple["CLIPTextModel", "CLIPTokenizer"]:
    """A text tower and its tokenizer from a folder that `save_towers` wrote, the bundled one
    without it: float32 holding the float16 values."""
    from transformers import CLIPTextModel, CLIPTokenizer

    model = CLIPTextModel.from_pretrained(folder, dtype=torch.float32)
    return model, CLIPTokenizer.from_pretrained(folder)
