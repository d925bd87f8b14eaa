"""Sessions of a survey in a Chromium: on a phone, with reloads and a server that goes away."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="the extra `studio` is not installed")
pytest.importorskip("playwright", reason="playwright is not installed")

from playwright.sync_api import Browser, Page, sync_playwright

from sfumato.interactive.serving import LOCAL, listen
from sfumato.interactive.survey.answers import read_sessions
from sfumato.interactive.survey.key import PUBLIC, Key
from sfumato.interactive.survey.serve import survey_application
from tests.servers import running
from tests.surveys import small_survey

pytestmark = pytest.mark.browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SECONDS = 60
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium")
    with sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield one
        one.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A phone that notes each address it asks and each error of the page."""
    context = browser.new_context(**PHONE)
    one = context.new_page()
    one.set_default_timeout(1000 * SECONDS)
    one.asked, one.errors = [], []
    one.on("request", lambda request: one.asked.append(request.url))
    one.on("pageerror", lambda error: one.errors.append(str(error)))
    yield one
    assert not one.errors
    context.close()


def place(page: Page) -> str:
    return page.inner_text("#place")


def wait_until(page: Page, holds: str, argument: object = None) -> None:
    """Until a function of the page gives true. Playwright's own wait evaluates text inside of the
    page, which its Content-Security-Policy forbids."""
    until = time.monotonic() + SECONDS
    while not page.evaluate(holds, argument):
        assert time.monotonic() < until, holds
        page.wait_for_timeout(20)


def wait_for_pictures(page: Page) -> None:
    """Until an answer is taken: the pictures are there, and not only just."""
    page.wait_for_selector("#trial:visible")
    wait_until(page, "() => shownAt !== null && performance.now() - shownAt > TOO_SOON_MS")


def answer(page: Page, how: str, choice: int) -> None:
    """One question: by touch of a button or of a picture, or by key."""
    if page.is_visible("#ready"):
        page.tap("#go")
    wait_for_pictures(page)
    before = place(page)
    if how == "button":
        page.tap(f"#choices button >> nth={choice}")
    elif how == "picture":
        page.tap(f"#pictures button >> nth={choice}")
    else:
        page.keyboard.press(how)
    wait_until(
        page,
        "before => document.getElementById('trial').hidden"
        " || document.getElementById('place').textContent !== before",
        before,
    )


def fits(page: Page) -> bool:
    """Whether nothing is wider than the window, or below it."""
    return page.evaluate(
        "document.documentElement.scrollWidth <= innerWidth"
        " && document.documentElement.scrollHeight <= innerHeight"
    )


def test_a_session_on_a_phone(page: Page, tmp_path: Path) -> None:
    """Consent, practice, a reload in the middle, a server that is away for an answer, the end:
    every choice is stored as it was made, and the page asks its own server alone."""
    key = small_survey(tmp_path / "s", "preference", ties=True)
    application = survey_application(tmp_path / "s")
    place_ = listen(LOCAL, 0)
    port = place_.socket.getsockname()[1]
    chosen = []
    with running(application, place_) as url:
        page.goto(url)
        page.wait_for_selector("#agree:visible")
        assert fits(page)
        page.tap("#agree")
        for how, choice in [("button", 1), ("picture", 1), ("ArrowLeft", 0), ("ArrowDown", 1)]:
            answer(page, how, choice)
            chosen.append(2 if how == "picture" else choice)
            assert fits(page)
        wait_for_pictures(page)
        before = place(page)
        shown = page.locator("#pictures img").evaluate_all("all => all.map(one => one.src)")
        page.reload()
        wait_for_pictures(page)
        assert place(page) == before
        assert page.locator("#pictures img").evaluate_all("all => all.map(one => one.src)") == shown
        page.wait_for_load_state("networkidle")
    answer(page, "ArrowRight", 2)  # the server is away
    wait_until(page, "() => document.getElementById('note').textContent.includes('No connection')")
    chosen.append(2)
    with running(survey_application(tmp_path / "s"), listen(LOCAL, port)) as url:
        for number in range(len(chosen), len(key.forms[0])):
            answer(page, "button", number % 3)
            chosen.append(number % 3)
        page.wait_for_selector("#end:visible")
        wait_until(page, "() => document.getElementById('saved').textContent.includes('are saved')")
        page.reload()
        page.wait_for_selector("#end:visible")
    [session] = read_sessions(tmp_path / "s", key)
    assert [one.choice for one in session.answers] == chosen
    assert [one.trial for one in session.answers] == [name for name, _ in key.forms[0]]
    assert all(150 <= one.ms < 1000 * SECONDS for one in session.answers)
    assert {one for one in page.asked if not one.startswith((f"{url}/", "data:"))} == set()


def test_agreeing_while_the_server_is_away(page: Page, tmp_path: Path) -> None:
    """The page of consent says so, and goes on by itself."""
    small_survey(tmp_path / "s", "preference")
    first = listen(LOCAL, 0)
    port = first.socket.getsockname()[1]
    with running(survey_application(tmp_path / "s"), first) as url:
        page.goto(url)
        page.wait_for_selector("#agree:visible")
        page.wait_for_load_state("networkidle")
    page.tap("#agree")
    page.wait_for_selector("#consent .note:visible:has-text('No connection')")
    assert fits(page)
    with running(survey_application(tmp_path / "s"), listen(LOCAL, port)):
        wait_for_pictures(page)
        assert page.inner_text("#note") == ""


@pytest.mark.parametrize(
    ("design", "keys"), [("fit", 2), ("real", 2), ("caption", 4), ("likert", 7)]
)
def test_without_a_server(design: str, keys: int, page: Page, tmp_path: Path) -> None:
    """The page opens from the folder, goes on after a reload, and gives a file that is read."""
    key = small_survey(tmp_path / "s", design)
    page.goto((tmp_path / "s" / PUBLIC / "index.html").as_uri() + "#2")
    page.tap("#agree")
    chosen = []
    for number in range(len(key.forms[1])):
        choice = number % keys
        answer(page, str(choice + 1), choice)
        chosen.append(choice)
        if number == 5:
            page.reload()
        assert fits(page), number
    with page.expect_download() as download:
        page.tap("#file")
    file = tmp_path / download.value.suggested_filename
    download.value.save_as(file)
    [session] = read_sessions(tmp_path / "s", key, [file])
    assert session.form == 1
    assert [one.choice for one in session.answers] == chosen
    assert all(one.startswith(("file:", "data:", "blob:")) for one in page.asked)


def test_sides_are_those_of_the_key(page: Page, tmp_path: Path) -> None:
    """The value of a choice is that of the picture that is shown there."""
    import json

    key: Key = small_survey(tmp_path / "s", "preference")
    whose = json.loads((tmp_path / "s" / "key.json").read_text())["about"]["pictures"]
    page.goto((tmp_path / "s" / PUBLIC / "index.html").as_uri() + "#1")
    page.tap("#agree")
    for name, flip in key.forms[0]:
        if page.is_visible("#ready"):
            page.tap("#go")
        wait_for_pictures(page)
        names = page.locator("#pictures img").evaluate_all(
            "all => all.map(one => one.src.split('/').pop().slice(0, 16))"
        )
        shown = [whose[one]["arm"] for one in names]
        trial = key.trials[name]
        if trial.kind == "attention":
            right = [place for place, arm in enumerate(shown) if arm != "scrambled"]
        else:
            first = key.groups[0].arms[0]
            right = [place for place, arm in enumerate(shown) if arm == key.arms[first]]
        assert [key.value(name, place, flip) for place in right] == [1.0]
        answer(page, "ArrowLeft", 0)
