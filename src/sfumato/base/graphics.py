"""Pictures on terminals that draw them: kitty's protocol, sixels, and which one a terminal has."""

import base64
import io
import itertools
import os
import re
import time
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PIL.Image import Image

CLEAR_KITTY = "\x1b_Ga=d,d=A,q=2\x1b\\"
"""Removes every picture; text that is written over one does not."""
ASK = b"\x1b_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\\x1b[c"
"""Is there kitty's protocol? And the device attributes, which every terminal answers."""
ANSWER_SECONDS = 0.5
CHUNK = 4096
"""Most characters of an escape of kitty's protocol."""


def kitty(picture: "Image", columns: int, rows: int) -> str:
    """The escapes that draw a picture over so many characters from the cursor, which stays
    (https://sw.kovidgoyal.net/kitty/graphics-protocol/)."""
    data = io.BytesIO()
    picture.save(data, "PNG")
    text = base64.b64encode(data.getvalue()).decode("ascii")
    chunks = [text[start : start + CHUNK] for start in range(0, len(text), CHUNK)]
    found = []
    for index, chunk in enumerate(chunks):
        keys = f"m={int(index < len(chunks) - 1)},q=2"
        if index == 0:
            keys += f",a=T,f=100,c={columns},r={rows},C=1"
        found.append(f"\x1b_G{keys};{chunk}\x1b\\")
    return "".join(found)


def sixel(picture: "Image") -> str:
    """The escape that draws a picture in at most 256 colours from the cursor (DEC STD 070); what is
    transparent in it is not drawn."""
    import numpy as np

    flat = picture.convert("RGB").quantize(256)
    drawn = np.asarray(picture.convert("RGBA"))[..., 3] > 0
    pixels, palette = np.asarray(flat), flat.getpalette() or []
    parts = [f'\x1bP0;1q"1;1;{flat.width};{flat.height}']
    for colour in np.unique(pixels[drawn]).tolist():
        red, green, blue = (round(100 * one / 255) for one in palette[3 * colour : 3 * colour + 3])
        parts.append(f"#{colour};2;{red};{green};{blue}")
    for top in range(0, flat.height, 6):
        band, here = pixels[top : top + 6], drawn[top : top + 6]
        weights = 1 << np.arange(len(band))[:, None]
        for colour in np.unique(band[here]).tolist():
            bits = (((band == colour) & here) * weights).sum(0)
            parts.append(f"#{colour}{_runs(bits.tolist())}$")
        parts.append("-")
    return "".join([*parts, "\x1b\\"])


def _runs(columns: list[int]) -> str:
    """Six pixels of a column in a character, repeated ones by their number."""
    found = []
    for bits, group in itertools.groupby(columns):
        count, character = len(list(group)), chr(63 + bits)
        found.append(f"!{count}{character}" if count > 3 else count * character)
    return "".join(found)


def terminal_graphics() -> Literal["kitty", "sixel"] | None:
    """What the terminal of this process draws pictures by, by its own answer. None where it does
    not answer, and within tmux or screen, which pass no pictures on."""
    if "TMUX" in os.environ or "STY" in os.environ:
        return None
    try:
        answer = _answer()
    except (ImportError, OSError):  # Windows, or a process without a terminal
        return None
    if b"_Gi=31;OK" in answer:
        return "kitty"
    attributes = re.search(rb"\x1b\[\?([\d;]*)c", answer)
    return "sixel" if attributes and b"4" in attributes[1].split(b";") else None


def _answer() -> bytes:
    """What the terminal answers to `ASK`, up to the end of the device attributes."""
    import select
    import termios
    import tty

    terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
    try:
        before = termios.tcgetattr(terminal)
        try:
            tty.setcbreak(terminal)
            os.write(terminal, ASK)
            deadline, found = time.monotonic() + ANSWER_SECONDS, b""
            while not re.search(rb"\x1b\[\?[\d;]*c", found):
                left = max(0.0, deadline - time.monotonic())
                if not select.select([terminal], [], [], left)[0]:
                    break
                found += os.read(terminal, 4096)
            return found
        finally:
            termios.tcsetattr(terminal, termios.TCSAFLUSH, before)
    finally:
        os.close(terminal)


def cell_size() -> tuple[int, int]:
    """Width and height of a character in pixels; 8 by 16 where the terminal does not say."""
    try:
        import fcntl
        import struct
        import termios

        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
        try:
            answer = fcntl.ioctl(terminal, termios.TIOCGWINSZ, bytes(8))
        finally:
            os.close(terminal)
        rows, columns, width, height = struct.unpack("HHHH", answer)
        return (width // columns, height // rows) if width and height else (8, 16)
    except (ImportError, OSError, ZeroDivisionError):
        return 8, 16
