"""The paper's figures from a run."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from inspect import signature
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.cli.figures import figures
from sfumato.data.records import Records
from sfumato.generation.loading import load
from sfumato.generation.model import Model
from sfumato.generation.samples import Samples
from sfumato.paper.figures import CIFAR10, MNIST, SEED, Sources, experiment_of, grid_of
from sfumato.text.encoder import NULL
from tests.conftest import CommandResult

Sfumato = Callable[..., CommandResult]


def test_every_figure_and_one_page(sfumato: Sfumato, small_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures"
    found = sfumato("figures", str(small_run), "--out", str(out))
    assert found.code == 0, found.err
    for name in MNIST:
        with Image.open(out / f"figure-{name}.png") as picture:
            assert min(picture.size) > 100
    page = (out / "figures.html").read_text()
    assert page.count("data:image/png;base64,") == len(MNIST)
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.png")}
    assert sfumato("figures", str(small_run), "--out", str(out)).code == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.png")} == before
    other = sfumato("figures", str(small_run), "--out", str(out), "--steps", "2")
    assert other.code == 0, other.err
    assert (tmp_path / "figures-2" / "figures.html").exists()
    pipeline = sfumato("figures", str(small_run / "model"))
    assert pipeline.code == 2
    assert "Figures need a run" in pipeline.err


@dataclass
class Recorder:
    """Samples grey squares, and records what it was asked for."""

    asked: list[tuple[list[str], list[int], float]] = field(default_factory=list)

    def sample(self, prompts, seeds, *, guidance: float) -> Samples:
        self.asked.append((list(prompts), list(seeds), guidance))
        grey = torch.full((len(prompts), 1, 8, 8), 128, dtype=torch.uint8)
        return Samples(tensor=grey, x0=grey, settings=[{"w": guidance}] * len(prompts), nfe=1)


def test_figures_ask_for_the_papers_seed_scales_and_prompts(digits8: Records) -> None:
    """Seeds from 422 on, the same in figures 2, 4 and 5; "without guidance" is w = 1."""
    assert SEED == 422
    assert signature(figures).parameters["seed"].default == SEED
    sources = Sources(model=Recorder(), folder=Path(), training=digits8)  # type: ignore[arg-type]
    captions = [f"digit {digit}" for digit in range(10)]

    def asked(name: str) -> list[tuple[list[str], list[int], float]]:
        sources.model.asked.clear()  # type: ignore[attr-defined]
        {**MNIST, **CIFAR10}[name].make(sources)
        return list(sources.model.asked)  # type: ignore[attr-defined]

    rows = [list(range(422 + start, 432 + start)) for start in (0, 10, 20, 30)]
    assert asked("2-guided") == [(captions, seeds, 5) for seeds in rows]
    assert asked("4-unguided") == [(captions, seeds, 1) for seeds in rows]
    assert asked("5-empty-prompts") == [([""] * 10, seeds, 5) for seeds in rows]
    for name, scales in (
        ("7-scales", (0, 1, 2, 3, 5, 10, 20)),
        ("7-scales-of-the-text", (0, 5, 10, 20, 50, 100)),
    ):
        assert asked(name) == [(captions, rows[0], scale) for scale in scales]
    for name, scale in (("9-w0", 0), ("10-w2", 2), ("11-w5", 5), ("12-w10", 10)):
        assert asked(name) == [
            ([caption] * 10, list(range(422 + 10 * row, 432 + 10 * row)), scale)
            for row, caption in enumerate(captions)
        ]
    assert asked("13-examples") == [(captions, seeds, 5) for seeds in rows]


def test_photos_have_the_figures_of_cifar10(
    sfumato: Sfumato, small_run: Path, digits8: Records, tmp_path: Path
) -> None:
    assert experiment_of(digits8) == "mnist"
    assert experiment_of(replace(digits8, images=digits8.images.expand(-1, 3, -1, -1))) == "cifar10"
    out = tmp_path / "figures"
    found = sfumato(
        "figures", str(small_run), "--like", "cifar10", "--steps", "1", "--out", str(out)
    )
    assert found.code == 0, found.err
    assert {path.stem for path in out.glob("*.png")} == {f"figure-{name}" for name in CIFAR10}
    wrong = sfumato("figures", str(small_run), "--like", "wikiart")
    assert wrong.code == 2
    assert "mnist" in wrong.err
    assert "cifar10" in wrong.err


@pytest.mark.parametrize("sampler", ["DDIM", "DDPM"])
def test_figure_5_is_that_of_w_0(small_run: Path, digits8: Records, sampler: str) -> None:
    """The figure itself, every pixel of it; DDPM, the paper's, adds noise in every step."""
    model = load(small_run, device="cpu").with_(sampler=sampler, steps=6)
    sources = Sources(model=model, folder=small_run, training=digits8)
    rows = sources.rows([sources.captions] * 4, scale=0.0)
    figure = MNIST["5-empty-prompts"].make(sources)
    unconditional = grid_of(rows, [""] * 4, [""] * 10)
    first, second = (np.asarray(Image.open(BytesIO(png))) for png in (figure, unconditional))
    assert np.array_equal(first, second)
    assert first.std() > 20


def test_empty_prompts_do_not_depend_on_guidance(small_model: Model) -> None:
    """Figure 5 of the paper: both branches are the same, so w = 5 gives the images of w = 0."""
    guided = small_model.sample([NULL] * 2, [422, 423], guidance=5.0)
    unconditional = small_model.sample(["A handwritten digit 3"] * 2, [422, 423], guidance=0.0)
    assert torch.equal(guided.tensor, unconditional.tensor)
