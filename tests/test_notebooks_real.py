"""A lesson in a real Jupyter kernel: what a reader of the notebook sees.

It runs where these packages are installed: `make notebooks`.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.test_notebooks import LESSONS, QUICK, script_of

pytestmark = pytest.mark.notebooks
IMAGES = 2000
"""Enough for a curve: the log has a record every 640."""


def executed(lesson: str, folder: Path, **given: Any) -> list[list[dict[str, Any]]]:
    """The outputs of each code cell of a lesson that ran in a kernel of its own."""
    jupytext = pytest.importorskip("jupytext")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    (file,) = (one for one in LESSONS if one.stem == lesson)
    notebook = jupytext.reads(script_of(file, **given), fmt="py:percent")
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources=resources
    ).execute()
    cells = json.loads(jupytext.writes(notebook, fmt="ipynb"))["cells"]
    return [cell["outputs"] for cell in cells if cell["cell_type"] == "code"]


def test_the_lesson_on_digits_shows_its_progress_and_its_pictures(tmp_path: Path) -> None:
    _, train, *samples, measure = executed("digits", tmp_path, **QUICK | {"IMAGES": IMAGES})
    (progress,) = (one for one in train if one["output_type"] == "display_data")
    page = "".join(progress["data"]["text/html"])
    assert f"{IMAGES:,} of {IMAGES:,} images" in page
    assert "polyline" in page
    assert "data:image/png;base64," in page
    assert len(samples) == 3
    for outputs in samples:
        assert "image/png" in outputs[-1]["data"]
    assert "w = 3" in "".join(text for one in measure for text in one.get("text", ()))
