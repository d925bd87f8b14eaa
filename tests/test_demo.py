import re
from pathlib import Path

import pytest

QUICK = [
    "--set",
    "training.images=256",
    "--set",
    "data.resolution=8",
    "--set",
    "model.block_out_channels=[8,16]",
    "--set",
    "model.levels=[plain,attention]",
    "--set",
    "sampling.steps=2",
    "--set",
    "evaluation.count=20",
]


@pytest.fixture(scope="module")
def demo(sfumato, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "runs" / "demo"
    return folder, sfumato("demo", "--out", str(folder), *QUICK)


def test_the_demo_trains_draws_measures_and_reports(demo) -> None:
    folder, result = demo
    assert result.code == 0, result.err
    assert str(folder / "report.html") in result.out
    assert (folder / "grid.png").stat().st_size > 1000
    assert (folder / "evaluation" / "card.json").exists()


def test_the_report_is_self_contained(demo) -> None:
    page = (demo[0] / "report.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) >= 6
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    for word in ("sfumato demo --out", "torch", "sha256", "95 %", "w = 5", "A handwritten digit"):
        assert word in page


def test_held_out_captions_take_turns_and_stand_on_the_card(demo, sfumato) -> None:
    import json

    folder, _ = demo
    result = sfumato("evaluate", str(folder), "--held-out", "--count", "50", "--scales", "2")
    assert result.code == 0, result.err
    card = json.loads((folder / "evaluation-held-out" / "card.json").read_text())
    captions = card["subject"]["captions"]
    assert captions[0] == "the number {word}, handwritten"
    assert len(captions) == 4
    assert captions[0] in result.out.replace("\n", " ")
    kept = json.loads((folder / "evaluation" / "card.json").read_text())
    assert kept["subject"]["captions"] == ["A handwritten digit {label}"]


def test_called_again_it_is_finished_and_touches_nothing(demo, sfumato) -> None:
    folder, _ = demo
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    again = sfumato("demo", "--out", str(folder), *QUICK)
    assert again.code == 0, again.err
    assert "finished" in again.out
    assert str(folder / "report.html") in again.out
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()} == before


@pytest.mark.slow
def test_fresh_starts_a_new_folder(demo, sfumato) -> None:
    folder: Path = demo[0]
    result = sfumato("demo", "--out", str(folder), "--fresh", *QUICK)
    assert result.code == 0, result.err
    assert len([path for path in folder.parent.iterdir() if path.name.startswith("demo")]) == 2
