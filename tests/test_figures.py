"""The paper's figures from a run."""

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from sfumato.generation import ImageGenerator
from sfumato.report.figures import FIGURES
from sfumato.text.prompts import NULL
from tests.conftest import CommandResult

Sfumato = Callable[..., CommandResult]


def test_every_figure_and_one_page(sfumato: Sfumato, small_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures"
    found = sfumato("figures", str(small_run), "--out", str(out))
    assert found.code == 0, found.err
    for name in FIGURES:
        with Image.open(out / f"figure-{name}.png") as picture:
            assert min(picture.size) > 100
    page = (out / "figures.html").read_text()
    assert page.count("data:image/png;base64,") == len(FIGURES)
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.png")}
    assert sfumato("figures", str(small_run), "--out", str(out)).code == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.png")} == before
    other = sfumato("figures", str(small_run), "--out", str(out), "--steps", "2")
    assert other.code == 0, other.err
    assert (tmp_path / "figures-2" / "figures.html").exists()
    pipeline = sfumato("figures", str(small_run / "pipeline"))
    assert pipeline.code == 2
    assert "Figures are drawn from a run" in pipeline.err


def test_empty_prompts_do_not_depend_on_guidance(small_generator: ImageGenerator) -> None:
    """Figure 5 of the paper: both branches are the same, so w = 5 draws the images of w = 0."""
    guided, unconditional = (
        [picture.image for picture in small_generator.draw(prompts, [422, 423], guidance_scale=w)]
        for prompts, w in (([NULL] * 2, 5.0), (["A handwritten digit 3"] * 2, 0.0))
    )
    assert torch.equal(torch.stack(guided), torch.stack(unconditional))
