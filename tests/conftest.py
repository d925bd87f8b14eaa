"""Fixtures: an ideal denoiser in closed form, and one small model that is really trained."""

import contextlib
import io
import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from sfumato.base.images import to_float
from sfumato.base.memory import keep_freed_memory
from sfumato.config.sections import DataConfig
from sfumato.data.records import Records, load_records
from sfumato.diffusion.process import PREDICTIONS, VariancePreserving

keep_freed_memory()
torch.set_num_threads(1)  # tests run side by side, and their networks are too small for two

SMALL = [
    # The digits at their own 8x8 pixels and a network that trains in seconds.
    "data.resolution=8",
    "model.block_out_channels=[32,64]",
    "model.levels=[attention,plain]",
    "training.sample_every_images=4000",
    "training.checkpoint_every_images=4000",
    "sampling.steps=6",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """While one worker process trains `small_run`, the other has files that can do without it."""
    need_it = [item.path for item in items if "small_run" in getattr(item, "fixturenames", ())]
    turn = dict.fromkeys(need_it, 2) | dict.fromkeys(need_it[:1], 0)
    items.sort(key=lambda item: turn.get(item.path, 1))  # stable: else as collected


@pytest.fixture(scope="session")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this test session that its worker processes share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session", autouse=True)
def cache(together: Path) -> Path:
    """Judges of this test session, apart from the user's."""
    folder = together / "cache"
    folder.mkdir(exist_ok=True)
    os.environ["SFUMATO_CACHE"] = str(folder)
    return folder


@dataclass(frozen=True)
class CommandResult:
    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def sfumato():
    """Run the command line as `sfumato ARGUMENTS` would, without a second import of torch.

    `tests/test_cli.py` also runs it in processes of its own where that matters.
    """
    from sfumato.cli import main

    def run(*arguments: str, cwd: Path | None = None) -> CommandResult:
        out, err = io.StringIO(), io.StringIO()
        code: object = 0
        argv, sys.argv = sys.argv, ["sfumato", *arguments]
        try:
            with (
                contextlib.chdir(cwd or Path.cwd()),
                contextlib.redirect_stdout(out),
                contextlib.redirect_stderr(err),
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("default")
                main()
        except SystemExit as leaving:
            code = leaving.code
        finally:
            sys.argv = argv
        return CommandResult(int(str(code or 0)), out.getvalue(), err.getvalue())

    return run


@pytest.fixture(scope="session")
def small_run(together: Path) -> Path:
    """A run folder of a small model, trained far enough that captions matter."""
    from sfumato.config.schema import load_experiment
    from sfumato.methods.diffusion import run_experiment

    folder = together / "small"
    with FileLock(together / "small.lock"):  # the first worker trains, the others wait for it
        run_experiment(load_experiment("digits", [*SMALL, "training.images=16000"]), folder)
    return folder


@pytest.fixture(scope="session")
def small_model(small_run: Path):
    from sfumato.generation.loading import load

    return load(small_run, device="cpu")


@pytest.fixture(scope="session")
def digits8() -> Records:
    config = DataConfig(source="digits", resolution=8, channels=1, caption="digit {label}")
    return load_records(config, "train")


class IdealDenoiser:
    """The exact minimiser of the training loss on a finite data set: E[x0 | x_t, caption].

    Its "tokens" are (B, 1, 1): the label, or -1 for no caption. It outputs v unless told otherwise.
    """

    def __init__(
        self,
        records: Records,
        schedule: VariancePreserving,
        *,
        prediction_type: str = "v_prediction",
    ) -> None:
        self.prediction = PREDICTIONS[prediction_type]
        self.images = to_float(records.images, (-1.0, 1.0)).flatten(1).double()
        self.labels = records.labels
        self.schedule = schedule

    def x0(self, x_t: torch.Tensor, t: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        rows = x_t.double().flatten(1)
        a, s = self.schedule.signal_and_noise(t, rows)
        # |x_t - a image|^2 for every row and every image of the data set
        cross = rows @ self.images.T
        distance = rows.square().sum(1, True) - 2 * a * cross + a**2 * self.images.square().sum(1)
        logits = -distance / (2 * s.square())
        wrong = (labels[:, None] >= 0) & (self.labels[None] != labels[:, None])
        weights = logits.masked_fill(wrong, -torch.inf).softmax(1)
        return (weights @ self.images).reshape(x_t.shape)

    def __call__(self, x_t: torch.Tensor, t: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        x0 = self.x0(x_t, t, tokens[:, 0, 0].long())
        a, s = self.schedule.signal_and_noise(t, x_t.double())
        eps = (x_t.double() - a * x0) / s
        return self.prediction.target(x0, eps, a, s).float()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets in the Hub's layout; tests that need it skip without it."""
    given = os.environ.get("SFUMATO_DATA")
    folder = Path(given) if given else Path(__file__).parents[2] / "shared" / "data"
    if not (folder / "mnist").is_dir():
        pytest.skip(f"needs real data: no folder 'mnist' in {folder} (SFUMATO_DATA names another)")
    return folder
