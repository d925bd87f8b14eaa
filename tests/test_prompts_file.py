"""`sfumato sample --prompts-file` and `--negative-prompt`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato.base.errors import InputError
from sfumato.base.images import settings_in_png
from sfumato.base.lock import locked
from sfumato.base.progress import Progress
from sfumato.generation.collection import groups_of, without_those_in
from sfumato.generation.prompts_file import PromptLine, read_prompts


def pngs(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*.png")}


def written(folder: Path) -> list[dict[str, str]]:
    return [settings_in_png(file) for file in sorted(folder.glob("*.png"))]


# Reading ------------------------------------------------------------------------------------------


def test_a_line_is_a_prompt(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    text = '\ufeffa seven\r\n\r\n  3 \u00e9t\u00e9s #1, "quoted"\t\n # a comment\n#\nlast'
    file.write_bytes(text.encode())
    assert read_prompts(file) == [
        (1, PromptLine(prompt="a seven")),
        (3, PromptLine(prompt='3 \u00e9t\u00e9s #1, "quoted"')),
        (6, PromptLine(prompt="last")),
    ]


def test_json_after_a_plain_prompt_is_refused(tmp_path: Path, refused) -> None:
    """It would be sampled as a prompt, and its settings be lost."""
    file = tmp_path / "prompts.txt"
    file.write_text('A handwritten digit 1\n{"prompt": "A handwritten digit 2", "guidance": 9}\n')
    with refused(InputError):
        read_prompts(file)


@pytest.mark.parametrize("name", ["prompts.jsonl", "prompts.txt"])
def test_json_lines_carry_settings(tmp_path: Path, name: str) -> None:
    every = {"prompt": "7", "seed": 2**62, "guidance": 2, "steps": 3, "sampler": "ddim"}
    every |= {"negative_prompt": "3", "count": 4}
    file = tmp_path / name
    file.write_text(json.dumps(every) + '\n\n{"prompt": ""}\n')
    assert read_prompts(file) == [
        (1, PromptLine(**{**every, "guidance": 2.0})),
        (3, PromptLine(prompt="")),
    ]
    assert set(every) == set(PromptLine.model_fields)


DAMAGED = [
    b'{"prompt": "fine"}',
    b'{"prompt": "cut',
    b'{"seed": 1}',
    b"[1]",
    b'{"prompt": "x", "sed": 1}',
    b'{"prompt": "x", "seed": -1}',
    b'{"prompt": 7}',
    b'{"prompt": "x", "steps": true}',
    b'{"prompt": "x", "sampler": "dim"}',
    b'{"prompt": "x", "guidance": NaN}',
    b'{"prompt": "\xff"}',
    b'{"prompt": "x", "count": 0, "steps": 0}',
]


def test_every_damaged_line_is_named(tmp_path: Path, refused) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(b"\n".join(DAMAGED))
    with refused(InputError) as caught:
        read_prompts(file)
    assert "line 1:" not in caught.value.what
    file.write_bytes(b"\n".join([*DAMAGED, b"3"]))
    with refused(InputError):
        read_prompts(file)


@pytest.mark.parametrize("content", [None, b"", b"\n \n", b"a one\n\xe9 two\n"])
def test_what_is_no_file_of_prompts_is_refused(tmp_path: Path, refused, content) -> None:
    file = tmp_path / "prompts.txt"
    if content is not None:
        file.write_bytes(content)
    with refused(InputError):
        read_prompts(file)


def test_damaged_lines_are_answered_without_torch(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text("{}")
    script = """
import sys
from sfumato.cli import main
for more in (["--prompts-file", "p.jsonl"], ["x", "--prompts-file", "p.jsonl"], []):
    sys.argv = ["sfumato", "sample", "bundled:mnist", *more]
    try:
        main()
    except SystemExit as leaving:
        print(leaving.code, "torch" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout.split() == ["2", "False"] * 3, done.stderr
    assert done.stderr.count("error: ") == 3


# Sampling -----------------------------------------------------------------------------------------


def test_images_are_those_of_single_calls(sfumato, small_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    lines = [
        {"prompt": "digit 7", "seed": 5, "count": 2},
        {"prompt": "digit 3", "guidance": 2, "steps": 2, "sampler": "DDIM", "negative_prompt": "9"},
        {"prompt": "digit 7", "seed": 6},  # made by the first line
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    result = sfumato("sample", str(small_run), "--prompts-file", str(file), "--out", "many")
    assert result.code == 0, result.err
    assert "3 images in many, 3 of them new." in result.out
    assert "0:00 left" in result.out
    ones = (
        ("digit 7", "--seed", "5", "--count", "2"),
        ("digit 3", "-w", "2", "--steps", "2", "--sampler", "ddim", "--negative-prompt", "9"),
    )
    for one in ones:
        assert sfumato("sample", str(small_run), *one, "--out", "single").code == 0
    many, single = Path("many"), Path("single")
    assert sorted(path.name for path in many.iterdir()) == sorted(p.name for p in single.iterdir())
    assert len(pngs(many)) == 3
    for path in many.iterdir():  # an only image may be evaluated by itself, and says so
        one = dict(settings_in_png(single / path.name))
        assert one.pop("rows", "1") == "1"
        assert dict(settings_in_png(path)) == one
        with Image.open(path) as first, Image.open(single / path.name) as second:
            difference = np.asarray(first, int) - np.asarray(second, int)
        assert abs(difference).max() <= 1


def test_what_is_there_is_not_made_again(sfumato, small_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "p.txt"
    file.write_text("digit 1\ndigit 2\ndigit 3\n")
    command = ("sample", str(small_run), "--prompts-file", str(file), "--out", "o", "--count", "2")
    assert sfumato(*command).code == 0
    whole = pngs(Path("o"))
    assert len(whole) == 6
    names = sorted(whole)
    Path("o", names[0]).unlink()
    Path("o", names[1]).write_bytes(whole[names[1]][:-30])  # damaged: made again beside it
    Path("o", "note.png").write_text("not ours")
    times = {name: os.stat(Path("o", name)).st_mtime_ns for name in names[2:]}
    again = sfumato(*command)
    assert "4 of 6 images are in o already." in again.out
    assert "6 images in o, 2 of them new." in again.out
    assert {name: os.stat(Path("o", name)).st_mtime_ns for name in times} == times
    assert pngs(Path("o"))[names[0]] == whole[names[0]]
    assert whole[names[1]] in pngs(Path("o")).values()

    file.write_text("digit 0\ndigit 1\ndigit 2\ndigit 3\n")  # a line more, anywhere
    assert "8 images in o, 2 of them new." in sfumato(*command).out
    for more in (("-w", "5"), ("--steps", "2"), ("--seed", "9"), ("--negative-prompt", "9")):
        assert "8 images in o, 8 of them new." in sfumato(*command, *more).out, more
    assert "8 images in o, 0 of them new." in sfumato(*command).out


def test_other_weights_are_other_images(small_model, small_run: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    lines = [(1, PromptLine(prompt="digit 7"))]
    given = {"seed": 0, "count": 1, "negative_prompt": ""}
    (group,) = groups_of(small_model, lines, **given)
    (tmp_path / "x.png").write_bytes(small_model.sample("digit 7").png(0))
    assert not without_those_in(tmp_path, [group])[0].images
    provenance = {**small_model.provenance, "weights_sha256": "0" * 64}
    other = groups_of(replace(small_model, provenance=provenance), lines, **given)
    assert without_those_in(tmp_path, other)[0].images == [("digit 7", 0)]


@pytest.mark.parametrize("more", ['"steps": 5000', f'"seed": {2**63 - 2}, "count": 3'])
def test_settings_that_the_model_has_not_are_refused_before_sampling(
    small_model, refused, tmp_path: Path, more: str
) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(f'{{"prompt": "fine"}}\n{{"prompt": "x", {more}}}\n')
    with refused(InputError):
        groups_of(small_model, read_prompts(file), seed=0, count=1, negative_prompt="")


@pytest.mark.slow
def test_one_process_at_a_time(sfumato, small_run: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("digit 1")
    with locked(tmp_path / "o"):
        result = sfumato(
            *("sample", str(small_run), "--prompts-file", str(tmp_path / "p.txt")),
            *("--out", str(tmp_path / "o")),
        )
    assert result.code == 2
    assert "is in use by process" in result.err
    assert not pngs(tmp_path)


def test_a_negative_prompt_that_changes_nothing_is_warned_of(sfumato, small_run: Path) -> None:
    command = ("sample", str(small_run), "digit 7", "--negative-prompt", "digit 1", "--steps", "2")
    assert "changes nothing with w = 1" in sfumato(*command, "-w", "1", "--out", "a").err
    assert "changes nothing" not in sfumato(*command, "-w", "2", "--out", "b").err
    assert sfumato(*command[:3], *command[5:], "-w", "2", "--out", "c").code == 0
    assert written(Path("b"))[0]["negative_prompt"] == "digit 1"
    assert "negative_prompt" not in written(Path("c"))[0]
    assert pngs(Path("b")) != pngs(Path("c"))


def test_slow_speeds_are_shown(capsys, monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr("sfumato.base.progress.time.monotonic", lambda: now[0])
    progress = Progress()
    progress("images", 0, 1)
    now[0] += 2
    progress("images", 1, 1)
    assert "1 of 1 image  0.5/s  0:00 left" in capsys.readouterr().out
