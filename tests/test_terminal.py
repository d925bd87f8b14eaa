"""What is asked back or refused before work begins, and what is printed on any terminal."""

import io
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sfumato.base.errors import InputError, LintWarning, OtherSubjectWarning
from sfumato.base.progress import Progress
from sfumato.base.words import counted
from sfumato.cli import options
from sfumato.cli import sample as sampling
from sfumato.generation.loading import load
from sfumato.generation.subjects import trained_classes, warn_of_other_subjects
from tests.pictures import encoded, noise, write_image

QUICK = ["--steps", "2", "--device", "cpu"]
ASCII = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
NO_UTF8 = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def process(*arguments: str | bytes, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """The command line in a process of its own, whose streams have an encoding."""
    return subprocess.run(
        [sys.executable, "-m", "sfumato", *arguments],
        capture_output=True,
        env={**os.environ, **variables},
        check=False,
    )


# Any encoding -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("variables", [ASCII, NO_UTF8])
def test_no_result_is_lost_on_printing_it(variables: dict[str, str], tmp_path: Path) -> None:
    for index, name in enumerate(["\u540d\u524d", "caf\u00e9", os.fsdecode(b"\xff")] * 4):
        write_image(tmp_path / "set" / name / f"{index}.png", noise(index, (8, 8, 3)))
    done = process(
        "data", "show", str(tmp_path / "set"), "--out", str(tmp_path / "x.png"), **variables
    )
    assert done.returncode == 0, done.stderr
    assert rb"\u540d\u524d" in done.stdout
    assert rb"caf\xe9" in done.stdout
    assert (tmp_path / "x.png").exists()


@pytest.mark.slow
def test_a_path_is_printed_in_ascii(tmp_path: Path) -> None:
    done = process(
        "sample", "bundled:mnist", "un \u00e9t\u00e9 7", "--out", str(tmp_path), *QUICK, **ASCII
    )
    assert done.returncode == 0, done.stderr
    (written,) = tmp_path.glob("*.png")
    assert done.stdout.decode("unicode_escape").strip() == str(written)


def test_a_name_that_the_file_system_cannot_write_is_left_out() -> None:
    settings = {"prompt": "\udcff 7", "guidance": "cfg", "guidance_scale": 2.0, "seed": 1}
    assert sampling.file_name(settings) == "7-w2-seed1.png"


@pytest.mark.parametrize(("prompt", "variables"), [(b"a \xff", {}), ("\u00e9".encode(), NO_UTF8)])
def test_a_prompt_that_is_no_text_is_refused(prompt: bytes, variables: dict[str, str]) -> None:
    done = process("sample", "bundled:mnist", prompt, *QUICK, **variables)
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: The prompt '")
    assert b"--prompts-file" in done.stderr


def test_surrogates_are_refused_from_python_too(small_model, refused) -> None:
    with refused(InputError):
        small_model.sample("digit \udcff", 0, steps=1)


def test_warnings_are_messages_from_python_too() -> None:
    code = "import warnings; from sfumato.base.errors import *; warnings.warn('x', DataWarning)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stderr == b"warning: x\n"


def test_pillow_does_not_warn_of_damaged_headers(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(encoded(noise(1), "TIFF")[:-20])
    code = (
        "from pathlib import Path; from sfumato.data.decode import *\n"
        "try: read_header(Path('a.tif'))\nexcept BadImage as error: print(error)"
    )
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, capture_output=True, check=True, cwd=tmp_path)
    assert done.stderr == b""


# Asked back ---------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    "command",
    [
        ["sample", "bundled:mnist", "7"],
        ["evaluate", "bundled:mnist"],
        ["guidance", "bundled:mnist"],
        ["compare", "bundled:mnist", "bundled:mnist"],
    ],
)
def test_very_many_images_are_refused_without_a_terminal(sfumato, command: list[str]) -> None:
    result = sfumato(*command, "--count", "100000000")
    assert result.code == 2
    assert result.err.startswith("error: 100,000,000 images are asked for, more than 50,000.\n")
    assert "--yes" in result.err


@pytest.mark.parametrize(("answer", "code", "made"), [("n\n", 1, 0), ("y\n", 0, 3)])
def test_very_many_images_are_asked_back(
    sfumato, monkeypatch, tmp_path: Path, answer: str, code: int, made: int
) -> None:
    for module in (options, sampling):
        monkeypatch.setattr(module, "MANY_IMAGES", 2)
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    arguments = ["sample", "bundled:mnist", "7", "--count", "3", "--out", str(tmp_path), *QUICK]
    result = sfumato(*arguments)
    assert result.code == code, result.err
    pattern = (
        r"3 images take up to \S+ GB of the \S+ GB that are free, and at most \d+:\d\d \(m:s\)"
    )
    assert re.search(pattern, result.out + result.err)
    assert len(list(tmp_path.glob("*.png"))) == made


def test_yes_answers(sfumato, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(options, "MANY_IMAGES", 2)
    monkeypatch.setattr(sampling, "MANY_IMAGES", 2)
    arguments = ["sample", "bundled:mnist", "7", "--count", "3", "--out", str(tmp_path), *QUICK]
    assert sfumato(*arguments, "--yes").code == 0
    assert len(list(tmp_path.glob("*.png"))) == 3


# Prompts that will not do what they seem to -------------------------------------------------------


def test_lost_quotes_are_said(warned) -> None:
    with warned(LintWarning):
        sampling._warn_of_lost_quotes(["a", "red", "circle"])


@pytest.mark.parametrize("prompts", [["7"], ["a red circle", "7"], []])
def test_other_prompts_have_their_quotes(prompts: list[str], recwarn) -> None:
    sampling._warn_of_lost_quotes(prompts)
    assert not recwarn.list


def test_a_prompt_of_no_trained_class_is_said(warned) -> None:
    model = load("bundled:mnist", device="cpu")
    assert trained_classes(model) == [str(digit) for digit in range(10)]
    with warned(OtherSubjectWarning):
        warn_of_other_subjects(model, ["a photo of a frog", "A handwritten digit 7", ""])


@pytest.mark.parametrize("prompt", ["A handwritten digit 7", "SEVEN", "two sevens", "", "no. 3"])
def test_a_prompt_of_a_trained_class_is_not(prompt: str, recwarn) -> None:
    warn_of_other_subjects(load("bundled:mnist", device="cpu"), [prompt])
    assert not recwarn.list


def test_the_caption_it_knows_is_one_of_training(small_run: Path, warned) -> None:
    """With underscores as spaces, and without what a class alone has no value for."""
    model = load(small_run, device="cpu")
    data = {**model.provenance["data"], "caption": ["art of {style_name}"]}
    about = {"classes": ["Cubism", "Pop_Art"], "data": data}
    named = replace(model, provenance={**model.provenance, **about})
    with warned(OtherSubjectWarning):
        warn_of_other_subjects(named, ["a frog"])
    for caption in ("{style_name} by {artist}", "{class_name}[ by {artist}]", "[{word}|art]"):
        data = {**data, "caption": [caption]}
        other = replace(named, provenance={**named.provenance, "data": data})
        assert trained_classes(other) == []


def test_the_frog_of_a_model_of_digits_is_said_on_the_command_line(sfumato, tmp_path: Path) -> None:
    frog = "a photo of a frog"
    result = sfumato("sample", "bundled:mnist", frog, "--out", str(tmp_path), *QUICK)
    assert result.code == 0
    assert "'a photo of a frog' names none of them" in result.err


# Where results go ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        ["train", "digits"],
        ["train", "small", "--data", "digits"],
        ["demo"],
        ["sample", "bundled:mnist", "7"],
        ["evaluate", "bundled:mnist"],
        ["guidance", "bundled:mnist"],
        ["compare", "bundled:mnist", "bundled:mnist"],
        ["export", "bundled:mnist"],
        ["figures", "bundled:mnist"],
    ],
)
def test_a_folder_that_cannot_be_made_is_refused_at_once(
    sfumato, tmp_path: Path, command: list[str]
) -> None:
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file" / "inside" / "it"):
        result = sfumato(*command, "--out", str(out))
        assert result.code == 2, result.out
        assert result.err.startswith("error: ")
        assert f"{tmp_path / 'file'} is a file" in result.err
        assert result.out == ""


def test_a_picture_that_cannot_be_written_is_refused_at_once(sfumato, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder.png").mkdir()
    for out in (tmp_path / "file" / "a.png", tmp_path / "folder.png"):
        for command in (["data", "show", "digits"], ["grid", "bundled:mnist"]):
            result = sfumato(*command, "--out", str(out))
            assert result.code == 2
            assert result.out == ""


def test_a_folder_that_is_no_run_is_refused_before_data_is_read(sfumato, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    result = sfumato("train", "small", "--data", "digits", "--out", str(tmp_path))
    assert result.code == 2
    assert "is not a run of sfumato" in result.err
    assert result.out == ""


# Words --------------------------------------------------------------------------------------------


def test_counts_have_their_number() -> None:
    shown = [counted(count, "image") for count in (0, 1, 2, 1000)]
    assert shown == ["0 images", "1 image", "2 images", "1,000 images"]


def test_progress_of_one_image(capsys) -> None:
    Progress().of("images read")(1, 1)
    assert capsys.readouterr().out == "  1 of 1 image read\n"


def test_names_are_printed_as_they_are(sfumato, tmp_path: Path) -> None:
    names = ["[red]x", "[bold]", ":cat:", "new\nline", "\x1b[31m", "\u2028"]
    for index, name in enumerate(names * 3):
        write_image(tmp_path / name / f"{index}.png", np.full((8, 8, 3), index, np.uint8))
    result = sfumato("data", "show", str(tmp_path), "--out", "picture.png")
    assert result.code == 0, result.err
    shown = [line.split("  ")[0].strip() for line in result.out.splitlines()]
    assert {"[red]x", "[bold]", ":cat:", r"new\nline", r"\x1b[31m", r"\u2028"} <= set(shown)
