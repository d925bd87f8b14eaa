"""Generated data sets: each is read or refused with a hint, and no image is lost without a line."""

import contextlib
import io
import json
import re
import shutil
import tempfile
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from sfumato.base.errors import SfumatoError
from sfumato.cli.data import data_config, resolve_data
from sfumato.config.schema import load_experiment
from sfumato.data.opening import open_images
from tests.generated import folders, tables

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
