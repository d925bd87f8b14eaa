"""An evaluation by several processes: the same card as by one."""

import json
import os
from pathlib import Path

import pytest

OPTIONS = (
    *("--count", "80", "--scales", "1,2", "--device", "cpu"),
    *("--set", "evaluation.classifier=untrained", "--set", "evaluation.extractors=small-clip"),
    *("--set", "sampling.steps=2"),
)


def measured(folder: Path) -> list[dict]:
    return [row["metrics"] for row in json.loads((folder / "card.json").read_text())["rows"]]


def test_two_processes_share_the_images_and_give_the_same_card(
    small_run: Path, sfumato, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as this process has it: the same bits
    assert sfumato("evaluate", str(small_run), *OPTIONS, "--out", str(tmp_path / "one")).code == 0
    arguments = ("evaluate", str(small_run), *OPTIONS, "--out", str(tmp_path / "two"))
    assert sfumato(*arguments, "--processes", "2").code == 0
    assert measured(tmp_path / "two") == measured(tmp_path / "one")
    names = [
        sorted(p.name for p in tmp_path.glob(f"{n}/images/*/*.safetensors")) for n in ("one", "two")
    ]
    assert names[0] == names[1]
    assert len(names[0]) == 4
    assert "RANK" not in os.environ


def test_a_folder_in_use_is_refused(small_run: Path, tmp_path: Path, sfumato) -> None:
    from sfumato.base.lock import locked

    out = tmp_path / "card"
    sfumato("evaluate", str(small_run), *OPTIONS, "--out", str(out))
    (out / "card.json").unlink()
    with locked(out):
        refused = sfumato("evaluate", str(small_run), *OPTIONS, "--out", str(out))
    assert refused.code == 2
    assert f"process {os.getpid()}" in refused.err
