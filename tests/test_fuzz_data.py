"""Generated data sets: each is read or refused with a hint, and no image is lost without a line."""

import contextlib
import io
import json
import os
import re
import shutil
import tempfile
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from sfumato.base.errors import InputError, SfumatoError
from sfumato.cli.data import data_config, resolve_data
from sfumato.config.schema import load_experiment
from sfumato.config.sections import DataConfig
from sfumato.data.arrays import stored_columns, write_images
from sfumato.data.opening import open_images
from sfumato.data.prepare import prepare
from sfumato.data.records import load_records
from tests.generated import HEIC, encoded, folders, table_bytes, tables
from tests.pictures import noise, write_image, write_parquet

ALL = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
COMMON = settings(deadline=None, database=None, suppress_health_check=ALL, print_blob=True)
QUICK = settings(COMMON, max_examples=30, derandomize=True)
LINE = re.compile(r"warning: |error: |  -> |  ")
SOAK = settings(COMMON, max_examples=1000)


@pytest.fixture
def check(sfumato, capfd):
    """Generate a data set, open it by the command line, and compare the counts."""

    def run(layout, data: st.DataObject) -> None:
        place = Path(tempfile.mkdtemp(dir=Path.cwd()))
        try:
            root = place / "set"
            there = data.draw(layout(root))
            root.mkdir(exist_ok=True)
            found, left_out, shown = counts(sfumato, root, place / "picture.png")
            assert capfd.readouterr() == ("", ""), "a library printed"
            if found is not None:
                files = sorted(map(repr, root.rglob("*")))
                assert found + left_out == there, "\n".join([shown, *files])
        finally:
            shutil.rmtree(place)

    return run


def counts(sfumato, root: Path, picture: Path) -> tuple[int | None, int, str]:
    """Images found and left out, and what was printed; None where the data set was refused."""
    result = sfumato("data", "show", str(root), "--out", str(picture))
    text = result.out + result.err
    odd = [line for line in result.err.splitlines() if not LINE.match(line)]
    assert not odd, f"neither a warning nor an error of ours: {odd}"
    assert result.code in (0, 2, 3), text
    assert (result.code == 0) == trains(root), text
    refused = re.search(r"^error: .*", result.err, re.M | re.S)
    assert (result.code != 0) == bool(refused), text
    assert not refused or "\n  -> " in refused[0], f"no hint: {text}"
    event(f"ends with {result.code}, {'with' if picture.exists() else 'without'} a picture")
    if not picture.exists():
        return None, 0, text
    raw = open_images(data_config(str(root), ()))
    if raw.left_out:
        assert "left out" in result.err, text
    return raw.count, raw.left_out, text


def trains(root: Path) -> bool:
    """Whether `train` takes the data set."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            resolve_data(load_experiment("small", [f"data.source={json.dumps(str(root))}"]))
        except SfumatoError:
            return False
    return True


@QUICK
@given(st.data())
def test_folders(check, data: st.DataObject) -> None:
    check(folders, data)


@QUICK
@given(st.data())
def test_parquet(check, data: st.DataObject) -> None:
    check(tables, data)


@pytest.mark.soak
@pytest.mark.parametrize("layout", [folders, tables])
@SOAK
@given(data=st.data())
def test_two_thousand(check, layout, data: st.DataObject) -> None:
    check(layout, data)


# What generated data sets found -------------------------------------------------------------------

NO_UTF8 = os.fsdecode(b"\xff")


def small(source: Path, **changes) -> DataConfig:
    values = {"resolution": 8, "channels": 3, "caption": "A photo"}
    return DataConfig(**{"source": str(source), **values, **changes})


def write_pictures(folder: Path, count: int) -> None:
    for seed in range(count):
        write_image(folder / f"{seed}.png", noise(seed, (8, 8, 3)))


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_a_row_may_name_an_image_that_is_not_read_here(tmp_path: Path, name: str) -> None:
    write_pictures(tmp_path, 4)
    (tmp_path / "a.heic").write_bytes(HEIC)
    names = [f"{seed}.png" for seed in range(4)] + ["a.heic"]
    rows = [{"file_name": one, "text": "a bird"} for one in names]
    (tmp_path / name).write_bytes(table_bytes(name, rows, "text"))
    raw = open_images(small(tmp_path))
    assert (raw.count, raw.left_out) == (4, 1)
    assert [row.problem for row in raw.parts["all"].read(None)] == [""] * 4


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_a_name_may_hold_any_break_of_lines(tmp_path: Path, name: str) -> None:
    names = ["a\rb.png", "a\nb.png", "a\r\nb.png", "a\x85b.png", "a\u2028b.png"]
    for seed, one in enumerate(names):
        write_image(tmp_path / one, noise(seed, (8, 8, 3)))
    rows = [{"file_name": one, "text": "a bird"} for one in names]
    (tmp_path / name).write_bytes(table_bytes(name, rows, "text"))
    raw = open_images(small(tmp_path))
    assert [row.caption for row in raw.parts["all"].read(None)] == ["a bird"] * 5


def test_a_row_that_names_nothing_is_counted_with_its_part(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_pictures(tmp_path / part, 2)
    write_pictures(tmp_path, 1)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "gone.png", "text": "a"}')
    assert open_images(small(tmp_path)).left_out == 2


def test_files_and_folders_whose_names_are_not_utf8(tmp_path: Path) -> None:
    folder = tmp_path / NO_UTF8
    pictures = [encoded("PNG", "RGB", (8, 8), seed) for seed in range(6)]
    write_parquet(tmp_path / "plain" / "train.parquet", pictures, [0, 1] * 3)
    folder.mkdir()
    shutil.copy(tmp_path / "plain" / "train.parquet", folder / f"{NO_UTF8}.parquet")
    found = load_records(small(folder, test_share=0), "train")
    assert torch.equal(
        found.images[:], load_records(small(tmp_path / "plain", test_share=0), "train").images[:]
    )
    prepare(small(folder, test_share=0), folder / "prepared")
    ready = load_records(small(folder / "prepared", test_share=0), "train")
    assert torch.equal(ready.images[:], found.images[:])
    write_images((found.images[:].numpy(), ["a bird"] * 6), folder / "given")
    assert stored_columns(folder / "given") == ["image", "caption"]


def test_a_table_of_captions_in_such_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / NO_UTF8
    write_pictures(folder, 2)
    rows = [{"file_name": f"{seed}.png", "text": "a bird"} for seed in range(2)]
    (folder / "metadata.parquet").write_bytes(table_bytes("metadata.parquet", rows, "text"))
    raw = open_images(small(folder))
    assert [row.caption for row in raw.parts["all"].read(None)] == ["a bird", "a bird"]


def test_half_a_character_is_no_text(tmp_path: Path) -> None:
    write_pictures(tmp_path, 2)
    rows = [("0.png", "a bird"), ("1.png", "half \ud800"), ("\ud800.png", "a bird")]
    lines = [json.dumps({"file_name": name, "text": text}) for name, text in rows]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    problems = sorted(row.problem for row in open_images(small(tmp_path)).parts["all"].read(None))
    assert problems == ["", "its caption is not text", "its file_name is not text"]


def test_a_part_without_rows_is_refused(tmp_path: Path, refused) -> None:
    write_parquet(tmp_path / "train.parquet", [encoded("PNG", "RGB", (8, 8), 1)] * 3, [0, 1, 0])
    write_parquet(tmp_path / "test.parquet", [], [])
    with refused(InputError):
        open_images(small(tmp_path))


def test_images_of_any_format_beside_parquet_are_counted(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [encoded("PNG", "RGB", (8, 8), 1)] * 3, [0, 1, 0])
    (tmp_path / "a.heic").write_bytes(HEIC)
    (tmp_path / "plain").write_bytes(encoded("PNG", "RGB", (8, 8), 1))
    raw = open_images(small(tmp_path))
    assert raw.left_out == 2
    assert raw.notes[-1] == "2 image files are left out: Parquet is read instead."


def test_show_refuses_what_train_refuses(sfumato, tmp_path: Path) -> None:
    write_pictures(tmp_path / "cat", 8)
    write_pictures(tmp_path / "dog", 8)
    (tmp_path / "cat" / "broken.png").write_bytes(b"x")
    (tmp_path / "dog" / "empty.png").write_bytes(b"")
    shown = sfumato("data", "show", str(tmp_path), "--out", "a.png")
    trained = sfumato("train", "small", "--data", str(tmp_path), "--out", "run")
    assert (shown.code, trained.code) == (3, 3)
    assert "Training refuses this data set: " in shown.err
    assert "damaged rows, counted from 0" in shown.out
    assert Path("a.png").exists()
    allowed = sfumato("data", "show", str(tmp_path), "--set", "data.max_damaged=0.5")
    assert allowed.code == 0, allowed.err


def test_a_test_part_of_damage_alone_hides_nothing_else(sfumato, tmp_path: Path) -> None:
    write_pictures(tmp_path / "train" / "cat", 4)
    write_pictures(tmp_path / "train" / "dog", 4)
    (tmp_path / "test" / "cat").mkdir(parents=True)
    (tmp_path / "test" / "cat" / "broken.png").write_bytes(b"x")
    shown = sfumato("data", "show", str(tmp_path), "--out", "a.png")
    assert shown.code == 0, shown.err
    assert "warning: Of the part test: 1 of 1 row cannot be used" in shown.err
    assert "Images     train 8" in shown.out
