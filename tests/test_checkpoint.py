import shutil
import warnings
from pathlib import Path

import pytest
import torch

from sfumato.base.errors import ConfigError, DamagedDataError, SfumatoError
from sfumato.base.files import (
    TEMPORARY_PREFIX,
    remove_incomplete,
    sibling,
    whole_folder,
    write_bytes,
)
from sfumato.training.checkpoint import (
    Checkpoints,
    ResumeWarning,
    load_part,
    warn_of_changed_environment,
)
from tests.messages import THIS_MACHINE


def parts(value: float = 0.0) -> dict:
    model = torch.nn.Linear(4, 3)
    torch.nn.init.constant_(model.weight, value)
    return {"model": model, "optimizer": torch.optim.AdamW(model.parameters())}


def states(value: float = 0.0) -> dict:
    return {name: part.state_dict() for name, part in parts(value).items()}


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    made = Checkpoints(tmp_path / "checkpoints", keep=2)
    for images in (10, 20):
        made.save(states(images), images_seen=images, extra={"step": images // 10})
    return made


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


class Killed(BaseException):
    pass


class Dying(dict):
    """A state at which a save breaks off."""

    def items(self):
        raise Killed


def images(checkpoints: Checkpoints) -> list[int]:
    return [checkpoint.images_seen for checkpoint in checkpoints.all()]


def test_latest_is_loaded_as_it_was_saved(checkpoints: Checkpoints) -> None:
    checkpoint = checkpoints.latest()
    assert checkpoint is not None
    loaded = parts()
    for name, state in checkpoint.states(loaded).items():
        load_part(loaded[name], state, file=checkpoint.path / name)
    assert float(loaded["model"].weight.detach().mean()) == 20
    assert checkpoint.state["step"] == 2


def test_only_the_newest_are_kept(checkpoints: Checkpoints) -> None:
    checkpoints.save(states(30), images_seen=30, extra={})
    assert images(checkpoints) == [20, 30]
    Checkpoints(checkpoints.folder, keep=1).save(states(40), images_seen=40, extra={})
    assert images(checkpoints) == [40]
    assert [path.name for path in checkpoints.folder.iterdir()] == ["images-000000040"]


@pytest.mark.parametrize("keep", [1, 2])
def test_the_last_good_one_stays_until_a_newer_is_whole(
    checkpoints: Checkpoints, keep, warned
) -> None:
    """Also where a damaged one lies between them; that one goes, because the run passed it over."""
    checkpoints.keep = keep
    truncate(checkpoints.folder / "images-000000020" / "model.safetensors")
    with warned(ResumeWarning):
        good = checkpoints.latest()
    assert good is not None
    checkpoints.remove_old(before=good.path)
    with pytest.raises(Killed):
        checkpoints.save({**states(), "dying": Dying()}, images_seen=15, extra={})
    assert images(checkpoints) == [10, 20]
    checkpoints.save(states(15), images_seen=15, extra={})
    assert images(checkpoints) == ([15] if keep == 1 else [10, 15])
    latest = checkpoints.latest()
    assert latest is not None
    assert latest.images_seen == 15


def test_a_kill_while_an_old_one_is_removed_leaves_no_half_of_it(
    checkpoints: Checkpoints, monkeypatch
) -> None:
    def dying(path: Path, **options: bool) -> None:
        (path / "images-000000010" / "model.safetensors").unlink()
        raise Killed

    monkeypatch.setattr("shutil.rmtree", dying)
    with pytest.raises(Killed):
        checkpoints.save(states(30), images_seen=30, extra={})
    assert images(checkpoints) == [20, 30]


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "state"])
def test_a_damaged_newest_falls_back_and_says_so(
    checkpoints: Checkpoints, damage: str, warned
) -> None:
    newest = checkpoints.folder / "images-000000020"
    file = newest / "model.safetensors"
    if damage == "truncate":
        truncate(file)
    elif damage == "flip":
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    elif damage == "remove":
        file.unlink()
    else:
        truncate(newest / "state.json")
    with warned(ResumeWarning, theirs=r"(?<=not valid JSON: ).*(?=\. Using)"):
        checkpoint = checkpoints.latest()
    assert checkpoint is not None
    assert checkpoint.images_seen == 10


def test_only_damaged_ones_is_an_error_with_exit_code_3(checkpoints: Checkpoints, refused) -> None:
    for checkpoint in checkpoints.all():
        truncate(checkpoint.path / "model.safetensors")
    with refused(DamagedDataError) as caught:
        checkpoints.latest()
    assert caught.value.exit_code == 3


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path).latest() is None


def test_another_architecture_is_named(checkpoints: Checkpoints, refused) -> None:
    checkpoint = checkpoints.latest()
    assert checkpoint is not None
    with refused(ConfigError):
        load_part(
            torch.nn.Linear(4, 5),
            checkpoint.states(["model"])["model"],
            file=checkpoint.path / "model.safetensors",
        )


def test_a_kill_while_saving_leaves_the_old_ones_and_no_half(checkpoints: Checkpoints) -> None:
    with pytest.raises(Killed):
        checkpoints.save({**states(), "dying": Dying()}, images_seen=30, extra={})
    assert images(checkpoints) == [10, 20]
    half = checkpoints.folder / f"{TEMPORARY_PREFIX}abc"
    shutil.copytree(checkpoints.folder / "images-000000020", half)
    remove_incomplete(checkpoints.folder)
    assert not half.exists()


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "model") as folder:
        (folder / "old").write_text("old")
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "model") as folder:
        raise RuntimeError
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["old"]
    with whole_folder(tmp_path / "model") as folder:
        (folder / "new").write_text("new")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_beside_another_even_beside_this_one(tmp_path: Path, monkeypatch) -> None:
    assert sibling(tmp_path / "curve", "images") == tmp_path / "curve-images"
    inside = tmp_path / "inside"
    inside.mkdir()
    monkeypatch.chdir(inside)
    assert sibling(Path("."), "2") == tmp_path / "inside-2"


def test_a_full_device_is_told_and_nothing_is_lost(tmp_path: Path, monkeypatch, refused) -> None:
    target = tmp_path / "file"
    write_bytes(target, b"before")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with refused(SfumatoError):
        write_bytes(target, b"after")
    assert target.read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("threads", 99), ("torch", "1.0"), ("python", "2.7"), ("instruction_set", "NEON")],
)
def test_another_machine_is_a_warning(checkpoints: Checkpoints, name: str, value, warned) -> None:
    """What is compared is what a checkpoint recorded."""
    checkpoint = checkpoints.latest()
    assert checkpoint is not None
    recorded = checkpoint.state["environment"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_changed_environment(recorded)
    with warned(ResumeWarning, theirs=THIS_MACHINE):
        warn_of_changed_environment({**recorded, name: value})


def test_a_copy_that_somebody_made_is_no_checkpoint(tmp_path: Path) -> None:
    for name in ("images-000000100", "images-000000200", "images-000000200-copy", "images-best"):
        (tmp_path / name).mkdir()
    assert Checkpoints(tmp_path).counts() == [100, 200]
