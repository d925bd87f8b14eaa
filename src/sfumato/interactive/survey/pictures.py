"""The pictures of a survey: of models, folders and real images, all of one size and kind."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.base.errors import InputError
from sfumato.generation.bundle_names import is_model, model_folder, path_and_scale

if TYPE_CHECKING:
    from torch import Tensor

    from sfumato.evaluation.image_set import ImageSet, OnImages

SHOWN_PX = 512
"""Larger pictures are brought to it: pages are opened on phones."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One that is compared: a model, a folder or the real images.

    `images`: uint8 (N, C, H, W), `prompts` and `labels` of them where they are known, `about`
    what they depend on, with seeds; for the key alone.
    """

    name: str
    images: "Tensor"
    prompts: list[str] | None
    labels: list[int] | None
    about: dict[str, Any]

    def __len__(self) -> int:
        return len(self.images)


def arms_of(
    subjects: Sequence[str],
    *,
    count: int,
    seed: int = 0,
    prompts: Sequence[str] = (),
    device: str = "auto",
    on_images: "OnImages" = lambda what, done, total: None,
) -> list[Arm]:
    """`count` pictures of each subject: models at the same prompts (`prompts` in turn, else those
    that the first model names) and seeds from `seed`, `PATH@3` at w = 3; folders and .npz files in
    their order.

    `InputError` for two of one name, one that is no subject or has too few pictures.
    """
    names = check_subjects(subjects)
    found: list[Arm] = []
    for name, subject in zip(names, subjects, strict=True):
        path, scale = path_and_scale(subject)
        if is_model(path):
            images, prompts = _sampled(path, scale, count, seed, prompts, device)
        else:
            from sfumato.evaluation.image_files import read_images

            images = read_images(Path(path), None)
        found.append(arm_of(images, count, name))
        on_images("pictures", len(found) * count, len(subjects) * count)
    return found


def arm_of(images: "ImageSet", count: int, name: str) -> Arm:
    """The first `count` of a set; `InputError` for fewer."""
    if len(images) < count:
        raise InputError(
            f"{name}: {count} pictures are needed, with practice and attention checks, and there "
            f"are {len(images)}.",
            hint="Give a smaller --count, --practice or --attention.",
        )
    first = images.first(count)
    return Arm(
        name=name,
        images=first.images(),
        prompts=None if first.prompts is None else [str(one) for one in first.prompts],
        labels=None if first.labels is None else first.labels.tolist(),
        about=dict(images.settings),
    )


def real_arm(source: str, like: Arm, count: int, name: str) -> Arm:
    """Real images of the size of `like`: a folder or .npz of pictures, else the test images of a
    data source."""
    from sfumato.config.sections import DataConfig
    from sfumato.data.files import find_images, walk
    from sfumato.evaluation.image_files import read_images
    from sfumato.evaluation.image_set import ImageSet

    data = DataConfig(
        source=source,
        resolution=like.images.shape[-1],
        channels=like.images.shape[1],
        caption=("A real image",),  # photos need none of their own
    )
    path = Path(source)
    if path.suffix == ".npz" or (path.is_dir() and find_images(walk(path).files).images):
        return arm_of(read_images(path, data), count, name)
    return arm_of(ImageSet.real(data, "reference"), count, name)


def _sampled(
    path: str, scale: float | None, count: int, seed: int, prompts: Sequence[str], device: str
) -> tuple["ImageSet", list[str]]:
    """A set of a model, and the captions that were taken in turn."""
    from sfumato.evaluation.sampled_images import sampled_set
    from sfumato.generation.loading import load

    model = load(path, device=device)
    captions = list(prompts or model.examples()[0])
    asked = [captions[place % len(captions)] for place in range(count)]
    return sampled_set(model, asked, range(seed, seed + count), guidance=scale), captions


def check_subjects(subjects: Sequence[str]) -> list[str]:
    """Short names that tell subjects apart; `InputError` for one that is given twice or does not
    exist, before anything is loaded."""
    if len(set(subjects)) < len(subjects):
        raise InputError("A subject is given twice.", hint="Name each once.")
    for subject in subjects:
        path, _ = path_and_scale(subject)
        if not model_folder(path).exists():
            raise InputError(
                f"{path} does not exist.",
                hint="Give a run, an exported pipeline, bundled:mnist, a folder of images or an "
                ".npz; PATH@3 is a model at w = 3.",
            )
    short = [subject.rstrip("/").rsplit("/", 1)[-1] for subject in subjects]
    return short if len(set(short)) == len(short) else list(subjects)


# One size -----------------------------------------------------------------------------------------


def alike(arms: Sequence[Arm]) -> list[list["Tensor"]]:
    """The pictures of all arms in one size and number of channels, so that neither tells whose they
    are: the largest size, its longer side at most 512 pixels. Bicubic, where sizes differ."""
    channels = max(arm.images.shape[1] for arm in arms)
    sizes = [(arm.images.shape[-2], arm.images.shape[-1]) for arm in arms]
    height, width = max(sizes)
    if any(one * width != other * height for one, other in sizes):
        named = [
            f"{arm.name}: {width}x{height}"
            for arm, (height, width) in zip(arms, sizes, strict=True)
        ]
        raise InputError(
            f"Pictures of these shapes cannot be shown alike: {', '.join(named)}.",
            hint="Cut them to one shape, squares for example.",
        )
    scale = min(1.0, SHOWN_PX / max(height, width))
    size = (max(1, round(scale * height)), max(1, round(scale * width)))
    return [[_fitted(image, channels, size) for image in arm.images] for arm in arms]


def _fitted(image: "Tensor", channels: int, size_px: tuple[int, int]) -> "Tensor":
    import numpy as np
    import torch
    from PIL import Image

    from sfumato.base.images import to_pil

    height, width = size_px
    if tuple(image.shape[-2:]) != size_px:
        resized = to_pil(image).resize((width, height), Image.Resampling.BICUBIC)
        array = np.asarray(resized).reshape(height, width, -1)
        image = torch.from_numpy(array.copy()).permute(2, 0, 1)
    return image.expand(channels, -1, -1)


def scrambled(image: "Tensor", place: Callable[[int], "Tensor"]) -> "Tensor":
    """The pixels of a picture (C, H, W) in another order, `place(n)` a permutation of n."""
    flat = image.flatten(1)
    return flat[:, place(flat.shape[1])].reshape(image.shape)
