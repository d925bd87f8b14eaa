"""Fixtures: an ideal denoiser in closed form, and one small model that was really trained."""

import contextlib
import io
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from sfumato.base.images import to_float
from sfumato.base.memory import keep_freed_memory
from sfumato.config.sections import DataConfig
from sfumato.data.records import Records, load_records
from sfumato.diffusion.process import Process, RectifiedFlow
from tests.messages import Messages, normalised, printed
from tests.ranks import Forks, arguments, ended

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


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_disks() -> Iterator[None]:
    """fsync guards against a loss of power, which no test brings about; each waits milliseconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def session_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The working directory of fixtures of a module or session."""
    with contextlib.chdir(tmp_path_factory.mktemp("session")):
        yield


@pytest.fixture(autouse=True)
def own_folder(session_folder: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The working directory of a test: an empty folder."""
    with contextlib.chdir(tmp_path_factory.mktemp("cwd")):
        yield


# Messages -----------------------------------------------------------------------------------------

MESSAGES = pytest.StashKey[Messages]()


def name_of(test: pytest.Item) -> str:
    return f"{test.path.name}::{test.name}"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-messages",
        action="store_true",
        help="write the messages of the tests that run into tests/messages.yaml; with -n 0",
    )


def pytest_configure(config: pytest.Config) -> None:
    write = config.getoption("--write-messages")
    if write and config.getoption("numprocesses", 0):
        raise pytest.UsageError("--write-messages works in one process: add -n 0")
    config.stash[MESSAGES] = Messages(write=write)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    report = yield
    if call.when == "call" and report.passed:
        wrong = item.config.stash[MESSAGES].finish(name_of(item))
        if wrong:
            report.outcome, report.longrepr = "failed", wrong
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    messages = session.config.stash[MESSAGES]
    if messages.write:
        messages.save()


@pytest.fixture
def met(request: pytest.FixtureRequest, together: Path) -> Callable[[BaseException, str], None]:
    """Compare an error or a warning with the next message of this test in `messages.yaml`."""

    def compare(error: BaseException, theirs: str) -> None:
        message = normalised(printed(error), together)
        if theirs:
            message = re.sub(theirs, "THEIRS", message, count=1)
        wrong = request.config.stash[MESSAGES].meet(name_of(request.node), message)
        if wrong:
            pytest.fail(wrong, pytrace=False)

    return compare


@pytest.fixture
def refused(met):
    """`with refused(InputError) as caught:` is `pytest.raises` that compares the whole message.

    `theirs` is a pattern of text of another library or of this machine, which is left out.
    """

    @contextlib.contextmanager
    def block(error, theirs: str = "") -> Iterator[pytest.ExceptionInfo]:
        with pytest.raises(error) as caught:
            yield caught
        met(caught.value, theirs)

    return block


@pytest.fixture
def warned(met):
    """`with warned(ResumeWarning) as caught:` is `pytest.warns` that compares whole messages."""

    @contextlib.contextmanager
    def block(category, theirs: str = "") -> Iterator[pytest.WarningsRecorder]:
        with pytest.warns(category) as caught:
            yield caught
        for warning in caught:
            if issubclass(warning.category, category):
                met(warning.message, theirs)

    return block


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


SMALL_RUN = Path(__file__).parent / "data" / "small-run"


@pytest.fixture(scope="session")
def small_run(together: Path) -> Path:
    """A copy of the run folder in `tests/data`, whose model was trained until captions matter."""
    from sfumato.generation.loading import load

    folder = together / "small"
    with FileLock(together / "small.lock"):  # the first worker copies, the others wait for it
        if not (folder / "model").exists():
            shutil.copytree(SMALL_RUN, folder, dirs_exist_ok=True)
            load(folder, device="cpu").export(folder / "model")
    return folder


@pytest.fixture(scope="session")
def small_model(small_run: Path):
    from sfumato.generation.loading import load

    return load(small_run, device="cpu")


@pytest.fixture(scope="session")
def digits8() -> Records:
    config = DataConfig(source="digits", resolution=8, channels=1, caption="digit {label}")
    return load_records(config, "train")


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    forks = Forks()
    yield forks
    forks.end()


@pytest.fixture(scope="session")
def whole(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks that nothing interrupted."""
    base = tmp_path_factory.mktemp("whole")
    started = forks.ranks(arguments(base / "run"), base / "out", size=2)
    assert ended(started, seconds=300) == [0, 0]
    return base / "run"


class IdealDenoiser:
    """The exact minimiser of the training loss on a finite data set: E[x0 | x_t, caption].

    Its "tokens" are (B, 1, 1): the label, or -1 for no caption. It outputs what a network of the
    process predicts, and takes time as such a network does.
    """

    def __init__(self, records: Records, process: Process) -> None:
        self.images = to_float(records.images, (-1.0, 1.0)).flatten(1).double()
        self.labels = records.labels
        self.process = process

    def x0(self, x_t: torch.Tensor, t: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        rows = x_t.double().flatten(1)
        a, s = self.process.signal_and_noise(t, rows)
        # |x_t - a image|^2 for every row and every image of the data set
        cross = rows @ self.images.T
        distance = rows.square().sum(1, True) - 2 * a * cross + a**2 * self.images.square().sum(1)
        logits = -distance / (2 * s.square())
        wrong = (labels[:, None] >= 0) & (self.labels[None] != labels[:, None])
        weights = logits.masked_fill(wrong, -torch.inf).softmax(1)
        return (weights @ self.images).reshape(x_t.shape)

    def __call__(self, x_t: torch.Tensor, time: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        flow = isinstance(self.process, RectifiedFlow)
        t = time.double() / RectifiedFlow.TIME_SCALE if flow else time
        x_t = x_t.double()
        x0 = self.x0(x_t, t, tokens[:, 0, 0].long())
        return self.process.target(x0, self.process.eps(x0, x_t, t), t).float()

    def nearest_labels(self, x0: torch.Tensor) -> torch.Tensor:
        """The label of the image of the data set that is nearest to each of (B, C, H, W)."""
        return self.labels[torch.cdist(x0.flatten(1).double(), self.images).argmin(1)]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets in the Hub's layout; tests that need it skip without it."""
    given = os.environ.get("SFUMATO_DATA")
    folder = Path(given) if given else Path(__file__).parents[2] / "shared" / "data"
    if not (folder / "mnist").is_dir():
        pytest.skip(f"needs real data: no folder 'mnist' in {folder} (SFUMATO_DATA names another)")
    return folder
