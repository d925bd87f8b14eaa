"""The studio in a browser: prompt to PNG and back, grid, compare, evolve, live, cancel, safety.

With SFUMATO_SCREENSHOTS=FOLDER a picture of every tab is written there (docs/images/studio.png).
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="the extra `studio` is not installed")

from sfumato.interactive.studio.app import LIVE, Studio, application
from sfumato.interactive.studio.gallery import Gallery
from sfumato.interactive.studio.shelf import Shelf
from tests.servers import running

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium"),
]
MODEL = "bundled:mnist"
TOKEN = "of-the-browser"
PATIENT_MS = 240_000
expect = playwright.expect


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory, small_run: Path) -> Studio:
    folder = tmp_path_factory.mktemp("browser")
    return Studio(shelf=Shelf([MODEL, LIVE], device="cpu"), gallery=Gallery(folder), runs=small_run)


@pytest.fixture(scope="module")
def url(studio: Studio) -> Iterator[str]:
    with running(application(studio, token=TOKEN)) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        one = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield one
        one.close()


@pytest.fixture
def page(browser, url: str) -> Iterator[Any]:
    """A page of the studio with its model open; no request may leave this machine, and the
    console stays empty."""
    one = browser.new_page(viewport={"width": 1280, "height": 960})
    one.set_default_timeout(PATIENT_MS)
    expect.set_options(timeout=PATIENT_MS)
    asked: list[str] = []
    wrong: list[str] = []
    one.on("request", lambda request: asked.append(request.url))
    one.on("console", lambda message: wrong.append(message.text))
    one.on("pageerror", lambda error: wrong.append(str(error)))
    one.goto(f"{url}/?token={TOKEN}")
    expect(one.locator("#status")).to_contain_text(f"{LIVE} ready")
    expect(one.locator("#cost")).to_contain_text("NFE")
    assert one.url == f"{url}/"  # the token became a cookie
    yield one
    one.close()
    assert wrong == []
    assert [one for one in asked if not one.startswith((url + "/", "data:", "blob:"))] == []


def screenshot(page: Any, name: str) -> None:
    if folder := os.environ.get("SFUMATO_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png")


def test_from_a_prompt_to_a_png_and_back(page, url, studio):
    page.fill("[name=prompt]", "A handwritten digit 4")
    page.fill("[name=seeds]", "1-4")
    page.fill("[name=steps]", "6")
    expect(page.locator("#cost")).to_contain_text("NFE 10")
    page.press("[name=prompt]", "Control+Enter")
    expect(page.locator("#stage button.picture")).to_have_count(4)
    expect(page.locator("#make-button")).to_be_enabled()
    screenshot(page, "studio")
    first = studio.gallery.names()[0]
    page.click("#gallery button.picture >> nth=0")
    expect(page.locator("dialog pre >> nth=0")).to_contain_text("--seed 4")
    screenshot(page, "details")
    with page.expect_download() as download:
        page.click("#download")
    png = Path(download.value.path()).read_bytes()
    assert download.value.suggested_filename == "a-handwritten-digit-4-seed4.png"
    assert png == studio.gallery.path(first).read_bytes()

    page.reload()  # the gallery is still there, the form is not
    expect(page.locator("#gallery figure")).to_have_count(len(studio.gallery.names()))
    expect(page.locator("#cost")).to_contain_text("NFE 20")
    transfer = page.evaluate_handle(
        """bytes => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], "one.png"));
            return transfer;
        }""",
        list(png),
    )
    page.dispatch_event("body", "drop", {"dataTransfer": transfer})
    expect(page.locator("[name=seeds]")).to_have_value("4")
    expect(page.locator("[name=prompt]").first).to_have_value("A handwritten digit 4")
    expect(page.locator("#cost")).to_contain_text("NFE 10")
    page.click("#make-button")
    expect(page.locator("#stage button.picture")).to_have_count(1)
    again = studio.gallery.names()[0]
    assert again != first
    assert studio.gallery.path(again).read_bytes() == png


def test_a_preview_is_seen_and_sampling_is_cancelled(page, studio):
    before = studio.gallery.names()
    page.fill("[name=seeds]", "0-63")
    page.fill("[name=steps]", "1000")
    page.click("#make-button")
    expect(page.locator("#stage img.preview").first).to_be_visible()
    expect(page.locator("#told")).to_contain_text("of 64: evaluation")
    page.keyboard.press("Escape")
    expect(page.locator("#told")).to_have_text("Cancelled.")
    expect(page.locator("#make-button")).to_be_enabled()
    assert studio.gallery.names() == before


def test_live_pictures_come_as_one_types(page, studio):
    before = studio.gallery.names()
    page.check("[name=live]")
    expect(page.locator("#cost")).to_contain_text("NFE 1")
    page.fill("[name=prompt]", "A handwritten digit 8")
    expect(page.locator("#stage img[alt='A handwritten digit 8, seed 0']")).to_be_visible()
    assert studio.gallery.names() == before


def test_a_grid_is_drawn_and_then_there_at_once(page):
    page.select_option("[name=model]", LIVE)
    page.click("#tab-grid")
    page.select_option("#grid select >> nth=0", "prompt")
    page.fill("#grid textarea >> nth=1", "0-2")
    page.click("#draw-grid")
    expect(page.locator("#grid img")).to_have_count(15)
    screenshot(page, "grid")
    with page.expect_download() as download:
        page.click("text=Download as PNG")
    assert download.value.suggested_filename == "grid.png"


def test_a_blind_comparison_counts_votes(page):
    page.click("#tab-compare")
    page.fill("#compare [name=steps] >> nth=0", "4")
    page.fill("#compare input >> nth=1", "0 1")
    page.check("[name=blind]")
    page.click("#compare-button")
    left = page.locator("#compare .sides button >> nth=0")
    expect(left).to_be_enabled()
    screenshot(page, "compare")
    left.press("ArrowLeft")
    expect(page.locator("#compare")).to_contain_text("2 of 2")
    expect(left).to_be_enabled()
    left.press("ArrowDown")
    expect(page.locator("#votes")).to_contain_text("no difference 1")
    expect(page.locator("#compare img")).to_have_count(4)


def test_pictures_are_picked_bred_locked_and_gone_back_to(page, studio):
    page.fill("[name=steps] >> nth=0", "4")
    page.click("#tab-evolve")
    page.fill("[name=name]", "clicks")
    page.fill("#evolve input[max='36']", "6")
    page.click("#begin-evolution")
    expect(page.locator("#generation img")).to_have_count(6)
    page.click("#generation button.picture >> nth=1")
    page.click("#generation figcaption button >> nth=4")
    expect(page.locator("#breed")).to_have_text("Breed 2 picked")
    page.click("#breed")
    expect(page.locator("#evolve-facts")).to_contain_text("Generation 1 from 0 by 2, 5")
    expect(page.locator("#evolve-facts")).to_contain_text("deviation of the noise")
    expect(page.locator("#generation [aria-pressed=true]")).to_have_count(2)  # and its lock
    screenshot(page, "evolve")
    page.click("#trail button >> nth=0")
    expect(page.locator("#breed")).to_have_text("Breed 1 picked")
    page.click("#breed")
    expect(page.locator("#evolve-facts")).to_contain_text("Generation 2 from 0 by 5")
    assert (studio.evolutions / "clicks" / "evolution.json").is_file()


def test_runs_are_shown(page):
    page.click("#tab-train")
    page.click("#train td button")
    expect(page.locator("#train svg")).to_be_visible()
    expect(page.locator("#train img").first).to_be_visible()
    screenshot(page, "train")


def test_tabs_by_keys_in_a_narrow_window(page):
    page.set_viewport_size({"width": 380, "height": 800})
    page.focus("#tab-make")
    for name in ("grid", "compare", "evolve", "train", "make"):
        page.keyboard.press("ArrowRight")
        expect(page.locator(f"#{name}")).to_be_visible()
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 380, name
    screenshot(page, "narrow")


def test_the_documents_are_a_page(page, url):
    page.goto(f"{url}/docs")
    expect(page.locator("table")).to_contain_text("/api/picture")
    screenshot(page, "docs")
