"""The CLIP that comes with sfumato: small, trained by `sfumato train clip`, frozen.

The folder `clip/` beside this file holds it as open formats: the text tower and its tokenizer as
transformers reads them, the image tower and the projections as safetensors, and the model card.
"""

from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from sfumato.base.files import read_json, write_json
from sfumato.text.encoder import words_of

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer, PreTrainedModel

M = TypeVar("M", bound="PreTrainedModel")
WORDS_FILE = "words.json"
"""Beside a text encoder that was trained on few captions: all words that it was trained on."""


BUNDLED_FOLDER = Path(str(files("sfumato.text") / "clip"))
"""Where the bundled CLIP lies."""


def load_text_tower(folder: Path = BUNDLED_FOLDER) -> tuple["CLIPTextModel", "CLIPTokenizer"]:
    """A text tower and its tokenizer from a folder that `save_towers` wrote, the bundled one
    without it: float32 holding the float16 values."""
    from transformers import CLIPTextModel, CLIPTokenizer

    model = CLIPTextModel.from_pretrained(folder, dtype=torch.float32)
    return with_known_words(model, folder), CLIPTokenizer.from_pretrained(folder)


def write_known_words(folder: Path, captions: Iterable[str], *, subject: str) -> None:
    """Record beside a text encoder which words it was trained on, and what it knows in a phrase."""
    words = sorted({word for caption in captions for word in words_of(caption)})
    write_json(folder / WORDS_FILE, {"subject": subject, "words": words})


def with_known_words(model: M, folder: Path) -> M:
    """The model of a folder with the words that were recorded there, in its configuration: so they
    go with it into exported pipelines. Without a record nothing is known, as of an encoder that was
    trained on the web."""
    if (folder / WORDS_FILE).is_file():
        known = read_json(folder / WORDS_FILE)
        model.config.known_words = known["words"]
        model.config.known_subject = known["subject"]
    return model
