"""Table 1 by the paper's protocol and by one that can be believed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sfumato.base.errors import InputError
from sfumato.evaluation.extractors.extractor import WeightsNotAtHandError
from sfumato.evaluation.extractors.vision import load_resnet_body
from sfumato.evaluation.untrained import accuracies_by_seed, over_seeds
from tests.conftest import CommandResult
from tests.messages import IN_BRACKETS

Sfumato = Callable[..., CommandResult]


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ResNet with random weights in the files of the Hub's."""
    from transformers import ResNetConfig, ResNetForImageClassification

    folder = tmp_path_factory.mktemp("resnet") / "resnet"
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=5
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ResNetForImageClassification(config).save_pretrained(folder)
    return folder


def test_both_ends_depend_on_the_seed_and_the_body_is_the_files(resnet: Path) -> None:
    from transformers import ResNetForImageClassification

    images = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8)
    body = load_resnet_body(str(resnet))
    first, again, other = (body.logits(images, classes=10, seed=seed) for seed in (0, 0, 1))
    assert first.shape == (12, 10)
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert torch.equal(load_resnet_body(str(resnet)).logits(images, classes=10, seed=0), first)
    theirs = ResNetForImageClassification.from_pretrained(resnet).resnet.state_dict()
    ours = body.model.state_dict()
    changed = {name for name in theirs if not torch.equal(theirs[name], ours[name])}
    assert changed == {"embedder.embedder.convolution.weight"}
    assert ours["embedder.embedder.convolution.weight"].shape == (8, 3, 3, 3)
    grey = body.logits(images[:, :1], classes=10, seed=0)
    assert torch.allclose(
        grey, body.logits(images[:, :1].expand(-1, 3, -1, -1), classes=10, seed=0)
    )


def test_another_model_or_none_is_reported(resnet: Path, tmp_path: Path, refused) -> None:
    config = json.loads((resnet / "config.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps(config | {"model_type": "vit"}))
    with refused(InputError):
        load_resnet_body(str(other))
    with refused(WeightsNotAtHandError, theirs=IN_BRACKETS):
        load_resnet_body("microsoft/resnet-18")


def test_heads_are_counted_over_their_seeds() -> None:
    labels = torch.arange(10)

    def logits(seed: int) -> torch.Tensor:
        """Right for the first `seed` of ten."""
        seen = torch.where(labels < seed, labels, (labels + 1) % 10)
        return torch.nn.functional.one_hot(seen, 10).float()

    found = over_seeds(accuracies_by_seed(logits, labels, count=5), classes=10)
    assert (found.low, found.value, found.high) == (0, pytest.approx(0.2), 0.4)
    assert found.details["chance"] == 0.1


@pytest.mark.slow
def test_the_table_measures_the_images_of_an_evaluation(
    sfumato: Sfumato, small_run: Path, resnet: Path, tmp_path: Path
) -> None:
    out = tmp_path / "table"
    command = (
        *("table1", str(small_run), "--count", "60", "--scales", "0,2", "--steps", "2"),
        *("--set", f"evaluation.features.resnet={resnet}", "--out", str(out)),
        *("--set", "evaluation.extractors=classifier"),
    )
    found = sfumato(*command)
    assert found.code == 0, found.err
    table = json.loads((out / "table1.json").read_text())
    card = json.loads((out / "card.json").read_text())
    assert [row["title"] for row in table["rows"]] == ["w = 0", "w = 2", "real training images"]
    for row, measured in zip(table["rows"], card["rows"], strict=False):
        assert row["class_accuracy"] == measured["metrics"]["class_accuracy"]
        assert row["frechet"] == measured["metrics"]["frechet.classifier"]
        assert row["paper"]["fid"] is None
        low, mean, high = (row["paper"]["heads"][name] for name in ("low", "value", "high"))
        assert 0 <= low <= mean <= high <= 1
    assert "weights of FID's Inception are not at hand" in table["missing"]["fid"]
    assert table["sampled"].endswith(" in 2 steps")
    assert f"sampled by {table['sampled']}" in (out / "table1.md").read_text()
    assert "| real images |" in (out / "table1.md").read_text()
    assert all(row["class_accuracy"] is None for row in table["rows"][2:])
    broken = sfumato(
        *command[:2], "--set", f"evaluation.features.resnet={tmp_path}", "--steps", "2"
    )
    assert broken.code != 0
    assert "images" not in broken.out  # reported before anything is sampled
    assert sfumato(*command).code == 0
    assert json.loads((out / "table1.json").read_text())["rows"] == table["rows"]
    too_many = sfumato(*command[:2], "--count", "2000", *command[4:])
    assert too_many.code == 2
    nothing = sfumato("table1", str(tmp_path / "none"))
    assert nothing.code == 2
    assert "does not exist" in nothing.err
