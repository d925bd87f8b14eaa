"""Pictures in pixels on a terminal: what is sent, where it is placed, who asks for it."""

import base64
import io
import itertools
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from sfumato.base import graphics
from sfumato.base.graphics import CHUNK, kitty, sixel
from sfumato.cli.watch_pictures import Drawing, Placed, placed
from sfumato.cli.watch_view import side_by_side
from sfumato.studies.watching import Watched

pty = pytest.importorskip("pty")

SMALL_RUN = Path(__file__).parent / "data" / "small-run"


@pytest.fixture
def picture() -> Image.Image:
    """Noise in few colours, with a side that six does not divide."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (20, 3))
    return Image.fromarray(colours[rng.integers(0, 20, (50, 70))].astype(np.uint8))


def decoded_sixel(text: str) -> np.ndarray:
    """The pixels, read as the standard says: -1 where nothing was drawn."""
    found = re.fullmatch(r'\x1bP0;1q"1;1;(\d+);(\d+)(.*)\x1b\\', text, re.DOTALL)
    assert found
    width, height = int(found[1]), int(found[2])
    pixels = np.full((-(-height // 6) * 6, width, 3), -1)
    palette: dict[int, list[float]] = {}
    x = y = colour = 0
    for token in re.findall(r"#[\d;]+|!\d+[?-~]|[?-~]|\$|-", found[3]):
        if token[0] == "#":
            colour, *rest = map(int, token[1:].split(";"))
            if rest:
                palette[colour] = [255 * one / 100 for one in rest[1:]]
        elif token == "$":
            x = 0
        elif token == "-":
            x, y = 0, y + 6
        else:
            count = int(token[1:-1]) if token[0] == "!" else 1
            for bit in range(6):
                if (ord(token[-1]) - 63) >> bit & 1:
                    pixels[y + bit, x : x + count] = palette[colour]
            x += count
    return pixels[:height]


def test_sixels_have_the_colours_of_the_picture(picture: Image.Image) -> None:
    difference = np.abs(decoded_sixel(sixel(picture)) - np.asarray(picture, dtype=int))
    assert difference.max() <= 2  # colours are in percent


def test_transparent_pixels_are_not_drawn(picture: Image.Image) -> None:
    clear = np.zeros((50, 70), dtype=bool)
    clear[3:20, 30:40] = True
    picture.putalpha(Image.fromarray((~clear * 255).astype(np.uint8)))
    assert np.array_equal(decoded_sixel(sixel(picture))[..., 0] == -1, clear)


def test_repeated_sixels_are_counted() -> None:
    black = Image.new("RGB", (100, 6))
    assert "!100~" in sixel(black)
    assert (decoded_sixel(sixel(black)) == 0).all()


def test_kitty_gets_the_picture_in_chunks(picture: Image.Image) -> None:
    big = picture.resize((700, 500), Image.Resampling.BICUBIC)
    found = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", kitty(big, 10, 5))
    keys = [dict(one.split("=") for one in head.split(",")) for head, _ in found]
    assert len(found) > 2
    assert keys[0] == {"m": "1", "q": "2", "a": "T", "f": "100", "c": "10", "r": "5", "C": "1"}
    assert [one["m"] for one in keys] == ["1"] * (len(found) - 1) + ["0"]
    assert max(len(data) for _, data in found) <= CHUNK
    png = base64.b64decode("".join(data for _, data in found))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png))), np.asarray(big))


# Where --------------------------------------------------------------------------------------------


def placed_in(console: Console, *folders: Path, drawing: Drawing) -> tuple[list[Placed], list[str]]:
    views = [Watched(folder).look() for folder in folders]
    shown = side_by_side(views, console.width, drawing)
    lines = console.render_lines(shown, pad=False, new_lines=False)
    text = ["".join(segment.text for segment in line) for line in lines]
    return placed(lines, console.height), text


@pytest.mark.parametrize(("width", "beside"), [(110, True), (60, False)])
def test_pictures_have_their_room(width: int, beside: bool, tmp_path: Path) -> None:
    console = Console(width=width, height=100, file=io.StringIO())
    other = Path(shutil.copytree(SMALL_RUN, tmp_path / "other"))
    drawing = Drawing("kitty", (10, 20))
    (first, second), text = placed_in(console, SMALL_RUN, other, drawing=drawing)
    assert (first.column == second.column == 0) is not beside
    assert (first.row == second.row) is beside
    for one in (first, second):
        assert (one.columns, one.rows) == (
            -(-one.picture.width // 10),
            -(-one.picture.height // 20),
        )
        assert "samples after" in text[one.row - 1][one.column :]
        rows = [
            text[row][one.column : one.column + one.columns]
            for row in range(one.row, one.row + one.rows)
        ]
        assert not "".join(rows).strip()
    low = Console(width=width, height=first.row + first.rows - 1, file=io.StringIO())
    assert placed_in(low, SMALL_RUN, drawing=drawing)[0] == []


def test_characters_leave_no_room() -> None:
    console = Console(width=80, height=100, file=io.StringIO())
    assert placed_in(console, SMALL_RUN, drawing=Drawing("blocks"))[0] == []


# Whether ------------------------------------------------------------------------------------------


def asked(answer: bytes) -> tuple[bytes, str]:
    """What a process asks its terminal, and what it makes of an answer to that."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ.pop("TMUX", None)
        os.environ.pop("STY", None)
        os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
        code = (
            "from sfumato.base.graphics import *; print('found', terminal_graphics(), cell_size())"
        )
        os.execv(sys.executable, [sys.executable, "-c", code])
    question = os.read(terminal, 4096)
    os.write(terminal, answer)
    said = b""
    for _ in itertools.count():
        try:
            said += os.read(terminal, 4096)
        except OSError:  # its end
            break
    os.waitpid(child, 0)
    os.close(terminal)
    return question, re.search(r"found (.*?)\r\n", said.decode())[1]  # type: ignore[index]


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        (b"\x1b_Gi=31;OK\x1b\\\x1b[?62;c", "kitty"),
        (b"\x1b[?62;4;6c", "sixel"),
        (b"\x1b[?62;14c", "None"),
        (b"", "None"),
    ],
)
def test_a_terminal_says_what_it_draws(answer: bytes, wanted: str) -> None:
    question, found = asked(answer)
    assert question == graphics.ASK
    assert found == f"{wanted} (8, 16)"


def test_within_tmux_and_without_a_terminal_there_are_no_pictures(monkeypatch) -> None:
    monkeypatch.setenv("TMUX", "/tmp/tmux-0/default,1,0")
    assert graphics.terminal_graphics() is None
    monkeypatch.delenv("TMUX")
    monkeypatch.delenv("STY", raising=False)
    monkeypatch.setattr(graphics.os, "open", lambda *_: (_ for _ in ()).throw(OSError))
    assert graphics.terminal_graphics() is None
    assert graphics.cell_size() == (8, 16)
