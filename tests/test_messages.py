"""The file of messages: entries of tests that exist, without what varies; how it is compared."""

import ast
import functools
from pathlib import Path

import pytest
import yaml

from sfumato.base.errors import InputError
from tests import messages
from tests.messages import FILE, PLACES, Messages, normalised, printed

BY_TEST = {"test_a.py::test_one": ["InputError: 2 images: too few.", "InputError: 3."]}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "messages.yaml"
    file.write_text(yaml.safe_dump(BY_TEST))
    monkeypatch.setattr(messages, "FILE", file)
    return file


def test_each_entry_is_of_a_test_that_exists() -> None:
    """An entry whose test is gone or has another name is removed by hand."""
    entries = yaml.safe_load(FILE.read_text("utf-8"))
    assert list(entries) == sorted(entries)
    for entry in entries:
        file, name = entry.partition("[")[0].split("::")
        assert name in defined_in(FILE.parent / file), entry


@functools.cache
def defined_in(file: Path) -> set[str]:
    tree = ast.parse(file.read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_no_place_of_this_machine_is_in_the_file() -> None:
    text = FILE.read_text("utf-8")
    for place in PLACES:
        assert f"{place}/" not in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/base/popen-gw1/test_a_b_0/run/model is", "TMP/run/model is"),
        ("/base/test_a_b_0 is", "TMP is"),
        ("/base/small/model", "TMP/small/model"),
        *((f"{place}/x in {place}.", f"{name}/x in {name}.") for place, name in PLACES.items()),
        (f"{'a1' * 32} of {2**63}", f"SHA256 of {2**63}"),
        (
            "http://127.0.0.1:40455/a, http://127.0.0.1:9/b",
            "http://127.0.0.1:PORT/a, http://127.0.0.1:9/b",
        ),
        ("<Object at 0x7f2a00ff1234>, 0x1", "<Object at ADDRESS>, 0x1"),
    ],
    ids=["worker", "test", "shared", *PLACES.values(), "hash", "port", "address"],
)
def test_what_varies_is_left_out(text: str, expected: str) -> None:
    assert normalised(text, Path("/base")) == expected


def test_a_message_is_compared_whole_and_in_order(file: Path) -> None:
    first, second = BY_TEST["test_a.py::test_one"]
    found = Messages(write=False)
    assert found.meet("test_a.py::test_one", first) == ""
    assert "met 1 of its 2 messages" in found.finish("test_a.py::test_one")
    assert found.meet("test_a.py::test_one", second) == ""
    assert found.finish("test_a.py::test_one") == ""
    wrong = found.meet("test_a.py::test_one", first)  # one more than the file has
    assert f"+ {first}" in wrong
    assert "--write-messages tests/test_a.py" in wrong
    other = Messages(write=False).meet("test_a.py::test_one", first.replace("2", "4"))
    assert "- InputError: 2 images: too few." in other
    assert "+ InputError: 4 images: too few." in other


def test_only_entries_of_tests_that_passed_are_written(file: Path) -> None:
    new = Messages(write=True)
    for test in ("test_b.py::test_failed", "test_a.py::test_two"):
        assert new.meet(test, printed(InputError("No: such\n  file.", hint="Make it."))) == ""
    new.finish("test_a.py::test_two")
    new.save()
    text = "InputError: No: such\n  file.\n-> Make it."
    assert yaml.safe_load(file.read_text()) == BY_TEST | {"test_a.py::test_two": [text]}
    assert "- |-\n  InputError: No: such\n    file.\n  -> Make it.\n" in file.read_text()
    gone = Messages(write=True)
    gone.finish("test_a.py::test_two")  # it expects no error any more
    gone.save()
    assert yaml.safe_load(file.read_text()) == BY_TEST
