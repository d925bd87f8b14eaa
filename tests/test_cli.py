"""The command line as a person types it, with what they type wrongly."""

import ctypes
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from sfumato.base.environment import command
from sfumato.base.errors import ConfigError
from sfumato.cli.options import INTERRUPTED, RESUMES
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


COMMANDS = [
    *("demo", "train", "sample", "grid", "evaluate", "table1", "compare", "figures", "findings"),
    *("guidance", "curve", "export", "tune", "ablate", "bundle", "inspect", "prepare", "doctor"),
    *("runs", "evolve", "watch"),
]
GROUPED = [
    *("presets list", "presets show", "presets settings", "data show", "data synthesize"),
    *("bench train", "bench sample", "bench data", "bench order", "bench decoding"),
    *("bench scaling", "bench inpainting", "survey build", "survey serve", "survey analyse"),
    "survey simulate",
]


def test_help_shows_every_command_with_an_example(sfumato) -> None:
    result = sfumato("--help")
    assert result.code == 0
    for name in [*COMMANDS, "presets", "bench", "data", "survey"]:
        assert name in result.out
    for name in [*COMMANDS, *GROUPED]:
        page = sfumato(*name.split(), "--help")
        assert page.code == 0, name
        assert "Example:" in page.out, name
        assert len(set(re.findall(r"--[a-z]+", page.out))) <= 18, name


def test_presets_are_listed_with_parameters(sfumato) -> None:
    listed = sfumato("presets", "list")
    assert re.search(r"digits\s+1,6\d\d,\d\d\d\s+16x16x1", listed.out)
    assert re.search(r"clip\s+\d,\d\d\d,\d\d\d\s+32x32x3", listed.out)


def test_a_preset_is_shown_with_documentation_and_loads_again(sfumato, tmp_path: Path) -> None:
    shown = sfumato("presets", "show", "digits", "--set", "training.batch_size=8").out
    assert "  # Images of one optimizer step, over all ranks.\n  batch_size: 8\n" in shown
    assert max(len(line) for line in shown.splitlines()) <= 100
    file = tmp_path / "mine.yaml"
    file.write_text(shown)
    assert sfumato("presets", "show", str(file)).out == shown


def test_commands_that_type_wrongly_import_no_torch(tmp_path: Path) -> None:
    """What was typed is checked before torch is imported, in less than a second."""
    code = """
import sys
from sfumato.cli import main
for line in sys.stdin.read().splitlines():
    sys.argv = ["sfumato", *line.split("|")]
    try:
        main()
    except SystemExit as leaving:
        print(leaving.code or 0, line)
    heavy = [name for name in ("torch", "transformers", "diffusers") if name in sys.modules]
    assert not heavy, (line, heavy)
"""
    works = ["--help", "--version", "presets|list", "presets|show|mnist", "presets|settings"]
    works += [f"{command.replace(' ', '|')}|--help" for command in [*COMMANDS, *GROUPED]]
    typed_wrongly = [*WRONG, "train|digits|--set|training.batch_size=three", "bench|train|digt"]
    typed_wrongly += ["bench|scaling|digt", "bench|scaling|small|--measure|2", "doctor|--timeout|0"]
    done = subprocess.run(
        [sys.executable, "-c", code],
        input="\n".join([*works, *typed_wrongly]),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    codes = [line.split()[0] for line in done.stdout.splitlines() if re.match(r"\d \S", line)]
    assert codes[-len(typed_wrongly) :] == ["2"] * len(typed_wrongly), done.stderr
    assert not list(tmp_path.iterdir())


def test_an_answer_takes_less_than_a_second() -> None:
    """Processor time, for the tests run side by side."""

    def seconds(*arguments: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-m", "sfumato", *arguments], capture_output=True, check=False
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert seconds("presets", "list") < 1
    assert seconds("sample", "bundled:mnist", "x", "--sampler", "dim") < 1


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
    assert re.search(r"nfe\s+6", inspected)
    assert re.search(r"weights_sha256\s+[0-9a-f]{64}", inspected)

    # From the exported pipeline: the same picture, and nothing is overwritten.
    exported = sfumato(
        "sample",
        str(run / "model"),
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


@pytest.mark.slow
def test_ctrl_c_saves_and_the_same_command_goes_on(sfumato, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ["train", "digits", "--out", str(run), *TRAIN]
    arguments += ["--set", "training.images=100000", "--set", "training.log_every_images=64"]
    command = [sys.executable, "-m", "sfumato", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    stopped = re.search(r"Stopped at ([\d,]+) images, saved", out)
    assert stopped, out
    images = int(stopped[1].replace(",", "")) + 64
    done = sfumato(*arguments, "--set", f"training.images={images}")
    assert f"Resuming from the checkpoint at {stopped[1]} images" in done.out, done.err


# What is typed wrongly ----------------------------------------------------------------------------


WRONG = {
    "train|digit": ["Did you mean 'digits'"],
    "train|digits|--set|training.batchsize=3": ["training.batch_size"],
    "train|digits|--set|training.batch_size=three": ["valid integer", "three"],
    "train|no/such.yaml": ["is not a file"],
    "train|small|--data|nowhere": ["nowhere"],
    "train|small|--data|./nowhere": ["does not exist"],
    "train|small|a|--data|b": ["twice"],
    "train|digits|--device|tpu9": ["tpu9"],
    "train|digits|--colour|red": ["No such option"],
    "sample|bundled:mnist": ["There is no prompt"],
    "sample|no-such-run|a digit": ["does not exist", "sfumato train"],
    "sample|bundled:mnits|a digit": ["Did you mean 'bundled:mnist'"],
    "sample|bundled:mnist|x|--guidance|-3": ["--guidance", "0"],
    "sample|bundled:mnist|x|--steps|0": ["--steps", "1"],
    "sample|bundled:mnist|x|--seed|-1": ["--seed", "0"],
    "sample|bundled:mnist|x|--count|0": ["--count", "1"],
    "sample|bundled:mnist|x|--sampler|dim": ["dim", "DDIM"],
    "sample|bundled:mnist|x|--guidance-form|apgg": ["Did you mean 'apg'"],
    "sample|bundled:mnist|x|--timestep-spacing|even": ["even", "trailing, leading or linspace"],
    "sample|bundled:mnist|x|--mask|pyproject.toml": ["--mask", "--init-image"],
    "sample|bundled:mnist|x|--strength|0.5": ["--strength", "--init-image"],
    "sample|bundled:mnist|x|--init-image|no-such.png": ["no-such.png", "does not exist"],
    "sample|bundled:mnist|x|--init-image|.": ["is not a file"],
    f"sample|bundled:mnist|x|--init-image|{__file__}|--strength|1.5": ["--strength", "1.5"],
    f"sample|bundled:mnist|x|--init-image|{__file__}|--strength|nan": ["--strength", "nan"],
    f"sample|bundled:mnist|x|--init-image|{__file__}|--mask|no.png": ["no.png", "does not exist"],
    f"sample|bundled:mnist|x|--init-image|{__file__}|--interpolate|3": ["--init-image"],
    "sample|bundled:mnist|x|--interpolate|1": ["--interpolate", "2"],
    "sample|bundled:mnist|x|--interpolate|3|--count|2": ["--count"],
    "sample|bundled:mnist|x|--interpolate|3|--prompts-file|x": ["--prompts-file"],
    "sample|bundled:mnist|x|y|z|--interpolate|3": ["3 prompts"],
    "sample|bundled:mnist|x|--last-seed|3": ["--interpolate"],
    "grid|bundled:mnist|--scales|a,b": ["a,b"],
    "grid|bundled:mnist|--scales|0,-1": ["-1"],
    "grid|bundled:mnist|--out|grid.jpg": [".png"],
    "evaluate|nowhere": ["does not exist"],
    "evaluate|bundled:mnist|--count|3": ["--count", "10"],
    "evaluate|bundled:mnist|--set|evaluation.cont=30": ["evaluation.count"],
    "evaluate|bundled:mnist|--set|data.resolutoin=8": ["data.resolution"],
    "compare|bundled:mnist@x|bundled:mnist": ["guidance scale"],
    "compare|nowhere|bundled:mnist": ["does not exist"],
    "tune|bundled:mnist": ["run"],
    "tune|bundled:mnist|--for|best": ["--for", "front"],
    "figures|bundled:mnist|--like|cifar": ["--like", "cifar10"],
    "ablate|digt": ["Did you mean 'digits'"],
    "ablate|digits|--set|training.batchsize=3": ["training.batch_size"],
    "data|show|nowhere": ["nowhere"],
    "prepare|digits|out|--set|data.fit=crp": ["data.fit"],
    "inspect|no-such.png": ["is not a file"],
    "frobnicate": ["No such command"],
    "presets|show|mnits": ["Did you mean 'mnist'"],
}
"""Commands, with | between the words, and what the message names."""


@pytest.mark.parametrize("words", WRONG)
def test_typed_wrongly(sfumato, words: str, tmp_path: Path) -> None:
    one_message(sfumato(*words.split("|"), cwd=tmp_path), 2, *WRONG[words])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sample", "RUN", "x", "--steps", "2000"], ["1000 steps"]),
        (["inspect", "RUN/experiment.yaml"], ["is not an image"]),
    ],
)
def test_out_of_range_of_a_model(
    sfumato, small_run: Path, arguments, words, tmp_path: Path
) -> None:
    arguments = [argument.replace("RUN", str(small_run)) for argument in arguments]
    one_message(sfumato(*arguments, cwd=tmp_path), 2, *words)


def test_debug_shows_the_traceback(sfumato, refused) -> None:
    with refused(ConfigError):
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
    assert "block_out_channels:\n  - 8" in text
    file.write_text(text.replace("block_out_channels:\n  - 8", "block_out_channels:\n  - 12"))
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


def test_ctrl_c_is_reported_and_has_the_code_of_the_shell(
    sfumato, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*arguments, **options) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sfumato.bench.loading.compare_loading", stopped)
    monkeypatch.setattr("sfumato.evaluation.evaluate.evaluate", stopped)
    monkeypatch.setattr("sfumato.methods.registry.run_experiment", stopped)
    of_rounds = sfumato("bench", "data", "digits")
    assert (of_rounds.code, of_rounds.out.strip()) == (
        INTERRUPTED,
        "Stopped before the last round: nothing is kept.",
    )
    monkeypatch.setattr("sfumato.generation.collection.sample_groups", stopped)
    sampled = sfumato("sample", "bundled:mnist", "A handwritten digit 7")
    assert (sampled.code, sampled.out.strip()) == (
        INTERRUPTED,
        "Stopped. The images above are whole.",
    )
    resumes = sfumato("evaluate", "bundled:mnist")
    assert (resumes.code, resumes.out.strip()) == (INTERRUPTED, RESUMES)
    training = sfumato("train", "digits", "--out", str(tmp_path / "run"))
    assert training.code == INTERRUPTED
    assert f"The same command with --out {tmp_path / 'run'} resumes" in training.out


LIBC = ctypes.CDLL(None, use_errno=True)


def mount(folder: Path, options: str) -> None:
    flags = 1 if options == "ro" else 0  # MS_RDONLY
    data = b"" if options == "ro" else options.encode()
    if LIBC.mount(b"tmpfs", bytes(folder), b"tmpfs", flags, data):
        pytest.skip(f"mounting is not allowed here: {os.strerror(ctypes.get_errno())}")


def unmount(folder: Path) -> None:
    assert LIBC.umount2(bytes(folder), 2) == 0  # MNT_DETACH


@pytest.mark.parametrize("terminal", [True, False])
def test_a_wait_is_shown_on_a_terminal_and_leaves_no_trace(terminal, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with waiting("Opening x ..."):
        during = capsys.readouterr().err
    assert (during, capsys.readouterr().err) == (
        ("Opening x ...", "\r\033[K") if terminal else ("", "")
    )


def test_the_command_of_a_result_is_the_command_line(sfumato) -> None:
    """Outside of the command line, as in a notebook, there is none."""
    code = "from sfumato.base.environment import command; assert command() == ''"
    subprocess.run([sys.executable, "-c", code, "some", "words"], check=True)
    sfumato("presets", "list")
    assert command() == "sfumato presets list"
    sfumato("train", "my preset.yaml")
    assert command() == "sfumato train 'my preset.yaml'"
