"""CLIP, DINOv2 and image classifiers by Hub name or folder: the networks are transformers'."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from sfumato.base.errors import DamagedDataError, InputError
from sfumato.base.hub import LOOKUP_SECONDS, quiet_loading, reach
from sfumato.base.images import to_float, to_pil
from sfumato.base.randomness import derived_seed
from sfumato.evaluation.extractors.extractor import (
    BatchedExtractor,
    Device,
    WeightsNotAtHandError,
    frozen,
    texts_in_batches,
    weights_sha256,
)
from sfumato.evaluation.extractors.stages import transformer_stages

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Colour = tuple[float, float, float]
CLIP_MEAN: Colour = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Colour = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN: Colour = (0.485, 0.456, 0.406)
IMAGENET_STD: Colour = (0.229, 0.224, 0.225)
DINOV2_PX = 224
_ROWS = 32
_BODY_ROWS = 100
_FIRST = "embedder.embedder"
"""Where a ResNet of transformers has its first convolution."""
_WAYS_OUT = (
    "Three ways out: let it download once where there is a network; give a folder that holds it; "
    "or do without it: the other metrics do not need it."
)
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ClipExtractor(BatchedExtractor):
    """CLIP: its text half is read when captions are first given, from where the image half is."""

    location: str
    may_download: bool

    @torch.no_grad()
    def texts(self, captions: Sequence[str]) -> Tensor:
        """Captions -> (N, dim) float32 on the CPU: CLIP's projected text embeddings."""
        tokenizer, model = self._text_half

        def embed(part: list[str]) -> Tensor:
            tokens = tokenizer(part, padding=True, truncation=True, return_tensors="pt")
            return model(**tokens.to(self.device)).text_embeds

        return texts_in_batches(captions, embed, rows=_ROWS)

    @cached_property
    def _text_half(self) -> tuple[Any, Any]:
        from transformers import CLIPTextModelWithProjection, CLIPTokenizer

        config = _configuration(self.location, ("clip",), self.may_download)
        config.text_config.projection_dim = config.projection_dim
        model = _load(
            CLIPTextModelWithProjection, config.text_config, self.location, self.may_download
        )
        tokenizer = _read(
            self.location,
            self.may_download,
            lambda place, local: CLIPTokenizer.from_pretrained(place, local_files_only=local),
        )
        return tokenizer, model.to(self.device)


def load_clip(
    location: str, *, device: Device = "cpu", may_download: bool = False
) -> ClipExtractor:
    """CLIP's projected image embeddings (Radford et al. 2021), not divided by their length.

    `location`: a folder or a Hub name; a whole CLIP serves as well as its image half. Pixels are
    prepared as CLIP's own processor does. Errors: `WeightsNotAtHandError` (a Hub name
    that cannot be had), `DamagedDataError` (files without all weights), `InputError` (another
    kind of model).
    """
    from transformers import CLIPVisionModelWithProjection

    config = _configuration(location, ("clip", "clip_vision_model"), may_download)
    if config.model_type == "clip":
        # transformers takes the width of the projection from the image half's own configuration,
        # which need not hold the one of the whole.
        config.vision_config.projection_dim = config.projection_dim
        config = config.vision_config
    model = _load(CLIPVisionModelWithProjection, config, location, may_download).to(device)
    size_px: int = config.image_size

    def of_batch(images: Tensor) -> Tensor:
        pixels = normalized(short_side_to(images, size_px), CLIP_MEAN, CLIP_STD)
        return model(pixel_values=pixels.to(device)).image_embeds

    return ClipExtractor(
        name=f"clip {_shown(location)} image_embeds, sha256:{weights_sha256(model)[:16]}, "
        f"Pillow bicubic: short side to {size_px} px, centre cut out",
        dim=config.projection_dim,
        of_batch=of_batch,
        rows=_ROWS,
        device=device,
        stages=transformer_stages(model, size_px, CLIP_MEAN, CLIP_STD),
        location=location,
        may_download=may_download,
    )


def load_dinov2(
    location: str, *, device: Device = "cpu", may_download: bool = False
) -> BatchedExtractor:
    """DINOv2's class token after the last norm (Oquab et al. 2023), (B, hidden size).

    `location`: a folder or a Hub name; errors as for CLIP. The whole image is brought to 224 x 224,
    as those do who measure with it (Stein et al. 2023; Karras et al. 2024). Differs from the
    model's processor in transformers, which enlarges to 256 and cuts out 224: the border would
    never be measured.
    """
    from transformers import Dinov2Model

    config = _configuration(location, ("dinov2",), may_download)
    model = _load(Dinov2Model, config, location, may_download).to(device)

    def of_batch(images: Tensor) -> Tensor:
        pixels = normalized(squashed_to(images, DINOV2_PX), IMAGENET_MEAN, IMAGENET_STD)
        return model(pixel_values=pixels.to(device)).last_hidden_state[:, 0]

    return BatchedExtractor(
        name=f"dinov2 {_shown(location)} class token, sha256:{weights_sha256(model)[:16]}, "
        f"Pillow bicubic: squashed to {DINOV2_PX} px",
        dim=config.hidden_size,
        of_batch=of_batch,
        rows=_ROWS,
        device=device,
        stages=transformer_stages(model, DINOV2_PX, IMAGENET_MEAN, IMAGENET_STD),
    )


@dataclass(frozen=True, kw_only=True)
class PretrainedClassifier:
    """An image classifier in two halves: `head(extractor(images))` are its logits (N, K).

    `identity`: its name and the hash of its weights; `labels`: K names of classes.
    """

    extractor: BatchedExtractor
    head: nn.Linear
    labels: Sequence[str]
    identity: str


def load_image_classifier(
    location: str, *, device: Device = "cpu", may_download: bool = False
) -> PretrainedClassifier:
    """Any of transformers' image classifiers whose last layer is linear; safetensors only.

    `location`: a folder or a Hub name. Pixels are prepared by the model's own processor, in Pillow
    everywhere. Errors as for CLIP; `InputError` for a network that does not end in a linear layer
    on one vector an image.
    """
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    config = _configuration(location, None, may_download)
    model = _load(
        AutoModelForImageClassification, config, location, may_download, use_safetensors=True
    ).to(device)
    processor = _read(
        location,
        may_download,
        lambda place, local: AutoImageProcessor.from_pretrained(
            place, backend="pil", local_files_only=local
        ),
    )
    channels: int = getattr(config, "num_channels", 3)
    labels = [str(name) for _, name in sorted((config.id2label or {}).items())]
    head = _last_linear(model, len(labels), location)
    inputs: list[Tensor] = []
    head.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits."""
        pixels = processor(
            list(images.cpu().numpy()), input_data_format="channels_first", return_tensors="pt"
        )["pixel_values"]
        inputs.clear()
        logits = model(pixel_values=pixels.to(device)).logits
        return inputs.pop(), logits

    _check_halves(run, head, channels, device, location)
    sha256 = weights_sha256(model)[:16]
    pixels = hashlib.sha256(processor.to_json_string().encode()).hexdigest()[:8]
    identity = f"{_shown(location)} sha256:{sha256}"
    return PretrainedClassifier(
        extractor=BatchedExtractor(
            name=f"classifier {identity}, last features, pixels by its own processor "
            f"(settings sha256:{pixels})",
            dim=head.in_features,
            of_batch=lambda images: run(images)[0],
            rows=_ROWS,
            channels=channels,
            device=device,
        ),
        head=head,
        labels=labels,
        identity=identity,
    )


@dataclass(frozen=True, kw_only=True)
class ResNetBody:
    """ImageNet's ResNet in the middle, random weights at both ends: the paper's classifier of
    CIFAR-10 (section 3.3.6). `identity`: the body's name and the hash of its weights."""

    identity: str
    model: nn.Module
    channels: int
    """Of the first convolution."""
    width: int

    @torch.no_grad()
    def logits(self, images: Tensor, *, classes: int, seed: int) -> Tensor:
        """uint8 (N, 3, H, W) -> (N, classes) float32: a first convolution of 3x3 pixels at full
        size and a last layer, both drawn from `seed` as torch draws new layers, neither trained.

        The paper does not say how images were normalised: here by ImageNet's mean and deviation.
        """
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derived_seed(seed, "weights", "untrained ends"))
            first = nn.Conv2d(3, self.channels, 3, stride=1, padding=1, bias=False)
            head = nn.Linear(self.width, classes)
        self.model.get_submodule(_FIRST).convolution = first.requires_grad_(False)
        parts = []
        for part in images.split(_BODY_ROWS):
            pixels = normalized(part.expand(-1, 3, -1, -1), IMAGENET_MEAN, IMAGENET_STD)
            parts.append(head(self.model(pixels).pooler_output.flatten(1)))
        return torch.cat(parts)


def load_resnet_body(location: str, *, may_download: bool = False) -> ResNetBody:
    """A ResNet of transformers, trained on ImageNet, by a folder or a Hub name; on the CPU.

    Errors as for CLIP.
    """
    from transformers import ResNetModel

    config = _configuration(location, ("resnet",), may_download)
    model = _load(ResNetModel, config, location, may_download)
    return ResNetBody(
        identity=f"{_shown(location)} sha256:{weights_sha256(model)[:16]}",
        model=model,
        channels=config.embedding_size,
        width=config.hidden_sizes[-1],
    )


def _last_linear(model: nn.Module, labels: int, location: str) -> nn.Linear:
    layers = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == labels]
    if not layers:
        raise _not_linear(location)
    return layers[-1]


@torch.no_grad()
def _check_halves(
    run: Callable[[Tensor], tuple[Tensor, Tensor]],
    head: nn.Linear,
    channels: int,
    device: Device,
    location: str,
) -> None:
    """`InputError` unless the head makes the model's own logits of what goes into it."""
    image = torch.full((2, channels, 32, 32), 128, dtype=torch.uint8, device=device)
    image[:, :, :16] = 0
    try:
        features, logits = run(image)
    except (ValueError, RuntimeError, IndexError) as error:
        raise InputError(
            f"{location} cannot be used on {'greyscale' if channels == 1 else 'RGB'} images "
            f"({error}).",
            hint="Its preprocessor_config.json must belong to its config.json.",
        ) from error
    if features.ndim != 2 or not torch.allclose(head(features), logits, atol=1e-4):
        raise _not_linear(location)


def _not_linear(location: str) -> InputError:
    return InputError(
        f"{location} does not end in one linear layer on one vector an image.",
        hint="Features are taken from before that layer: choose a classifier that has one.",
    )


def short_side_to(images: Tensor, size_px: int) -> Tensor:
    """uint8 (B, 3, H, W) -> (B, 3, size, size): Pillow's bicubic filter, then the centre."""
    height, width = images.shape[-2:]
    short = min(height, width)
    # Rounded down, as CLIP's processor does.
    high, wide = int(size_px * height / short), int(size_px * width / short)
    top, left = (high - size_px) // 2, (wide - size_px) // 2
    resized = _pillow_bicubic(images, high, wide)
    return resized[..., top : top + size_px, left : left + size_px]


def squashed_to(images: Tensor, size_px: int) -> Tensor:
    """uint8 (B, 3, H, W) -> (B, 3, size, size): Pillow's bicubic filter, shape not kept."""
    return _pillow_bicubic(images, size_px, size_px)


def _pillow_bicubic(images: Tensor, height: int, width: int) -> Tensor:
    """On the CPU wherever the images are, so that all devices see the same pixels."""
    from PIL import Image

    arrays = [
        np.asarray(to_pil(image).resize((width, height), Image.Resampling.BICUBIC))
        for image in images
    ]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


def normalized(images: Tensor, mean: Colour, std: Colour) -> Tensor:
    """uint8 (B, 3, H, W) -> float32, (image / 255 - mean) / std for each colour."""
    values = to_float(images, (0.0, 1.0))
    shape = (1, 3, 1, 1)
    return (values - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)


def _configuration(
    location: str, model_types: tuple[str, ...] | None, may_download: bool
) -> "PreTrainedConfig":
    from transformers import AutoConfig

    folder = Path(location).expanduser()
    if not folder.is_dir() and location.startswith(("/", ".", "~")):
        raise InputError(f"There is no folder {location}.", hint=_WAYS_OUT)
    config = _read(
        location,
        may_download,
        lambda place, local: AutoConfig.from_pretrained(place, local_files_only=local),
    )
    if model_types is not None and config.model_type not in model_types:
        raise InputError(
            f"{location} holds a model of the type '{config.model_type}', not '{model_types[0]}'.",
            hint="Name a folder or a Hub repository with a model of that type.",
        )
    return config


def _load(
    model_class: Any,
    config: "PreTrainedConfig",
    location: str,
    may_download: bool,
    **options: Any,
) -> Any:
    """The model, frozen, float32; `DamagedDataError` where the files lack some of its weights."""
    model, about = _read(
        location,
        may_download,
        lambda place, local: model_class.from_pretrained(
            place,
            config=config,
            dtype=torch.float32,
            local_files_only=local,
            output_loading_info=True,
            **options,
        ),
    )
    if about["missing_keys"]:  # transformers would fill them with random numbers
        lacking = sorted(about["missing_keys"])
        some = ", ".join(lacking[:3]) + (", ..." if len(lacking) > 3 else "")
        raise DamagedDataError(
            f"{location} lacks {len(lacking)} of the model's weights ({some}).",
            hint="Its files are not those of its config.json. " + _WAYS_OUT,
        )
    return frozen(model, "cpu")


def _read(location: str, may_download: bool, read: Callable[[str, bool], T]) -> T:
    """`read(place, local_files_only)`, from this machine where it can be: with everything there,
    nothing is asked of the Hub, and a card does not change with the repository."""
    from safetensors import SafetensorError

    folder = Path(location).expanduser()
    is_folder = folder.is_dir()
    place = str(folder) if is_folder else location
    try:
        with quiet_loading(), torch.random.fork_rng(devices=[]):  # the constructors draw weights
            try:
                return read(place, True)
            except OSError:
                if is_folder or not may_download:
                    raise
            _look_up(location)
            return read(place, False)
    except (OSError, ValueError, RuntimeError, UnpicklingError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        if is_folder:
            raise DamagedDataError(
                f"No model could be read from the folder {location} ({reason}).", hint=_WAYS_OUT
            ) from error
        raise WeightsNotAtHandError(
            f"The weights of '{location}' are not at hand ({reason}).", hint=_WAYS_OUT
        ) from error


def _look_up(name: str) -> None:
    """Ask the Hub whether it has `name`, once: the libraries would try for half a minute."""
    from huggingface_hub import HfApi

    try:
        reach(
            lambda: HfApi().model_info(name, timeout=LOOKUP_SECONDS),
            name=name,
            kind="model",
            ways=_WAYS_OUT,
        )
    except InputError as error:
        raise WeightsNotAtHandError(error.what, hint=error.hint) from error


def _shown(location: str) -> str:
    """A Hub name as it is; of a folder its last part, which says nothing about the machine."""
    folder = Path(location).expanduser()
    return folder.resolve().name if folder.is_dir() else location
