"""Lessons run from top to bottom, and a notebook shows the progress of a run in place."""

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq
import pytest

import sfumato
from sfumato.methods import train as training
from sfumato.training import notebook
from sfumato.training.notebook import loss_svg

LESSONS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.py"))
QUICK = {"IMAGES": 320, "COUNT": 10}
CELL = re.compile(r"^# %%( \[markdown\])?$", re.MULTILINE)


def script_of(lesson: Path, **given: Any) -> str:
    """The lesson with other values for what its first cell sets."""
    text = lesson.read_text("utf-8")
    for name, value in given.items():
        text = re.sub(rf"^{name} = .*$", f"{name} = {value!r}", text, flags=re.MULTILINE)
    return text


def few_images(source: Path, folder: Path, most: int = 1500) -> Path:
    """A data set of Parquet files with the first rows of each: its classifier is trained sooner."""
    folder.mkdir()
    for file in source.rglob("*.parquet"):
        pq.write_table(pq.read_table(file).slice(0, most), folder / file.name)
    return folder


def test_lessons_are_notebooks_with_text_between_the_cells() -> None:
    assert {lesson.stem for lesson in LESSONS} == {"digits", "mnist", "own_images"}
    for lesson in LESSONS:
        header, *cells = CELL.split(lesson.read_text("utf-8"))
        assert "format_name: percent" in header
        kinds = ["text" if kind else "code" for kind in cells[::2]]
        assert kinds[0] == "text"
        assert kinds.count("text") >= 5
        for kind, cell in zip(kinds, cells[1::2], strict=True):
            if kind == "text":
                assert all(line.startswith("#") for line in cell.strip().splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.stem)
def test_a_lesson_runs_from_top_to_bottom(lesson: Path, tmp_path: Path, request) -> None:
    given: dict[str, Any] = dict(QUICK)
    if lesson.stem == "mnist":
        few = few_images(request.getfixturevalue("shared_data") / "mnist", tmp_path / "few")
        given["DATA"] = str(few)
    script = tmp_path / lesson.name
    script.write_text(script_of(lesson, **given), "utf-8")
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "320 of 320 images" in done.stdout


# In a notebook ------------------------------------------------------------------------------------


class Handle:
    """What IPython gives for an output: it can be drawn again."""

    def __init__(self, pages: list[str]) -> None:
        self.pages = pages

    def update(self, page: str) -> None:
        self.pages.append(page)


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What each output of a notebook showed, one after the other."""
    outputs: list[list[str]] = []

    def display(page: str, *, display_id: bool) -> Handle:
        assert display_id
        outputs.append([page])
        return Handle(outputs[-1])

    module: Any = ModuleType("IPython.display")
    module.HTML, module.display = str, display
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr(training, "in_notebook", lambda: True)
    monkeypatch.setattr(notebook, "EVERY_SECONDS", 0.0)
    return outputs


def test_progress_is_one_output_that_is_drawn_again(pages, tmp_path: Path) -> None:
    settings = {
        "data": {"source": "digits", "resolution": 8},
        "model": {"block_out_channels": [8, 16], "levels": ["plain", "attention"]},
        "training": {
            "images": 160,
            "log_every_images": 16,
            "sample_every_images": 80,
            "checkpoint_every_images": 80,
        },
        "sampling": {"steps": 2},
    }
    sfumato.train("digits", out=tmp_path / "run", device="cpu", **settings)
    (output,) = pages
    assert len(output) == 10  # of each step but the first, and the end
    assert all(page.count("<progress") == 1 for page in output)
    assert 'value="32"' in output[0]
    assert "polyline" in output[0]
    assert "data:image/png" not in output[0]
    assert output[-1].count("data:image/png;base64,") == 1
    assert 'value="160"' in output[-1]
    places = re.search(r'points="([^"]*)"', output[-1])
    assert places
    assert len(places[1].split()) == 10


def test_a_curve_goes_from_corner_to_corner() -> None:
    assert 'points="0.0,0.0 480.0,120.0"' in loss_svg([(100, 2.0), (200, 1.0)])
    assert 'points="0.0,0.0 480.0,0.0"' in loss_svg([(100, 2.0), (200, 2.0)])
