"""The command line as a person types it, with what they type wrongly."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from sfumato.base.errors import ConfigError
from sfumato.cli.options import GOES_ON, INTERRUPTED
from sfumato.cli.show import waiting

TRAIN = [
    "--set",
    "training.images=64",
    "--set",
    "data.resolution=8",
    "--set",
    "model.block_out_channels=[8,16]",
    "--set",
    "model.levels=[plain,attention]",
    "--set",
    "model.norm_num_groups=4",
    "--set",
    "training.checkpoint_every_images=32",
    "--set",
    "training.averaging.halflife_images=32",
    "--set",
    "sampling.steps=2",
]


def one_message(result, code: int, *words: str) -> None:
    """One clear message with the hint, no traceback."""
    assert result.code == code, result.err + result.out
    assert "Traceback" not in result.err
    assert result.err.startswith("error: ") or "Usage:" in result.err, result.err
    for word in words:
        assert word in result.err, result.err


# What works ---------------------------------------------------------------------------------------


def test_help_shows_every_command_with_an_example(sfumato) -> None:
    result = sfumato("--help")
    assert result.code == 0
    commands = ["demo", "train", "sample", "grid", "evaluate", "compare", "figures"]
    commands += ["export", "inspect"]
    for command in [*commands, "presets", "bench"]:
        assert command in result.out
    for command in [*commands, "bench train", "bench sample"]:
        page = sfumato(*command.split(), "--help")
        assert "Example:" in page.out
        assert len(set(re.findall(r"--[a-z]+", page.out))) <= 11


def test_presets_are_listed_with_parameters_and_shown_in_full(sfumato) -> None:
    listed = sfumato("presets", "list")
    assert re.search(r"digits\s+1,6\d\d,\d\d\d\s+16x16x1", listed.out)
    shown = sfumato("presets", "show", "digits", "--set", "training.batch_size=8")
    assert "batch_size: 8" in shown.out


def test_train_sample_grid_inspect_evaluate(sfumato, tmp_path: Path) -> None:
    run = tmp_path / "run"
    trained = sfumato("train", "digits", "--out", str(run), *TRAIN)
    assert trained.code == 0, trained.err
    assert "Finished at 64 images" in trained.out
    assert re.search(r"images/s\s+loss \d\.\d+\s+0:00 left", trained.out)
    assert "\r" not in trained.out  # line-based: the output is no terminal

    again = sfumato("train", "digits", "--out", str(run), *TRAIN)
    assert "Already trained" in again.out

    pictures = tmp_path / "pictures"
    drawn = sfumato(
        "sample",
        str(run),
        "A handwritten digit 7",
        "--count",
        "2",
        "--guidance",
        "5",
        "--sampler",
        "ddpm",
        "--steps",
        "3",
        "--seed",
        "40",
        "--out",
        str(pictures),
    )
    assert drawn.code == 0, drawn.err
    files = sorted(pictures.iterdir())
    assert [file.name for file in files] == [
        "a-handwritten-digit-7-w5-seed40.png",
        "a-handwritten-digit-7-w5-seed41.png",
    ]
    inspected = sfumato("inspect", str(files[1])).out
    for fact in ("A handwritten digit 7", "41", "5.0", "DDPM", "uncond + w (cond - uncond)"):
        assert fact in inspected
    assert re.search(r"calls\s+6", inspected)
    assert re.search(r"weights_sha256\s+[0-9a-f]{64}", inspected)

    # From the exported pipeline: the same picture, and nothing is overwritten.
    exported = sfumato(
        "sample",
        str(run / "pipeline"),
        "A handwritten digit 7",
        "--guidance",
        "5",
        "--sampler",
        "DDPM",
        "--steps",
        "3",
        "--seed",
        "40",
        "--out",
        str(pictures),
    )
    assert exported.out.strip().endswith("w5-seed40-2.png")
    first = Image.open(files[0]).tobytes()
    assert Image.open(exported.out.strip()).tobytes() == first

    grid = tmp_path / "grid.png"
    assert sfumato("grid", str(run), "--scales", "0,1,2", "--out", str(grid)).code == 0
    assert Image.open(grid).size[0] > 10 * 48
    assert "columns" in sfumato("inspect", str(grid)).out

    measured = sfumato("evaluate", str(run), "--count", "20", "--scales", "1,5")
    assert measured.code == 0, measured.err
    assert (run / "evaluation" / "card.json").exists()
    assert re.search(r"\nw = 5\s+\d+\.\d %", measured.out)


def test_ctrl_c_saves_and_the_same_command_goes_on(tmp_path: Path) -> None:
    import signal
    import sys
    import time

    run = tmp_path / "run"
    arguments = [
        sys.executable,
        "-m",
        "sfumato",
        "train",
        "digits",
        "--out",
        str(run),
        *TRAIN,
        "--set",
        "training.images=100000",
        "--set",
        "training.log_every_images=64",
    ]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    stopped = re.search(r"Stopped at ([\d,]+) images, saved", out)
    assert stopped, out
    done = subprocess.run(
        [*arguments, "--set", f"training.images={int(stopped[1].replace(',', '')) + 64}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert f"Going on from the checkpoint at {stopped[1]} images" in done.stdout, done.stderr


# What is typed wrongly ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["train", "digit"], 2, ["Did you mean 'digits'"]),
        (["train", "digits", "--set", "training.batchsize=3"], 2, ["training.batch_size"]),
        (["train", "digits", "--set", "training.batch_size=three"], 2, ["valid integer", "three"]),
        (["train", "no/such.yaml"], 2, ["is not a file"]),
        (["train", "digits", "--device", "tpu9"], 2, ["No device named"]),
        (["train", "digits", "--colour", "red"], 2, ["No such option"]),
        (["sample", "no-such-run", "a digit"], 2, ["does not exist", "sfumato train"]),
        (["inspect", "no-such.png"], 2, ["is not a file"]),
        (["frobnicate"], 2, ["No such command"]),
        (["presets", "show", "mnits"], 2, ["No preset named"]),
    ],
)
def test_typed_wrongly(sfumato, arguments, code, words, tmp_path: Path) -> None:
    one_message(sfumato(*arguments, cwd=tmp_path), code, *words)
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sample", "RUN"], ["Missing argument"]),
        (["sample", "RUN", "x", "--guidance", "-3"], ["Guidance scale -3", "between 0"]),
        (["sample", "RUN", "x", "--steps", "0"], ["0 steps", "1 to 1000"]),
        (["sample", "RUN", "x", "--steps", "2000"], ["2000 steps"]),
        (["sample", "RUN", "x", "--seed", "-1"], ["Seed -1", "2**63"]),
        (["sample", "RUN", "x", "--count", "0"], ["--count 0"]),
        (["sample", "RUN", "x", "--sampler", "dim"], ["No sampler named 'dim'", "DDIM"]),
        (["grid", "RUN", "--scales", "a,b"], ["not numbers"]),
        (["grid", "RUN", "--out", "grid.jpg"], [".png"]),
        (["evaluate", "RUN", "--count", "3"], ["too few"]),
        (["inspect", "RUN/experiment.yaml"], ["is not an image"]),
    ],
)
def test_out_of_range(sfumato, small_run: Path, arguments, words, tmp_path: Path) -> None:
    arguments = [argument.replace("RUN", str(small_run)) for argument in arguments]
    one_message(sfumato(*arguments, cwd=tmp_path), 2, *words)


def test_debug_shows_the_traceback(sfumato) -> None:
    with pytest.raises(ConfigError):
        sfumato("train", "digit", "--debug")


def test_a_truncated_checkpoint_is_exit_code_3(sfumato, small_run: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(small_run, broken)
    for file in broken.glob("checkpoints/*/average.safetensors"):
        file.write_bytes(file.read_bytes()[:1000])
    result = sfumato("sample", str(broken), "A handwritten digit 7", cwd=tmp_path)
    one_message(result, 3, "truncated", "No other checkpoint is whole")


def test_one_truncated_checkpoint_falls_back(sfumato, small_run: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(small_run, broken)
    file = max(broken.glob("checkpoints/*/average.safetensors"))
    file.write_bytes(file.read_bytes()[:1000])
    result = sfumato("sample", str(broken), "A handwritten digit 7", cwd=tmp_path)
    assert result.code == 0
    assert "warning: " in result.err
    assert "Using the checkpoint before it" in result.err


def test_a_checkpoint_of_another_architecture(sfumato, small_run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(small_run, other)
    file = other / "experiment.yaml"
    text = file.read_text()
    assert "- 32\n  - 64" in text
    file.write_text(text.replace("- 32\n  - 64", "- 32\n  - 32"))
    result = sfumato("sample", str(other), "A handwritten digit 7", cwd=tmp_path)
    one_message(result, 2, "another architecture", "experiment.yaml")


def test_an_output_folder_of_another_experiment(sfumato, small_run: Path) -> None:
    before = sorted(path.stat().st_mtime_ns for path in small_run.rglob("*"))
    result = sfumato("train", "digits", "--out", str(small_run))
    one_message(result, 2, "holds another experiment", "data.resolution is 8 there, 16 here")
    assert sorted(path.stat().st_mtime_ns for path in small_run.rglob("*")) == before


def test_no_write_permission(sfumato, tmp_path: Path) -> None:
    """A folder that cannot be written: permission bits, or for root a read-only mount."""
    folder = tmp_path / "locked"
    folder.mkdir()
    if os.geteuid() != 0:
        folder.chmod(0o500)
        result = sfumato("train", "digits", "--out", str(folder / "run"), *TRAIN)
        folder.chmod(0o700)
    else:
        mount(folder, "ro")
        try:
            result = sfumato("train", "digits", "--out", str(folder / "run"), *TRAIN)
        finally:
            unmount(folder)
    one_message(result, 2, "No permission to write")


def test_a_device_without_space(sfumato, tmp_path: Path) -> None:
    """A real full device: a small file system in memory. Only root may mount one."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system takes root; test_checkpoint.py fakes the error")
    folder = tmp_path / "small"
    folder.mkdir()
    mount(folder, "size=120k")
    try:
        result = sfumato("train", "digits", "--out", str(folder / "run"), *TRAIN)
        one_message(result, 2, "No space left", "same command again")
        left = [path for path in (folder / "run").rglob("*") if ".incomplete-" in path.name]
        assert not left
    finally:
        unmount(folder)


def test_an_out_path_through_a_file(sfumato, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = sfumato("train", "digits", "--out", str(tmp_path / "file" / "run"), *TRAIN)
    one_message(result, 2, "Cannot write")


def test_ctrl_c_is_told_and_has_the_code_of_the_shell(
    sfumato, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*arguments, **options) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sfumato.cli.bench.bench_data", stopped)
    monkeypatch.setattr("sfumato.cli.table1.table1_and_print", stopped)
    monkeypatch.setattr("sfumato.cli.show.train_and_report", stopped)
    of_rounds = sfumato("bench", "data", str(tmp_path))
    assert (of_rounds.code, of_rounds.out.strip()) == (
        INTERRUPTED,
        "Stopped before the last round: nothing is kept.",
    )
    goes_on = sfumato("table1", str(tmp_path))
    assert (goes_on.code, goes_on.out.strip()) == (INTERRUPTED, GOES_ON)
    training = sfumato("train", "digits", "--out", str(tmp_path / "run"))
    assert training.code == INTERRUPTED
    assert f"The same command with --out {tmp_path / 'run'} goes on" in training.out


LIBC = ctypes.CDLL(None, use_errno=True)


def mount(folder: Path, options: str) -> None:
    flags = 1 if options == "ro" else 0  # MS_RDONLY
    data = b"" if options == "ro" else options.encode()
    if LIBC.mount(b"tmpfs", bytes(folder), b"tmpfs", flags, data):
        pytest.skip(f"mounting is not allowed here: {os.strerror(ctypes.get_errno())}")


def unmount(folder: Path) -> None:
    assert LIBC.umount2(bytes(folder), 2) == 0  # MNT_DETACH


@pytest.mark.parametrize("terminal", [True, False])
def test_a_wait_is_told_on_a_terminal_and_leaves_no_trace(terminal, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with waiting("Opening x ..."):
        during = capsys.readouterr().err
    assert (during, capsys.readouterr().err) == (
        ("Opening x ...", "\r\033[K") if terminal else ("", "")
    )
