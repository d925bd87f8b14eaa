"""The two towers of a small CLIP (Radford et al. 2021) for 32-pixel images, and its loss."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.base.errors import DamagedDataError
from sfumato.base.files import read_json, write_json
from sfumato.base.images import to_float
from sfumato.base.randomness import derived_seed
from sfumato.config.sections import TowersConfig
from sfumato.text.bundled import load_text_tower

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

IMAGE_PX = 32
"""Height and width that the image tower takes."""
TOWERS_FILE, IMAGE_FILE = "towers.json", "image_tower.safetensors"
_NOT_SET_AGAINST = -1e4
"""A logit without a share in the softmax; minus infinity times a target of zero would be NaN."""
MAX_LOGIT_SCALE = 100.0
"""As in CLIP: a larger scale makes training unstable."""


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al. 2015); `stride` halves the resolution."""

    def __init__(self, channels_in: int, channels_out: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.shortcut = (
            nn.Identity()
            if stride == 1 and channels_in == channels_out
            else nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class ImageTower(nn.Module):
    """(B, 3, 32, 32) float in [-1, 1] -> (B, embedding): a ResNet of three blocks."""

    def __init__(self, widths: tuple[int, int, int, int], embedding: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        self.blocks = nn.Sequential(
            *(
                ResidualBlock(widths[level], widths[level + 1], stride=2)
                for level in range(len(widths) - 1)
            )
        )
        self.project = nn.Linear(widths[-1], embedding, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        # Convolutions on a CPU are faster with the channels last. The weights stay as they are:
        # torch restores an optimizer's state without its memory format, and the fused AdamW then
        # pairs the wrong numbers.
        images = images.contiguous(memory_format=torch.channels_last)
        return self.project(self.blocks(self.stem(images)).mean((2, 3)))

    def stages(self, images: Tensor) -> list[Tensor]:
        """Features (B, channels, H, W) of every block, of images of any size."""
        if images.shape[-2:] != (IMAGE_PX, IMAGE_PX):
            images = F.interpolate(images, (IMAGE_PX, IMAGE_PX), mode="bilinear", antialias=True)
        x, found = self.stem(images), []
        for block in self.blocks:
            x = block(x)
            found.append(x)
        return found


class ClipTowers(nn.Module):
    """Text and image tower with their projections and the logarithm of the logit scale."""

    def __init__(self, text: "CLIPTextModel", image: ImageTower, *, embedding: int) -> None:
        super().__init__()
        self.text = text
        self.image = image
        self.text_project = nn.Linear(text.config.hidden_size, embedding, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(0.07).reciprocal().log())

    @property
    def scale(self) -> Tensor:
        """Factor of the cosine similarities, at most 100."""
        return self.log_scale.exp().clamp(max=MAX_LOGIT_SCALE)

    def embed_text(self, ids: Tensor) -> Tensor:
        """Token ids (B, L) -> unit vectors (B, embedding), from the state at the end token."""
        return F.normalize(self.text_project(self.text(input_ids=ids).pooler_output), dim=1)

    def embed_images(self, images: Tensor) -> Tensor:
        """(B, 3, 32, 32) float in [-1, 1] -> unit vectors (B, embedding)."""
        return F.normalize(self.image(images), dim=1)

    @torch.no_grad()
    def embed_uint8(self, images: Tensor, *, rows: int = 256) -> Tensor:
        """uint8 (N, C, H, W), C = 1 or 3, of any size -> unit vectors (N, embedding)."""
        parts = []
        for part in images.split(rows):
            values = to_float(part, (-1.0, 1.0)).expand(-1, 3, -1, -1)
            if values.shape[-2:] != (IMAGE_PX, IMAGE_PX):
                values = F.interpolate(
                    values, (IMAGE_PX, IMAGE_PX), mode="bilinear", antialias=True
                )
            parts.append(self.embed_images(values.to(self.log_scale.device)))
        return torch.cat(parts)

    @torch.no_grad()
    def classify(self, image_embeddings: Tensor, caption_ids: Tensor) -> Tensor:
        """Zero-shot classes (N,) of unit vectors (N, D): the caption with the largest cosine.

        `caption_ids`: (K, L), one caption a class.
        """
        return (image_embeddings @ self.embed_text(caption_ids).T).argmax(1)


def tokenize(tokenizer: "CLIPTokenizer", captions: Sequence[str], *, positions: int) -> Tensor:
    """Token ids (N, L) of `captions`, padded to the longest, at most `positions`."""
    return tokenizer(
        list(captions),
        padding="longest",
        truncation=True,
        max_length=positions,
        return_tensors="pt",
    ).input_ids


def build_towers(config: TowersConfig, tokenizer: "CLIPTokenizer", *, seed: int) -> ClipTowers:
    """Untrained towers with weights drawn from `seed`; the global generators are left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derived_seed(seed, "weights", "clip"))
        return ClipTowers(
            build_text_tower(config, tokenizer),
            ImageTower(config.image_widths, config.embedding),
            embedding=config.embedding,
        )


def build_text_tower(config: TowersConfig, tokenizer: "CLIPTokenizer") -> "CLIPTextModel":
    """transformers' CLIP text model for the tokenizer's vocabulary."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.text_width,
            intermediate_size=config.text_mlp,
            num_hidden_layers=config.text_layers,
            num_attention_heads=config.text_heads,
            max_position_embeddings=config.positions,
            projection_dim=config.embedding,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,  # where the pooled state is read
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def contrastive_loss(
    images: Tensor,
    texts: Tensor,
    image_labels: Tensor,
    text_labels: Tensor,
    scale: Tensor,
    *,
    apart: Tensor | None = None,
) -> Tensor:
    """CLIP's symmetric cross-entropy where every image and text of one class is a pair: 0-d.

    `images` (B, D) and `texts` (M, D) are unit vectors, `*_labels` (B,) and (M,) their classes.
    With few classes, plain InfoNCE would push apart captions and images that belong together, so
    the targets are shared out over all positives (Khosla et al. 2020, Eq. 2). Every image needs a
    text of its class; texts without an image in the batch only serve as negatives. `apart` (K, K)
    bool: classes that exclude each other; others are not set against each other. Without it all do.
    """
    logits = scale * images @ texts.T
    if apart is not None:
        logits = logits.masked_fill(~apart[image_labels][:, text_labels], _NOT_SET_AGAINST)
    positive = (image_labels[:, None] == text_labels[None]).to(logits)
    of_images = F.cross_entropy(logits, positive / positive.sum(1, keepdim=True))
    shown = positive.sum(0) > 0
    targets = positive.T[shown]
    of_texts = F.cross_entropy(logits.T[shown], targets / targets.sum(1, keepdim=True))
    return (of_images + of_texts) / 2


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
