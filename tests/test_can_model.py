"""A CAN where any other model can stand: evaluate, compare, evolve, the commands."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from sfumato.base.errors import InputError
from sfumato.base.images import settings_in_png
from sfumato.evaluation.compare import compare
from sfumato.evaluation.evaluate import evaluate
from sfumato.generation.can import CAN_TITLE
from sfumato.generation.genome import Genome, genome_in_png, sample_genomes
from sfumato.generation.loading import load
from sfumato.interactive.evolution import Evolution
from sfumato.methods.registry import run_experiment
from tests.conftest import CommandResult
from tests.test_can import tiny

Sfumato = Callable[..., CommandResult]
MEASURED = {"count": 40, "classifier": "untrained", "extractors": ("classifier",), "device": "cpu"}


@pytest.fixture(scope="module")
def runs(together: Path) -> Path:
    """A folder with a conditional CAN and one without classes."""
    folder = together / "cans"
    with FileLock(together / "cans.lock"):
        for name, conditional in (("classes", True), ("plain", False)):
            changes = {"network.conditional": conditional, "data.caption": "digit {label}"}
            run_experiment(tiny(**changes), folder / name, device="cpu")
    return folder


def test_evaluation(runs: Path, tmp_path: Path, refused) -> None:
    """One row without guidance; the class accuracy is that of the classes that were asked for."""
    with_classes = evaluate(runs / "classes", out=tmp_path / "a", **MEASURED)
    plain = evaluate(runs / "plain", out=tmp_path / "b", **MEASURED)
    for card in (with_classes, plain):
        (row,) = card.rows
        assert (row.title, row.nfe, row.count) == (CAN_TITLE, 1, 40)
        assert "guidance_scale" not in row.settings
        names = {key.partition(".")[0] for key in row.metrics}
        assert {"frechet", "precision", "recall", "density", "coverage", "memorised_share"} <= names
        assert "seeds 0-39;" in str(card).replace("\n", " ")
    assert "diversity.classifier" in with_classes.rows[0].metrics
    assert "class_accuracy" not in plain.rows[0].metrics
    model = load(runs / "classes", device="cpu")
    captions = [f"digit {number % 10}" for number in range(40)]
    from safetensors.torch import load_file

    (file,) = (tmp_path / "a" / with_classes.rows[0].images).glob("*.safetensors")
    kept = load_file(file)["images"]
    assert torch.equal(kept, model.sample(captions, range(40)).tensor)
    with refused(InputError):
        evaluate(runs / "plain", guidance_scales=[2], **MEASURED)
    with refused(InputError):
        evaluate(runs / "plain", overrides=["sampling.steps=3"], **MEASURED)


def test_comparison(runs: Path, small_run: Path, tmp_path: Path, refused) -> None:
    """With another CAN and with a diffusion model, whose captions are others."""
    given = {**MEASURED, "extractors": ("classifier",)}
    found = compare(str(runs / "classes"), str(runs / "plain"), **given)
    assert found.names == ("classes", "plain")
    assert found.difference("frechet.classifier").difference != 0
    other = compare(str(runs / "classes"), f"{small_run}@1", out=tmp_path / "page", **given)
    assert other.second["guidance_scale"] == 1
    assert "guidance_scale" not in other.first
    accuracy = other.difference("class_accuracy")
    assert accuracy.only_first is not None
    both = compare(str(runs / "classes"), str(small_run), guidance=1, **given)
    assert both.differences == other.differences
    with refused(InputError):
        compare(f"{runs / 'classes'}@3", str(runs / "plain"), **given)


def test_evolution(runs: Path, tmp_path: Path) -> None:
    """z is combined; the captions of parents mix the classes' embeddings."""
    model = load(runs / "classes", device="cpu")
    samples = sample_genomes(model, [Genome.of_seed(5, "digit 3")])
    assert torch.equal(samples.x0, model.sample("digit 3", 5).x0)
    mixed = Genome.of_seed(5, "digit 3").first
    both = sample_genomes(model, [Genome(mixed, (("digit 3", 0.25), ("digit 4", 0.75)))])
    z = torch.randn(1, 6, generator=torch.Generator().manual_seed(5))
    weights = model.network.embed.weight
    wanted = model.network.drawn(z, 0.25 * weights[3:4] + 0.75 * weights[4:5])
    torch.testing.assert_close(both.x0, wanted, atol=1e-6, rtol=0)
    histories = []
    for name in ("a", "b"):
        history = Evolution.begin(model, ["digit 3", "digit 4"], tmp_path / name, size=6)
        history.advance([1, 2])
        histories.append(Evolution.resume(model, tmp_path / name))
    assert histories[0].generations == histories[1].generations
    last = histories[0].generations[-1].images[2]
    again = sample_genomes(model, [genome_in_png(histories[0].path(last))])
    assert again.png(0) == histories[0].path(last).read_bytes()


def test_simulated_users_without_a_prompt(sfumato: Sfumato, runs: Path, tmp_path: Path) -> None:
    """A CAN without classes takes none."""
    short = ("--targets", "20", "--population", "20", "--generations", "1", "--picks", "1")
    options = (*short, "--attributes", "brightness", "--size", "6", "--device", "cpu")
    found = sfumato("bench", "evolution", str(runs / "plain"), *options, cwd=tmp_path)
    assert found.code == 0, found.err
    assert "spread of an attribute over its images;" in found.out.replace("\n", " ")


def test_commands(sfumato: Sfumato, runs: Path, tmp_path: Path) -> None:
    classes, plain = str(runs / "classes"), str(runs / "plain")
    found = sfumato("sample", classes, "--count", "2", "--out", "all", cwd=tmp_path)
    assert found.code == 0, found.err
    assert len(list((tmp_path / "all").glob("*.png"))) == 20
    assert found.err == ""
    found = sfumato("sample", plain, "--count", "3", "--out", "plain", cwd=tmp_path)
    assert found.code == 0, found.err
    names = sorted(path.name for path in (tmp_path / "plain").glob("*.png"))
    assert names == [f"tiny-seed{seed}.png" for seed in range(3)]
    assert settings_in_png(tmp_path / "plain" / names[0])["prompt"] == ""
    for arguments in (
        ("sample", classes, "a horse"),
        ("sample", classes, "3", "--guidance", "2"),
        ("sample", plain, "3"),
        ("grid", classes),
        ("nfe", classes),
        ("curve", classes),
        ("export", classes, "--out", "page", "--space"),
    ):
        found = sfumato(*arguments, cwd=tmp_path)
        assert found.code == 2, (arguments, found.out)
        assert found.err.startswith("error: "), found.err
    found = sfumato("export", classes, "--out", "exported", cwd=tmp_path)
    assert found.code == 0, found.err
    found = sfumato("sample", "exported", "digit 3", "--seed", "5", "--out", "again", cwd=tmp_path)
    assert found.code == 0, found.err
    model = load(classes, device="cpu")
    (file,) = (tmp_path / "again").glob("*.png")
    assert file.read_bytes() == model.sample("digit 3", 5).png(0)
    found = sfumato("evolve", plain, "--picks", "1 2", "--size", "6", cwd=tmp_path)
    assert found.code == 0, found.err
    assert (tmp_path / "evolution" / "generation-001.png").is_file()
