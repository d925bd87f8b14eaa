"""Reading the settings out of a PNG that somebody gives: no pixel is decoded, nothing inflated."""

import struct
import zlib
from collections.abc import Iterator

from sfumato.base.errors import InputError
from sfumato.base.images import TEXT_PREFIX

MOST_BYTES = 8_000_000
MOST_PIXELS = 16_000_000
MOST_TEXT_BYTES = 64_000
"""Of all settings together; those of sfumato have some hundred."""
_MOST_CHUNKS = 10_000
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def settings_of(content: bytes) -> dict[str, str]:
    """The settings that sfumato wrote into a PNG. `InputError` for what is none, is damaged or
    larger than it may be, and for a PNG without settings of sfumato."""
    if not content.startswith(_SIGNATURE):
        raise InputError("This is not a PNG.", hint="Drop a PNG that sfumato wrote.")
    if len(content) > MOST_BYTES:
        raise InputError(f"The PNG has {len(content):,} bytes.", hint=f"Up to {MOST_BYTES:,}.")
    found: dict[str, str] = {}
    text_bytes = 0
    for kind, data in _chunks(content):
        if kind == b"IHDR":
            _check_size(data)
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            text_bytes += len(data)
            if text_bytes > MOST_TEXT_BYTES:
                raise InputError(
                    f"The PNG has more than {MOST_TEXT_BYTES:,} bytes of text.",
                    hint="sfumato writes some hundred.",
                )
            if kind == b"iTXt":
                found.update(_setting(data))
    if "prompt" not in found:
        raise InputError(
            "The PNG carries no settings of sfumato.",
            hint="Only PNGs that sfumato wrote do; other programs may have removed them.",
        )
    return found


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(kind, data) of each chunk; `InputError` for a file that is cut or altered."""
    place = len(_SIGNATURE)
    for number in range(_MOST_CHUNKS):
        head = content[place : place + 8]
        if len(head) < 8:
            raise InputError("The PNG is cut off.")
        length, kind = struct.unpack(">I4s", head)
        data = content[place + 8 : place + 8 + length]
        check = content[place + 8 + length : place + 12 + length]
        if len(check) < 4:
            raise InputError("The PNG is cut off.")
        if zlib.crc32(kind + data) != struct.unpack(">I", check)[0]:
            raise InputError("The PNG is damaged.")
        if number == 0 and (kind != b"IHDR" or length != 13):
            raise InputError("The PNG is damaged.")
        if kind == b"IEND":
            return
        yield kind, data
        place += 12 + length
    raise InputError(f"The PNG has more than {_MOST_CHUNKS:,} parts.")


def _check_size(header: bytes) -> None:
    width, height = struct.unpack(">II", header[:8])
    if width * height > MOST_PIXELS:
        raise InputError(
            f"The PNG has {width:,} x {height:,} pixels.", hint=f"Up to {MOST_PIXELS:,} in all."
        )


def _setting(data: bytes) -> dict[str, str]:
    """Of an international text chunk: keyword, two flags, two more strings, text."""
    keyword, _, rest = data.partition(b"\0")
    name = keyword.decode("latin-1")
    if not name.startswith(TEXT_PREFIX) or rest[:1] != b"\0":  # compressed ones are not ours
        return {}
    text = rest[2:].split(b"\0", 2)[-1]
    return {name.removeprefix(TEXT_PREFIX): text.decode("utf-8", "replace")}
