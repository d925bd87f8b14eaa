"""Commands on the mock device of `tests.mock_device`: what they forget to move is found."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from sfumato.training.records import read_records
from tests.pictures import encoded, noise, write_parquet
from tests.ranks import TINY

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
RUN = [part for setting in (*TINY, "training.images=48") for part in ("--set", setting)]
SHORT = ["--images", "32"]
LORA = ["--set", "training.lora.rank=2"]
STUDENT = ["--teacher-steps", "2", "--set", "training.images=64"]
PROMPT = "A handwritten digit 7"


def python(*arguments: str, **environment: str) -> str:
    """The output of Python with these arguments; fails with it where Python does.

    With one thread, as the tests are.
    """
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def sfumato(*arguments: Path | str, device: str = "mock") -> str:
    module = "sfumato" if device == "cpu" else "tests.mock_device"
    last = ["--device", "cpu"] if device == "cpu" else []
    return python("-m", module, *map(str, arguments), *last)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    sfumato("train", "digits", "--out", folder, *RUN)
    return folder


def test_cpu_tensors_are_refused() -> None:
    program = (
        "import torch, tests.mock_device as p\n"
        "own, other = torch.ones(2, device=p.NAME), torch.ones(2)\n"
        "assert (own + 1).cpu().tolist() == [2, 2]\n"
        "try: own + other\n"
        "except RuntimeError as error: print(error)\n"
    )
    assert "same device" in python("-c", program)


def test_steps_of_the_tests_for_a_gpu_pass_on_it() -> None:
    """Compilation looks into tensors, and nothing is cast here; commands sample below."""
    steps = "step_as and not bfloat16"
    python(
        *("-m", "pytest", "-n", "0", "-m", "gpu", "-k", steps, "-p", "tests.mock_device"),
        "tests/test_gpu.py",
        SFUMATO_TEST_DEVICE="mock",
    )


def test_a_training_has_the_losses_of_the_cpu(run: Path, tmp_path: Path) -> None:
    """To rounding: on some processors its convolutions are those of channels-last networks on the
    CPU, whose last bits differ."""
    sfumato("train", "digits", "--out", tmp_path / "run", *RUN, device="cpu")
    own, of_cpu = (read_records(one / "metrics.jsonl") for one in (run, tmp_path / "run"))
    assert own
    assert own == [pytest.approx(record, rel=1e-6) for record in of_cpu]


@pytest.mark.parametrize(
    ("sampler", "form", "dtype"),
    [
        ("DDPM", "cfg", "float32"),
        ("Heun", "apg", "float32"),
        ("UniPC", "dynamic_thresholding", "float32"),
        ("DPMSolver++", "rescaled", "float16"),
    ],
)
def test_sample(run: Path, tmp_path: Path, sampler: str, form: str, dtype: str) -> None:
    how = ["--sampler", sampler, "--guidance-form", form, "--dtype", dtype]
    sfumato("sample", run, PROMPT, *how, "--out", tmp_path / "out")


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "RUN", "--count", "20", "--scales", "1", "--out", "OUT"],
        ["figures", "RUN", "--out", "OUT"],
        ["nfe", "RUN", "--count", "30", "--nfe", "2", "--out", "OUT"],
        ["train", "digits", "--from", "RUN", "--out", "OUT", *SHORT, *LORA],
        ["distil", "RUN", "--nfe", "2,1", "--count", "32", "--out", "OUT", *STUDENT],
        ["train", "classifier", "digits", "--epochs", "1", "--out", "OUT"],
        ["bench", "inpainting", "RUN", "--count", "20", "--steps", "2", "--out", "OUT"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_command(run: Path, tmp_path: Path, command: Sequence[str]) -> None:
    places = {"RUN": run, "OUT": tmp_path / "out"}
    sfumato(*(places.get(word, word) for word in command))


@pytest.mark.parametrize("process", ["rectified_flow", "edm"])
def test_train_a(process: str, tmp_path: Path) -> None:
    changes = ["--set", f"diffusion.process={process}", "--set", "sampling.sampler=Heun"]
    sfumato("train", "digits", "--out", tmp_path / "run", *RUN, *changes)


def test_train_on_a_stream(tmp_path: Path) -> None:
    write_parquet(
        tmp_path / "train.parquet",
        [encoded(noise(row, (8, 8, 3))) for row in range(90)],
        [row % 3 for row in range(90)],
        names=["oak", "elm", "ash"],
    )
    data = ["--data", tmp_path, "--set", "data.loading=stream"]
    sfumato("train", "small", *data, "--out", tmp_path / "run", *RUN)


def test_a_vae_and_a_model_in_its_latents(tmp_path: Path) -> None:
    vae, run = tmp_path / "vae", tmp_path / "run"
    sfumato("train", "vae", "digits", "--out", vae, "--resolution", "16", *SHORT)
    codec = ["--set", "codec.kind=vae", "--set", f"codec.vae={vae}"]
    sfumato("train", "digits", *RUN, "--set", "data.resolution=16", *codec, "--out", run)
    sfumato("sample", run, PROMPT, "--out", tmp_path / "out")


def test_a_can(tmp_path: Path) -> None:
    sfumato("train", "can", "digits", "--out", tmp_path / "can", *SHORT)
    measured = ["--count", "20", "--untrained", "--out", tmp_path / "card"]
    sfumato("evaluate", tmp_path / "can", *measured)
