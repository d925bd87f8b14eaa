"""The page of `sfumato export --space` as people start it, in a clean environment.

That is a new virtual environment with what `requirements.txt` names, in the versions of
`constraints-space.txt`, and nothing else: sfumato is not in it. Run by `make space`. With
SFUMATO_SCREENSHOTS=FOLDER a picture of the page is written there.
"""

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
from PIL import Image

from tests.servers import ask

pytestmark = [pytest.mark.space, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[1]
PATIENCE_SECONDS = 600
PROMPT = "A handwritten digit 7"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def clean(**more: str) -> dict[str, str]:
    """The variables of this process without those that lead to other packages, or to caches."""
    return {name: value for name, value in os.environ.items() if "PYTHON" not in name} | more


# Folders ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(sfumato, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The exported page of each model."""
    base = tmp_path_factory.mktemp("pages")
    for name in ("mnist", "mnist-1"):
        done = sfumato("export", f"bundled:{name}", "--out", str(base / name), "--space")
        assert done.code == 0, done.err
    return {name: base / name for name in ("mnist", "mnist-1")}


def write_constraints(file: Path) -> Path:
    """Those of the project, but for what constraints-space.txt has others of."""
    own = (ROOT / "constraints-space.txt").read_text("utf-8").splitlines()
    names = {line.partition("==")[0] for line in own}
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    kept = [line for line in lines if line.partition("==")[0] not in names]
    file.write_text("\n".join([*kept, *own, ""]), "utf-8")
    return file


@pytest.fixture(scope="module")
def python(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The Python of the clean environment, which is removed in the end: it has a gigabyte."""
    room = tmp_path_factory.mktemp("clean") / "env"
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "venv", str(room)], check=True, env=clean())
    requirements = folders["mnist"] / "requirements.txt"
    constraints = write_constraints(room.with_name("constraints.txt"))
    pip = [str(room / "bin/python"), "-m", "pip", "install", "--quiet"]
    pip += ["--disable-pip-version-check", "-r", str(requirements), "-c", str(constraints)]
    try:
        done = subprocess.run(pip, capture_output=True, text=True, check=False, env=clean())
        assert done.returncode == 0, done.stderr
        print(f"\nThe clean environment was installed in {time.monotonic() - started:.0f} s")
        yield room / "bin/python"
    finally:
        shutil.rmtree(room)


# A page that runs ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Page:
    url: str
    log: Path

    def make(self, *values: Any) -> list[np.ndarray] | None:
        """The pictures of a call, (H, W, C) uint8; None where it was refused."""
        call = ask(f"{self.url}/gradio_api/call/make", {"data": list(values)})
        assert call.status == 200, call.body
        told = ask(f"{self.url}/gradio_api/call/make/{call.json['event_id']}").body.decode()
        *_, event, data = told.strip().splitlines()
        if event == "event: error":
            return None
        assert event == "event: complete", told
        (cells,) = json.loads(data.removeprefix("data: "))
        return [self.picture(cell["image"]["url"]) for cell in cells]

    def picture(self, url: str) -> np.ndarray:
        answer = ask(url)
        assert answer.status == 200
        assert answer.headers["content-type"] == "image/png"
        return np.asarray(Image.open(io.BytesIO(answer.body)))


@contextmanager
def started(python: Path, folder: Path, room: Path) -> Iterator[Page]:
    """`python app.py`, from a working directory that is not its own, until the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = clean(GRADIO_SERVER_PORT=str(port), HF_HOME=str(room / "hub"), TMPDIR=str(room))
    page = Page(f"http://127.0.0.1:{port}", room / "log")
    with page.log.open("wb") as log:
        process = subprocess.Popen(
            [str(python), str(folder / "app.py")], cwd=room, env=variables, stdout=log, stderr=log
        )
    try:
        wait_for(page, process)
        yield page
    finally:
        process.terminate()
        process.wait(60)


def wait_for(page: Page, process: subprocess.Popen) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, page.log.read_text()
        try:
            if ask(f"{page.url}/config").status == 200:
                return
        except URLError:
            time.sleep(0.2)
    raise AssertionError(page.log.read_text())


@pytest.fixture(scope="module")
def mnist(python: Path, folders, tmp_path_factory) -> Iterator[Page]:
    with started(python, folders["mnist"], tmp_path_factory.mktemp("mnist")) as page:
        yield page


@pytest.fixture(scope="module")
def student(python: Path, folders, tmp_path_factory) -> Iterator[Page]:
    with started(python, folders["mnist-1"], tmp_path_factory.mktemp("student")) as page:
        yield page


def ours(sfumato, folder: Path, *arguments: str) -> list[np.ndarray]:
    """What `sfumato sample` draws, in the order of the seeds."""
    done = sfumato("sample", *arguments, "--out", str(folder))
    assert done.code == 0, done.err
    names = sorted(folder.glob("*.png"), key=lambda path: int(path.stem.rpartition("seed")[2]))
    return [np.asarray(Image.open(name)) for name in names]


def most_apart(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> int:
    """The largest difference of two pixels, in levels of 255. Gradio writes grey as it is given."""
    assert len(first) == len(second) > 0
    pairs = [np.broadcast_arrays(a.astype(int), b) for a, b in zip(first, second, strict=True)]
    return max(int(np.abs(a - b).max()) for a, b in pairs)


def test_the_environment_is_clean(python: Path, tmp_path: Path) -> None:
    for name in ("sfumato", "pydantic_settings", "sklearn"):
        code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec('{name}') is None)"
        assert subprocess.run([python, "-c", code], cwd=tmp_path, env=clean()).returncode == 1
    done = subprocess.run([python, "-m", "pip", "check"], capture_output=True, env=clean())
    assert done.returncode == 0, done.stdout


def test_a_picture_is_that_of_the_command(mnist: Page, sfumato, tmp_path: Path) -> None:
    """To one level of 255: another processor may round otherwise."""
    theirs = mnist.make(PROMPT, "", 3, 1, 1.25, 13)
    own = ours(sfumato, tmp_path, "bundled:mnist", PROMPT, "--seed", "3")
    assert theirs is not None
    assert most_apart(theirs, own) <= 1
    assert own[0].max() > 200


def test_settings_are_followed(mnist: Page, sfumato, tmp_path: Path) -> None:
    """Several seeds, negative prompt, guidance and steps."""
    theirs = mnist.make(PROMPT, "A handwritten digit 1", 10, 3, 3, 7)
    how = ["--negative-prompt", "A handwritten digit 1", "-w", "3", "--steps", "7", "--count", "3"]
    own = ours(sfumato, tmp_path, "bundled:mnist", PROMPT, "--seed", "10", *how)
    assert theirs is not None
    assert most_apart(theirs, own) <= 1
    plain = mnist.make(PROMPT, "", 10, 3, 3, 7)
    assert plain is not None
    assert most_apart(theirs, plain) > 1


def test_a_student_takes_prompt_seed_and_number(student: Page, sfumato, tmp_path: Path) -> None:
    theirs = student.make(PROMPT, 5, 2)
    own = ours(sfumato, tmp_path, "bundled:mnist-1", PROMPT, "--seed", "5", "--count", "2")
    assert theirs is not None
    assert most_apart(theirs, own) <= 1


@pytest.mark.parametrize(
    "values",
    [
        ("7" * 501, "", 0, 1, 1, 1),
        (PROMPT, "7" * 501, 0, 1, 1, 1),
        (PROMPT, "", -1, 1, 1, 1),
        (PROMPT, "", 2**32, 1, 1, 1),
        (PROMPT, "", 0, 0, 1, 1),
        (PROMPT, "", 0, 9, 1, 1),
        (PROMPT, "", 0, 10**9, 1, 1),
        (PROMPT, "", 0, 1, 11, 1),
        (PROMPT, "", 0, 1, 1, 101),
        (PROMPT, "", 0, 1, 1, 0),
        (PROMPT, "", "seed", 1, 1, 1),
        (None, "", 0, 1, 1, 1),
        (PROMPT, "", 0, None, 1, 1),
        (PROMPT, "", 0, 1, None, 1),
    ],
)
def test_what_is_out_of_range_is_refused(values: tuple, mnist: Page) -> None:
    """By the server too: its API has no sliders."""
    assert mnist.make(*values) is None


def test_the_queue_is_bounded_and_nothing_is_counted(mnist: Page) -> None:
    config = ask(f"{mnist.url}/config").json
    assert config["analytics_enabled"] is False
    named = ask(f"{mnist.url}/gradio_api/info").json["named_endpoints"]
    assert list(named) == ["/make"]


# In a browser -------------------------------------------------------------------------------------


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_in_a_browser(width: int, mnist: Page) -> None:
    """From a caption to pictures; nothing is asked of other machines."""
    from playwright.sync_api import expect, sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.set_default_timeout(1000 * PATIENCE_SECONDS)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(mnist.url)
        page.get_by_label("Prompt", exact=True).fill(PROMPT)
        page.get_by_role("button", name="Make pictures").click()
        page.wait_for_selector("#pictures img")
        page.get_by_role("button", name="Random seed").click()
        expect(page.get_by_label("Seed", exact=True)).not_to_have_value("0")
        screenshot(page, f"space-{width}")
        browser.close()
    assert [url for url in asked if not url.startswith((mnist.url + "/", "data:", "blob:"))] == []


def screenshot(page: Any, name: str) -> None:
    if folder := os.environ.get("SFUMATO_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)
