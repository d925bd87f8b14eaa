"""A bundle: a trained pipeline without its text encoder, which comes with sfumato.

    bundle.json                         how it draws, where it comes from, how it was trained
    unet/config.json, model.safetensors the averaged weights, rounded to float16
    figures.json, README.md             what was measured; the model card
    sha256.json                         of each of these, and of the text encoder's files

`sfumato.evaluation.bundling` writes it. A file that differs from what was written is refused.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.base.errors import DamagedDataError, SfumatoError
from sfumato.base.files import read_json, sha256_of_file, write_json
from sfumato.diffusion.process import process_from_dict
from sfumato.diffusion.solvers.registry import Sampling
from sfumato.generation.bundle_names import HASHES, INDEX, is_in_package, model_folder
from sfumato.generation.model import Model
from sfumato.models.codec import codec_from_dict
from sfumato.text.bundled import BUNDLED_FOLDER, load_text_tower
from sfumato.text.encoder import TextEncoder

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


UNET_CONFIG, UNET_WEIGHTS = "unet/config.json", "unet/model.safetensors"
FIGURES, CARD = "figures.json", "README.md"
NEEDED = (INDEX, UNET_CONFIG, UNET_WEIGHTS)
TEXT_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
"""The files of the bundled CLIP that an encoding depends on."""
REINSTALL = "Reinstall sfumato: pip install --force-reinstall --no-deps sfumato"


def open_bundle(model: str | Path) -> Model:
    """The model of a bundle, by its name or folder, with the text encoder that comes with
    sfumato, in float32.

    `DamagedDataError` that names the file which is missing or not the one that was written.
    """
    content = verified(model_folder(model))
    values = json.loads(content[INDEX])["model"]
    text_encoder, tokenizer = load_text_tower()
    return Model(
        network=_unet(json.loads(content[UNET_CONFIG]), content[UNET_WEIGHTS]),
        process=process_from_dict(values["process"]),
        codec=codec_from_dict(values["codec"]),
        text_encoder=TextEncoder(
            text_encoder, tokenizer, name="bundled", max_tokens=values["max_tokens"]
        ),
        sampling=Sampling(**values["sampling"]),
        provenance=values["provenance"],
    )


def model_values(model: Model) -> dict[str, Any]:
    """What `open_bundle` needs to know of a model beside its network, as JSON."""
    return {
        "process": model.process.to_dict(),
        "codec": model.codec.to_dict(),
        "max_tokens": model.text_encoder.max_tokens,
        "sampling": asdict(model.sampling),
        "provenance": dict(model.provenance),
    }


def verified(folder: Path) -> dict[str, bytes]:
    """The content of every file of a bundle by its name; each is read once, and is what was hashed.

    The bundled text encoder's files are compared as well. `DamagedDataError` as for `open_bundle`.
    """
    own, text = recorded_hashes(folder)
    content = {}
    for name, sha256 in own.items():
        file = folder / name
        if not file.is_file():
            raise _damaged(f"{file} is missing.", folder)
        content[name] = file.read_bytes()
        if hashlib.sha256(content[name]).hexdigest() != sha256:
            raise _damaged(f"{file} is damaged: its sha256 is not the recorded one.", folder)
    for name, sha256 in text.items():
        file = BUNDLED_FOLDER / name
        if not file.is_file() or sha256_of_file(file) != sha256:
            raise DamagedDataError(
                f"{file} is not the text encoder that {folder.name} was trained with: its sha256 "
                "is not the recorded one.",
                hint=f"{REINSTALL} (a bundle of an older sfumato may need that version).",
            )
    return content


def write_hashes(folder: Path) -> None:
    """Record the sha256 of every file in `folder`, and of the bundled text encoder's files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != HASHES)
    own = {path.relative_to(folder).as_posix(): sha256_of_file(path) for path in files}
    text = {name: sha256_of_file(BUNDLED_FOLDER / name) for name in TEXT_FILES}
    write_json(folder / HASHES, {"files": own, "text_encoder": text})


def recorded_hashes(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    file = folder / HASHES
    try:
        values = read_json(file)
        own, text = dict(values["files"]), dict(values["text_encoder"])
    except (SfumatoError, KeyError, TypeError, ValueError) as error:
        raise _damaged(f"{file} is damaged: it is not a list of sha256 hashes.", folder) from error
    missing = [n for n in NEEDED if n not in own] + [n for n in TEXT_FILES if n not in text]
    if missing:
        raise _damaged(f"{file} is damaged: it does not list {missing[0]}.", folder)
    return own, text


def _damaged(what: str, folder: Path) -> DamagedDataError:
    hint = f"{REINSTALL}." if is_in_package(folder) else "Write it again with `sfumato bundle`."
    return DamagedDataError(what, hint=hint)


def _unet(config: dict[str, Any], weights: bytes) -> "UNet2DConditionModel":
    """The network in float32, without drawing weights that would be replaced."""
    import torch
    from diffusers import UNet2DConditionModel
    from safetensors.torch import load

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    assert isinstance(unet, UNet2DConditionModel)
    unet.load_state_dict({name: v.float() for name, v in load(weights).items()}, assign=True)
    return unet.eval().requires_grad_(False)
