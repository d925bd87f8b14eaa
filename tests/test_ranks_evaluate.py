"""An evaluation by several processes: the same card as by one."""

import contextlib
import json
import os
from pathlib import Path

import pytest

from sfumato.base import lock

OPTIONS = (
    *("--count", "80", "--scales", "1,2", "--device", "cpu"),
    *("--set", "evaluation.classifier=untrained", "--set", "evaluation.extractors=small-clip"),
    *("--set", "sampling.steps=2"),
)


def measured(folder: Path) -> list[dict]:
    return [row["metrics"] for row in json.loads((folder / "card.json").read_text())["rows"]]


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_folder_in_use_is_refused_or_waited_for(
    small_run: Path, tmp_path: Path, sfumato, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "card"
    arguments = ("evaluate", str(small_run), *OPTIONS, "--out", str(out))
    sfumato(*arguments)
    card = (out / "card.json").read_bytes()
    (out / "card.json").unlink()
    monkeypatch.setattr(lock, "WAIT_SECONDS", 0.2)
    with lock.locked(out):
        refused = sfumato(*arguments)
    assert refused.code == 2
    assert f"process {os.getpid()}" in refused.err

    @contextlib.contextmanager
    def late(folder: Path):
        """Another process finished the evaluation while this one waited for the lock."""
        with lock.locked(folder):
            (folder / "card.json").write_bytes(card)
            yield

    monkeypatch.setattr("sfumato.evaluation.evaluate.locked", late)
    monkeypatch.setattr(
        "sfumato.evaluation.evaluate.complete", lambda *a, **k: pytest.fail("again")
    )
    found = sfumato(*arguments)
    assert found.code == 0
    assert "From the cache" in found.out
