"""What can be measured: images that a model draws, a folder of images, an .npz file."""

import hashlib
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato.base.environment import environment
from sfumato.base.errors import DamagedDataError, InputError
from sfumato.base.files import sha256_of_file
from sfumato.base.images import settings_in_png
from sfumato.base.randomness import generator_for
from sfumato.config.sections import FEWEST_IMAGES
from sfumato.data.captions import captions_from_templates, in_words
from sfumato.data.records import Records
from sfumato.diffusion.guidance import CONVENTION
from sfumato.diffusion.solvers.schedulers import sampler_of
from sfumato.evaluation.parts import Make
from sfumato.evaluation.real import digest_of
from sfumato.generation.model import ImageGenerator

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


RealRecords = Callable[[int, int, int], Records]
"""The real images at a height, width and number of channels."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One set of images, by number: the same ones whenever they are asked for.

    `make(part)` gives `images`, uint8 (B, C, H, W), and where a model draws them `seconds` and
    `calls` (network evaluations an image), both 0-d. `labels` (N,) int64 and `prompts`: what was
    asked for, where that is known. `settings`: how they were made, for the card.
    """

    title: str
    count: int
    make: Make
    settings: dict[str, Any]
    labels: Tensor | None = None
    balanced: bool = False
    """Whether as many images of each class were asked for, instead of classes drawn by lot."""
    prompts: Sequence[str] | None = None
    drawn: bool = False
    """Whether the images are made at some cost, and so are kept."""
    notes: Sequence[str] = ()
    """What is not known of them, and why."""

    @property
    def key(self) -> str:
        """A digest that changes with anything that changes the images."""
        labels = None if self.labels is None else self.labels.tolist()
        known = {**self.settings, "prompts": list(self.prompts or ()), "labels": labels}
        return digest_of(known)


def file_name(title: str) -> str:
    """A subject's title as a part of a file's name: "w = 1.5" is w1.5."""
    return re.sub(r"[^\w.-]+", "", title) or "images"


# Drawn by a model ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a model is asked for: `labels` (N,) into the class names, and a caption for each."""

    labels: Tensor | None
    prompts: Sequence[str]
    templates: Sequence[str]
    balanced: bool


def what_to_ask(
    reference: Records, *, count: int, labels: str, templates: Sequence[str], first_seed: int
) -> Asked:
    """Classes in turn (or by lot) with the caption each was trained with first, or `templates`'.

    A data set without classes is asked by captions of its reference images, drawn by lot.
    """
    generator = generator_for("what is asked for", first_seed)
    if not reference.class_names:
        chosen = torch.randint(len(reference), (count,), generator=generator)
        prompts = [
            reference.captions[int(reference.prompts[index, 0])] for index in chosen.tolist()
        ]
        return Asked(labels=None, prompts=prompts, templates=(), balanced=False)
    classes = len(reference.class_names)
    if labels == "balanced":
        asked = torch.arange(count) % classes
    else:
        asked = torch.randint(classes, (count,), generator=generator)
    return Asked(
        labels=asked,
        prompts=prompts_for(reference, asked, templates),
        templates=templates,
        balanced=labels == "balanced",
    )


def prompts_for(records: Records, labels: Tensor, templates: Sequence[str]) -> list[str]:
    """A caption for each of `labels` (N,): the class's own, or of each template in turn."""
    if not templates:
        return [records.class_captions[int(label)] for label in labels]
    classes = len(records.class_names)
    captions = captions_from_templates(templates, records.class_names)
    return [
        captions[index // classes % len(templates) * classes + label]
        for index, label in enumerate(labels.tolist())
    ]


def drawn_subject(
    generator: ImageGenerator,
    asked: Asked,
    *,
    guidance_scale: float,
    first_seed: int,
) -> Subject:
    """Images drawn at one guidance scale; image i has seed `first_seed` + i at every scale."""
    pipeline = generator.pipeline
    form = generator.with_weak_network(generator.guidance)
    count = len(asked.prompts)

    def make(part: range) -> dict[str, Tensor]:
        started = time.perf_counter()
        pictures = list(
            generator.draw(
                asked.prompts[part.start : part.stop],
                range(first_seed + part.start, first_seed + part.stop),
                guidance_scale=guidance_scale,
            )
        )
        return {
            "images": torch.stack([picture.image for picture in pictures]),
            "calls": torch.tensor(pictures[0].settings["calls"]),
            "seconds": torch.tensor(time.perf_counter() - started),
        }

    return Subject(
        title=f"w = {guidance_scale:g}",
        count=count,
        make=make,
        labels=asked.labels,
        balanced=asked.balanced,
        prompts=asked.prompts,
        drawn=True,
        settings={
            "guidance_scale": float(guidance_scale),
            "guidance": str(form),
            "guidance_convention": CONVENTION,
            "scheduler": sampler_of(pipeline.scheduler)[0],
            "timestep_spacing": pipeline.scheduler.config["timestep_spacing"],
            "steps": pipeline.config["num_inference_steps"],
            "seeds": [first_seed, first_seed + count - 1],
            "model": dict(generator.provenance),
            "device": pipeline.device.type,
            "environment": environment(),
        },
    )


# Found in files -----------------------------------------------------------------------------------


def folder_subject(folder: Path, reference: RealRecords) -> Subject:
    """The images of a folder, in the order of their names, with the captions of sfumato's PNGs.

    Labels come from those captions, or from subfolders named like the classes. `InputError` for
    mixed sizes or modes, none or too few; `DamagedDataError` for one that cannot be read.
    """
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )
    if not files:
        what = "is empty" if not any(folder.iterdir()) else "holds no images"
        raise InputError(
            f"{folder} {what}.", hint=f"Looked for {', '.join(IMAGE_SUFFIXES)} in it and below."
        )
    first = _read_image(files[0])
    for path in files[1:]:
        shape = tuple(_read_image(path).shape)
        if shape != tuple(first.shape):
            raise InputError(
                f"Mixed images: {files[0].name} is {_described(first.shape)}, {path.name} is "
                f"{_described(shape)}.",
                hint="Bring all to one size and one mode before they are measured: resizing is "
                "part of what a figure depends on.",
            )
    records = reference(first.shape[1], first.shape[2], first.shape[0])
    prompts = _captions_in(files)
    labels = _labels_of(prompts, records) if prompts else _labels_by_folder(files, records)
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(folder)}\0{sha256_of_file(path)}\n".encode())
    return _found_subject(
        title=folder.resolve().name,
        count=len(files),
        make=lambda part: {
            "images": torch.stack([_read_image(path) for path in files[part.start : part.stop]])
        },
        labels=labels,
        notes=_why_no_labels(labels, records, "neither sfumato's captions nor the folders' names"),
        prompts=prompts,
        digest=digest.hexdigest(),
    )


def npz_subject(file: Path, reference: RealRecords) -> Subject:
    """The first array of uint8 (N, H, W), (N, H, W, 1 or 3) in an .npz file, as guided-diffusion
    writes them; a second array of N integers holds the labels.

    `InputError` for other arrays, `DamagedDataError` for a file that cannot be read.
    """
    import zipfile

    try:
        with np.load(file, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise DamagedDataError(
            f"{file} cannot be read as .npz: it is no whole archive of plain arrays.",
            hint="numpy.savez writes them; arrays of Python objects are not taken.",
        ) from error
    pictures = next((a for a in arrays.values() if a.ndim in (3, 4)), None)
    if pictures is None or pictures.dtype != np.uint8 or pictures.shape[3:] not in ((), (1,), (3,)):
        found = ", ".join(f"{name} {a.dtype} {a.shape}" for name, a in arrays.items()) or "nothing"
        raise InputError(
            f"{file} holds no images: {found}.",
            hint="Images are one array of uint8 (N, H, W, 1 or 3), values 0 to 255.",
        )
    if pictures.ndim == 3:
        pictures = pictures[..., None]
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    labels = next(
        (
            torch.from_numpy(a.astype(np.int64))
            for a in arrays.values()
            if a.shape == (len(images),) and np.issubdtype(a.dtype, np.integer)
        ),
        None,
    )
    if not len(images):
        raise InputError(f"{file} holds no images.", hint=f"Give {FEWEST_IMAGES} or more.")
    records = reference(images.shape[2], images.shape[3], images.shape[1])
    _check_labels(labels, records, file)
    return _found_subject(
        title=file.name,
        count=len(images),
        make=lambda part: {"images": images[part.start : part.stop]},
        labels=labels,
        notes=_why_no_labels(labels, records, f"no array of {len(images)} integers"),
        prompts=None,
        digest=sha256_of_file(file),
    )


def _found_subject(*, count: int, digest: str, **rest: Any) -> Subject:
    if count < FEWEST_IMAGES:
        raise InputError(
            f"{count} images are too few to measure.", hint=f"Give {FEWEST_IMAGES} or more."
        )
    return Subject(count=count, settings={"files": digest}, **rest)


def _read_image(path: Path) -> Tensor:
    """uint8 (C, H, W), C = 1 or 3; `InputError` for another mode."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            image.load()
            if image.mode not in ("L", "RGB"):
                raise InputError(
                    f"{path} has the mode {image.mode}, not L (greyscale) or RGB.",
                    hint="Convert the images first; what becomes of transparency is your choice.",
                )
            array = np.array(image)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise DamagedDataError(
            f"{path} cannot be read as an image.",
            hint="It is truncated, or another kind of file: repair it or remove it.",
        ) from error
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())


def _described(shape: Sequence[int]) -> str:
    channels, height, width = shape
    return f"{width} x {height} {'greyscale' if channels == 1 else 'RGB'}"


def _captions_in(files: Sequence[Path]) -> list[str] | None:
    """The captions that sfumato wrote into its PNGs; None unless all files have one."""
    if any(path.suffix != ".png" for path in files):
        return None
    found = [settings_in_png(path).get("prompt") for path in files]
    prompts = [prompt for prompt in found if prompt is not None]
    return prompts if len(prompts) == len(files) else None


def _labels_of(prompts: Sequence[str], records: Records) -> Tensor | None:
    """The class that each caption names, where every caption names one: it is one of the data
    set's, or has the words of exactly one class in it."""
    if not records.class_names:
        return None
    classes = [set(_words(name)) for name in records.class_names]
    known = {caption: label for label, caption in enumerate(records.class_captions)}
    for label, rows in zip(records.labels.tolist(), records.prompts.tolist(), strict=True):
        for row in rows:
            known.setdefault(records.captions[int(row)], int(label))
    for prompt in set(prompts) - known.keys():
        words = set(_words(prompt))
        named = [label for label, name in enumerate(classes) if name and name <= words]
        if len(named) == 1:
            known[prompt] = named[0]
    found = [known.get(prompt) for prompt in prompts]
    return None if None in found else torch.tensor(found)


def _words(text: str) -> list[str]:
    """Words in small letters, digits by their words."""
    return [in_words(word) for word in re.findall(r"[^\W_]+", text.lower())]


def _why_no_labels(labels: Tensor | None, records: Records, why: str) -> list[str]:
    if labels is not None or not records.class_names:
        return []
    some = ", ".join(records.class_names[:4])
    return [
        f"agreement: {why} name the classes ({some}, ...) of all images, so that what was asked "
        "for is not known"
    ]


def _labels_by_folder(files: Sequence[Path], records: Records) -> Tensor | None:
    """The class whose name each image's folder has, where all have one."""
    places = {str(name): label for label, name in enumerate(records.class_names)}
    found = [places.get(path.parent.name) for path in files]
    return None if None in found else torch.tensor(found)


def _check_labels(labels: Tensor | None, records: Records, file: Path) -> None:
    classes = len(records.class_names)
    if labels is not None and classes and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise InputError(
            f"{file} has labels from {int(labels.min())} to {int(labels.max())}; the real images "
            f"have {classes} classes, 0 to {classes - 1}.",
            hint="Compare with the data set that they were drawn for (--data).",
        )
