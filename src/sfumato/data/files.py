"""The files of a folder: through links, by any name, and which of them are images."""

import hashlib
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
"""Formats that are read; others (EPS and the like) would start programs of their own."""
SUFFIXES = {
    **dict.fromkeys((".png", ".apng"), "PNG"),
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo"), "JPEG"),
    **dict.fromkeys((".bmp", ".dib"), "BMP"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm"), "PPM"),
    ".webp": "WEBP",
    ".gif": "GIF",
    ".avif": "AVIF",
}
"""Formats by the suffixes of their files: the one list for all readers."""
_ENDS, _BYTES, _LEAST_END = 2**16, 2**24, 2**10
"""Bytes that `fingerprint` reads at either end of a file, in all, and where it reads none: of more
than 16,384 files."""
_FOREIGN = {
    **dict.fromkeys((".heic", ".heif", ".hif"), "HEIC"),
    **dict.fromkeys((".jp2", ".j2k", ".jpx"), "JPEG 2000"),
    **dict.fromkeys((".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2"), "camera raw"),
    ".jxl": "JPEG XL",
    ".svg": "SVG",
    ".psd": "PSD",
    ".tga": "TGA",
    ".exr": "OpenEXR",
    ".eps": "EPS",
    ".qoi": "QOI",
    ".xcf": "XCF",
    ".dcm": "DICOM",
}
"""Images in formats that are not read: they are counted, so that none is missing unnoticed."""
_NO_IMAGES = {
    *(".txt", ".caption", ".json", ".jsonl", ".csv", ".tsv", ".md", ".xml", ".html", ".yaml"),
    *(".yml", ".parquet", ".arrow", ".npy", ".npz", ".pt", ".safetensors", ".zip", ".gz", ".tar"),
    *(".py", ".log", ".pdf", ".mp4", ".db", ".ini"),
}
"""Suffixes of files that are not opened to see whether they are images."""
MAGIC_BYTES = 32
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_PICTURES_OF_FTYP = {b"avif": "AVIF", b"avis": "AVIF"}


@dataclass(frozen=True, kw_only=True)
class Walk:
    """What lies below a folder: `files` in the order of their names, and a line on each kind of
    thing that was not entered."""

    files: Sequence[Path]
    notes: Sequence[str]


def walk(folder: Path) -> Walk:
    """All files below `folder`, without hidden ones.

    Linked folders are entered after the others, each folder once: not again by a second link, and
    not where a link leads back to a folder that holds it.
    """
    found: dict[str, list[Path]] = defaultdict(list)
    above = {_identity(path) for path in folder.resolve().parents}
    seen: set[tuple[int, int]] = set()

    def enter(directory: Path) -> None:
        identity = _identity(directory)
        if identity in above or identity in seen:
            found["again"].append(directory)
            return
        seen.add(identity)
        try:
            with os.scandir(directory) as opened:
                entries = sorted(opened, key=lambda entry: entry.name)
        except PermissionError:
            found["closed"].append(directory)
            return
        for entry in entries:
            if not entry.name.startswith("."):
                path, kind = directory / entry.name, _kind_of(entry)
                enter(path) if kind == "folder" else found[kind].append(path)

    enter(folder)
    while found["link"]:
        enter(found["link"].pop(0))
    notes = (
        _not_entered(folder, found["again"], "leads to a folder that is read already", "link"),
        _not_entered(folder, found["broken"], "leads nowhere", "link"),
        _not_entered(folder, found["closed"], "may not be read", "folder"),
    )
    return Walk(files=sorted(found["file"]), notes=[note for note in notes if note])


def _kind_of(entry: "os.DirEntry[str]") -> str:
    """file, folder, link (to a folder), broken (a link), or empty for what is none of these."""
    if not entry.is_symlink():
        return "folder" if entry.is_dir() else "file" if entry.is_file() else ""
    if os.path.isdir(entry.path):
        return "link"
    return "file" if os.path.isfile(entry.path) else "broken"


def _identity(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino


def _not_entered(folder: Path, paths: Sequence[Path], why: str, what: str) -> str:
    if not paths:
        return ""
    first = shown(paths[0].relative_to(folder))
    if len(paths) == 1:
        return f"The {what} {first} {why}; it is left out."
    return f"{len(paths):,} {what}s, the first is {first}: each {why}; they are left out."


def visible_files(folder: Path) -> list[Path]:
    """The files of `walk`."""
    return list(walk(folder).files)


def shown(path: Path) -> str:
    """A path as text for messages and captions: bytes of a name that are not UTF-8 are escaped, and
    so are control characters."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def class_name(folder: str) -> str:
    """The class that a folder's name stands for: the same in every Unicode normal form."""
    return unicodedata.normalize("NFC", shown(Path(folder)))


def fingerprint(folder: Path, files: Iterable[Path]) -> str:
    """A digest of names, sizes and the first and last bytes of files (`_ENDS` of one, `_BYTES` of
    all): changes when a file is added, removed or replaced, and with two data sets whose files have
    the same names and sizes, as MNIST and Fashion-MNIST have in IDX."""
    digest, files = hashlib.sha256(), list(files)
    ends = min(_ENDS, _BYTES // max(1, len(files)))
    for file in files:
        size = file.stat().st_size
        digest.update(os.fsencode(file.relative_to(folder)))
        digest.update(f"\t{size}\n".encode())
        if ends >= _LEAST_END:
            with file.open("rb") as opened:
                digest.update(opened.read(ends))
                opened.seek(max(ends, size - ends))
                digest.update(opened.read(ends))
    return digest.hexdigest()[:16]


# Images -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ImageFiles:
    """`images` that can be read here; `left_out` has the others with their formats."""

    images: Sequence[Path]
    left_out: Mapping[Path, str]

    @property
    def note(self) -> str:
        """A line on what was left out, and why; empty where nothing was."""
        if not self.left_out:
            return ""
        count, formats = len(self.left_out), Counter(self.left_out.values())
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in formats.most_common())
        return (
            f"{count:,} image{'s are' if count > 1 else ' is'} left out ({kinds}): the format is "
            "not read here. Convert to PNG or JPEG to use "
            f"{'them' if count > 1 else 'it'}."
        )


def find_images(files: Iterable[Path]) -> ImageFiles:
    """The images among `files`: by their suffix, and by their first bytes where a suffix is missing
    or says nothing."""
    images: list[Path] = []
    left_out: dict[Path, str] = {}
    for path in files:
        suffix = path.suffix.lower()
        kind = SUFFIXES.get(suffix) or _FOREIGN.get(suffix)
        if kind is None and suffix not in _NO_IMAGES:
            kind = _format_of(path)
        if kind in readable_formats():
            images.append(path)
        elif kind:
            left_out[path] = kind
    return ImageFiles(images=images, left_out=left_out)


@lru_cache(maxsize=1)
def readable_formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow can read: WebP and AVIF may be missing from it."""
    from PIL import Image, features

    Image.init()
    optional = {"WEBP": "webp", "AVIF": "avif"}
    return tuple(
        name
        for name in FORMATS
        if name in Image.OPEN and (name not in optional or features.check(optional[name]))
    )


def _format_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return format_in(file.read(MAGIC_BYTES))
    except OSError:
        return ""


def format_in(start: bytes) -> str:
    """The format of an image by its first 32 bytes; empty for what is none that is known."""
    signatures = {
        b"\x89PNG\r\n\x1a\n": "PNG",
        b"\xff\xd8\xff": "JPEG",
        b"GIF87a": "GIF",
        b"GIF89a": "GIF",
        b"II*\0": "TIFF",
        b"MM\0*": "TIFF",
        b"\xff\x0a": "JPEG XL",
        b"\0\0\0\x0cJXL ": "JPEG XL",
        b"\0\0\0\x0cjP  ": "JPEG 2000",
        b"8BPS": "PSD",
    }
    for signature, kind in signatures.items():
        if start.startswith(signature):
            return kind
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WEBP"
    if start[:2] == b"BM" and start[6:10] == bytes(4):
        return "BMP"
    if start[:1] == b"P" and start[1:2] in b"123456" and start[2:3] in (b"\n", b" ", b"\r", b"\t"):
        return "PPM"
    if start[4:8] == b"ftyp":
        brands = start[8:12] + start[16:]
        if kinds := [kind for brand, kind in _PICTURES_OF_FTYP.items() if brand in brands]:
            return kinds[0]
        return "HEIC" if any(brand in brands for brand in (b"heic", b"heix", b"mif1")) else ""
    return ""
