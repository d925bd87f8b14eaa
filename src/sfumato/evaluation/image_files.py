"""Image sets from files: a folder of images, or an .npz of arrays."""

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sfumato.base.errors import DamagedDataError, InputError
from sfumato.base.files import cache_folder, sha256_of_file
from sfumato.base.images import settings_in_png
from sfumato.base.words import counted
from sfumato.config.sections import FEWEST_IMAGES, DataConfig
from sfumato.data.captions import in_words
from sfumato.data.decode import BadImage, Target, decode, open_image
from sfumato.data.files import SUFFIXES, class_name, find_images, walk
from sfumato.data.records import Records, load_records, target_of
from sfumato.data.survey import resolve
from sfumato.evaluation.image_set import ImageSet


def sized(data: DataConfig, shape: Sequence[int], what: str) -> DataConfig:
    """`data` with real images brought to the size and channels (C, H, W) of the given ones."""
    channels, height, width = shape
    if height != width:
        raise InputError(
            f"The images of {what} are not square: {width} x {height}.",
            hint="Real images are brought to squares; cut or squash these the same way.",
        )
    return data.model_copy(update={"resolution": height, "channels": channels})


def read_images(path: Path, data: DataConfig | None) -> ImageSet:
    """A folder of images or an .npz file; `InputError` for anything else."""
    if path.is_dir():
        return read_folder(path, data)
    if path.suffix == ".npz" and path.is_file():
        return read_npz(path, data)
    wrong = "is neither a folder nor an .npz file" if path.exists() else "does not exist"
    raise InputError(
        f"{path} {wrong}.",
        hint="Give a run, an exported pipeline, bundled:mnist, a folder of images or an .npz.",
    )


def read_folder(folder: Path, data: DataConfig | None) -> ImageSet:
    """The images of a folder, in the order of their names, with the captions of sfumato's PNGs.

    Images of one size, greyscale or RGB, are taken as they are. Others are brought to the size and
    channels of `data` by the rule of training (`data/decode.py`), and the card says so; without
    `data` they are an `InputError`. Labels come from the captions, or from subfolders named like
    the classes of `data`. `InputError` for none or too few; `DamagedDataError` for one that cannot
    be read.
    """
    there = walk(folder)
    found = find_images(there.files)
    files = list(found.images)
    if not files:
        what = "is empty" if not any(folder.iterdir()) else "holds no images"
        looked = f"Looked for {', '.join(SUFFIXES)} in it and below."
        raise InputError(f"{folder} {what}.", hint=found.note or looked)
    shape, target, resized = _common_shape(files, data)
    notes = [note for note in (*there.notes, found.note, resized) if note]
    prompts = _captions_in(files)
    labels = None
    if data is not None:
        records = load_records(sized(data, shape, str(folder)), "reference")
        labels = _labels_of(prompts, records) if prompts else _labels_by_folder(files, records)
        notes += _why_no_labels(labels, records, "neither captions of sfumato nor folders' names")
    return _enough(
        ImageSet(
            title=folder.resolve().name,
            count=len(files),
            make=lambda part: {
                "images": torch.stack(
                    [_read_image(path, target) for path in files[part.start : part.stop]]
                )
            },
            settings={"files": _digest_of(files, folder, target)},
            labels=labels,
            notes=notes,
            prompts=prompts,
        )
    )


def _digest_of(files: Sequence[Path], folder: Path, target: Target | None) -> str:
    """The sha256 of the names and contents of files, and of what is made of them."""
    digest = hashlib.sha256(repr(target).encode() if target else b"")
    for path in files:
        digest.update(os.fsencode(path.relative_to(folder)))
        digest.update(f"\0{sha256_of_file(path)}\n".encode())
    return digest.hexdigest()


def read_npz(file: Path, data: DataConfig | None) -> ImageSet:
    """The first array of uint8 (N, H, W), (N, H, W, 1 or 3) in an .npz file, as guided-diffusion
    writes them; a second array of N integers holds the labels.

    `InputError` for other arrays, `DamagedDataError` for a file that cannot be read.
    """
    arrays = _arrays_in(file)
    pictures = next((a for a in arrays.values() if a.ndim in (3, 4)), None)
    if pictures is None or pictures.dtype != np.uint8 or pictures.shape[3:] not in ((), (1,), (3,)):
        found = ", ".join(f"{name} {a.dtype} {a.shape}" for name, a in arrays.items()) or "nothing"
        raise InputError(
            f"{file} holds no images: {found}.",
            hint="Images are one array of uint8 (N, H, W, 1 or 3), values 0 to 255.",
        )
    if not len(pictures):
        raise InputError(f"{file} holds no images.", hint=f"Give {FEWEST_IMAGES} or more.")
    labels = next(
        (
            torch.from_numpy(a.astype(np.int64))
            for a in arrays.values()
            if a.shape == (len(pictures),) and np.issubdtype(a.dtype, np.integer)
        ),
        None,
    )
    pixels = torch.from_numpy(pictures[..., None] if pictures.ndim == 3 else pictures)
    images = ImageSet.from_array(
        pixels.permute(0, 3, 1, 2), labels=labels, title=file.name, digest=sha256_of_file(file)
    )
    notes: list[str] = []
    if data is not None:
        shape = (pixels.shape[3], pixels.shape[1], pixels.shape[2])
        records = load_records(sized(data, shape, str(file)), "reference")
        _check_labels(labels, records, file)
        notes = _why_no_labels(labels, records, f"no array of {len(pictures)} integers")
    return _enough(replace(images, notes=notes))


def _arrays_in(file: Path) -> dict[str, np.ndarray]:
    import zipfile

    try:
        with np.load(file, allow_pickle=False) as content:
            return {name: content[name] for name in content.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise DamagedDataError(
            f"{file} cannot be read as .npz: it is not a complete archive of plain arrays.",
            hint="numpy.savez writes them; arrays of Python objects are not taken.",
        ) from error


def _enough(images: ImageSet) -> ImageSet:
    """With features kept in the cache; `InputError` for too few images."""
    if images.count < FEWEST_IMAGES:
        raise InputError(
            f"{counted(images.count, 'image')} {'is' if images.count == 1 else 'are'} too few to "
            "measure.",
            hint=f"Give {FEWEST_IMAGES} or more.",
        )
    folder = cache_folder() / "features" / f"files-{images.settings['files'][:16]}"
    return replace(images, folder=folder)


def _common_shape(
    files: Sequence[Path], data: DataConfig | None
) -> tuple[tuple[int, ...], Target | None, str]:
    """(C, H, W) of all; where they differ, or are not square, what they are brought to and a line
    on it. `InputError` where no data says to what."""
    shapes = {path: _shape_of(path) for path in files}
    first = shapes[files[0]]
    odd = next((p for p, shape in shapes.items() if shape != first or isinstance(shape, str)), None)
    if odd is None and not isinstance(first, str) and (data is None or first[1] == first[2]):
        return first, None, ""
    if data is None:
        assert odd is not None
        raise _mixed(files[0], first, odd, shapes[odd])
    data = resolve(data)
    target = target_of(data)
    shape = (target.channels, target.resolution, target.resolution)
    count = sum(one != shape for one in shapes.values())
    how = "centre-cropped and brought" if data.fit == "crop" else "squashed"
    return (
        shape,
        target,
        f"{count:,} of {len(files):,} images had another size or mode: {how} to "
        f"{target.resolution}x{target.resolution} (bilinear, antialiased), as in training",
    )


def _mixed(
    path: Path, shape: "tuple[int, ...] | str", other: Path, its: "tuple[int, ...] | str"
) -> InputError:
    if isinstance(its, str):
        return InputError(
            f"{other} has the mode {its}, not L (greyscale) or RGB.",
            hint="Convert the images first, or name the real images (data): these are then read "
            "as they are in training.",
        )
    return InputError(
        f"Mixed images: {path.name} is {_described(shape)}, {other.name} is {_described(its)}.",
        hint="Bring all to one size and one mode, or name the real images (data): these are then "
        "resized as in training.",
    )


def _shape_of(path: Path) -> tuple[int, ...] | str:
    """(C, H, W), C = 1 or 3, of a whole image; its mode where that is another."""
    try:
        with open_image(path) as image:
            image.load()
            width, height = image.size
            channels = {"L": 1, "RGB": 3}.get(image.mode)
            return (channels, height, width) if channels else image.mode
    except (BadImage, OSError, SyntaxError, ValueError) as error:
        raise _unreadable(path) from error


def _read_image(path: Path, target: Target | None) -> Tensor:
    """uint8 (C, H, W), C = 1 or 3, as it is or as in training."""
    try:
        if target is not None:
            return torch.from_numpy(decode(path, target)[0].copy())
        with open_image(path) as image:
            array = np.array(image)
    except (BadImage, OSError, SyntaxError, ValueError) as error:
        raise _unreadable(path) from error
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())


def _unreadable(path: Path) -> DamagedDataError:
    return DamagedDataError(
        f"{path} cannot be read as an image.",
        hint="It is truncated, or another kind of file: repair it or remove it.",
    )


def _described(shape: tuple[int, ...] | str) -> str:
    if isinstance(shape, str):
        return f"of the mode {shape}"
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
        f"class accuracy: {why} name the classes ({some}, ...) of all images, so the classes "
        "asked for are not known"
    ]


def _labels_by_folder(files: Sequence[Path], records: Records) -> Tensor | None:
    """The class whose name each image's folder has, where all have one."""
    places = {str(name): label for label, name in enumerate(records.class_names)}
    found = [places.get(class_name(path.parent.name)) for path in files]
    return None if None in found else torch.tensor(found)


def _check_labels(labels: Tensor | None, records: Records, file: Path) -> None:
    classes = len(records.class_names)
    if labels is not None and classes and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise InputError(
            f"{file} has labels from {int(labels.min())} to {int(labels.max())}; the real images "
            f"have {classes} classes, 0 to {classes - 1}.",
            hint="Compare with the data set that they were sampled for (--data).",
        )
