"""The original MNIST files (IDX), gzipped or not."""

import gzip
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from sfumato.base.errors import DamagedDataError, InputError
from sfumato.data.files import fingerprint, shown, visible_files
from sfumato.data.labels import Classes, classes_of
from sfumato.data.splits import group_splits, split_in_name, split_notes
from sfumato.data.table import Part, RawImages, Row

_NAME = re.compile(r"^(.*?)(images|labels)[-.]idx\d-ubyte(\.gz)?$")
_UBYTE = 0x08


def read_idx(folder: Path, also_train: Sequence[str] = ()) -> RawImages | None:
    """The data set in `*images-idx3-ubyte[.gz]` and `*labels-idx1-ubyte[.gz]`; None without them.

    Raises `DamagedDataError` for a file that is not whole, or images and labels whose counts
    disagree; `InputError` where one of a pair is missing.
    """
    files = {path: found for path in visible_files(folder) if (found := _NAME.match(path.name))}
    if not files:
        return None
    groups = _by_part(folder, files)
    if any(len(group) > 1 for group in groups.values()):
        raise InputError(
            f"{folder} holds several data sets: {', '.join(sorted(p.name for p in files))}.",
            hint="Give a folder with one pair of files for training and one for test.",
        )
    splits = group_splits(groups, also_train=also_train, where=str(folder))
    classes = _classes(
        np.concatenate([labels for part in splits.parts.values() for _, labels in part])
    )
    parts = {name: _part(group, classes) for name, group in splits.parts.items()}
    left_out = {name: sum(len(n) for _, n in group) for name, group in splits.left_out.items()}
    remarks = [splits.remark] if splits.remark else []
    counts = {name: part.count for name, part in parts.items()}
    return RawImages(
        layout="IDX",
        parts=parts,
        class_names=classes.names,
        labels="the labels file",
        captions="",
        fingerprint=fingerprint(folder, sorted(files)),
        left_out=sum(left_out.values()),
        notes=[*remarks, *split_notes(counts, left_out)],
    )


def _by_part(
    folder: Path, files: Mapping[Path, re.Match[str]]
) -> dict[str, list[tuple[Path, np.ndarray]]]:
    """The pairs of files, as images and labels, by the part that their name says."""
    pairs: dict[str, dict[str, Path]] = {}
    for path, found in files.items():  # where a file is there both packed and unpacked: unpacked
        pairs.setdefault(f"{path.parent}/{found[1]}", {}).setdefault(found[2], path)
    groups: dict[str, list[tuple[Path, np.ndarray]]] = {}
    for pair in pairs.values():
        images, labels = _read_pair(folder, pair)
        found = _NAME.match(images.name)
        name = split_in_name(images.name) or (found[1].strip("-_.") if found else "")
        groups.setdefault(name, []).append((images, labels))
    return groups


def _classes(labels: np.ndarray) -> Classes:
    values, counts = np.unique(labels, return_counts=True)
    return classes_of(dict(zip(values.tolist(), counts.tolist(), strict=True)), chosen=True)


def _read_pair(folder: Path, pair: dict[str, Path]) -> tuple[Path, np.ndarray]:
    """The file of images and its labels (N,)."""
    for kind, other in (("images", "labels"), ("labels", "images")):
        if kind not in pair:
            raise InputError(
                f"{folder}: {pair[other].name} is there, but not the file of its {kind}.",
                hint=f"Put {pair[other].name.replace(other, kind)} beside it "
                "(idx3 for images, idx1 for labels).",
            )
    labels = _read(pair["labels"], dimensions=1)
    count = _shape(pair["images"], dimensions=3)[0]
    if count != len(labels):
        raise DamagedDataError(
            f"{pair['images']} holds {count:,} images, {pair['labels'].name} "
            f"{len(labels):,} labels.",
            hint="The files do not belong together, or one was cut short: get both again.",
        )
    return pair["images"], labels


def _part(pairs: Sequence[tuple[Path, np.ndarray]], classes: Classes) -> Part:
    def read(keep: np.ndarray | None) -> Iterator[Row]:
        start = 0
        for file, labels in pairs:
            images = _read(file, dimensions=3)
            for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
                if keep is None or keep[start + number]:
                    index, problem = classes.find(label)
                    yield Row(image, index, None, shown(Path(file.name)), number, problem)
            start += len(labels)

    return Part(count=sum(len(labels) for _, labels in pairs), read=read)


def _bytes(file: Path, length: int = -1) -> bytes:
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as opened:
            return opened.read(length)
    except (OSError, EOFError, zlib.error) as error:
        raise DamagedDataError(
            f"{file} cannot be unpacked ({error}).",
            hint="It was cut short or altered: get it again.",
        ) from error


def _shape(file: Path, *, dimensions: int) -> tuple[int, ...]:
    """Sizes from the header: two zero bytes, the type, the number of sizes, the sizes."""
    header = _bytes(file, 4 + 4 * dimensions)
    if len(header) < 4 + 4 * dimensions or header[:4] != bytes([0, 0, _UBYTE, dimensions]):
        raise DamagedDataError(
            f"{file} is not an IDX file of bytes with {dimensions} dimension(s).",
            hint="Get the original file again; its name must say what it is (idx3 for images, "
            "idx1 for labels).",
        )
    return tuple(np.frombuffer(header, ">u4", offset=4).tolist())


def _read(file: Path, *, dimensions: int) -> np.ndarray:
    """uint8 of the header's shape."""
    shape = _shape(file, dimensions=dimensions)
    content = np.frombuffer(_bytes(file), np.uint8, offset=4 + 4 * dimensions)
    if len(content) != np.prod(shape):
        raise DamagedDataError(
            f"{file} holds {len(content):,} values, its header says {int(np.prod(shape)):,}.",
            hint="It was cut short or altered: get it again.",
        )
    return content.reshape(shape)
