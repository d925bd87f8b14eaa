"""The server of a survey: what it serves, whom it answers, and that no kill loses an answer."""

import http.client
import json
import os
import random
import signal
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="the extra `studio` is not installed")

from sfumato.base.errors import InputError, SfumatoError
from sfumato.interactive.serving import LOCAL, listen, serve
from sfumato.interactive.survey import answers
from sfumato.interactive.survey.analysis import analyse
from sfumato.interactive.survey.analysis_page import summary
from sfumato.interactive.survey.answers import DATABASE, AnswerStore, read_sessions
from sfumato.interactive.survey.build import PAGE_FILES, PICTURES
from sfumato.interactive.survey.crowd import Crowd, write_crowd
from sfumato.interactive.survey.designs import DESIGNS
from sfumato.interactive.survey.forms import Settings
from sfumato.interactive.survey.key import KEY, PLAN, PUBLIC, read_key
from sfumato.interactive.survey.serve import TOKEN, place_of, survey_application
from tests.servers import ask, running
from tests.surveys import NAMES, SEED, key_of, small_survey


@contextmanager
def served(folder: Path) -> Iterator[str]:
    with running(survey_application(folder)) as url:
        yield url


# What it serves -----------------------------------------------------------------------------------


@pytest.mark.parametrize("design", DESIGNS)
def test_no_byte_url_or_header_tells_whose_a_picture_is(design: str, tmp_path: Path) -> None:
    """Everything that it serves, and everything that it refuses."""
    folder = tmp_path / "s"
    key = small_survey(folder, design)
    pictures = [path.name for path in (folder / PUBLIC / PICTURES).iterdir()]
    paths = ["", *PAGE_FILES, PLAN, *(f"pictures/{name}" for name in pictures)]
    wrong = ["key.json", "../key.json", "%2e%2e/key.json", "pictures/..%2f..%2fkey.json", TOKEN]
    wrong += [
        f"pictures/{KEY}",
        f"/{folder}/{KEY}",
        DATABASE,
        "pictures/",
        "api/answer",
        "openapi.json",
    ]
    with served(folder) as url:
        answers = [ask(f"{url}/{path}") for path in (*paths, *wrong)]
        began = ask(f"{url}/api/start", {})
        session = began.json["session"]
        name = key.forms[began.json["form"]][0][0]
        answers += [began, ask(f"{url}/api/start", {"session": session})]
        answers += [
            ask(f"{url}/api/answer", {"session": session, "answer": answer})
            for answer in ([0, name, 0, 500], [1, "another", 0, 500], [0], None)
        ]
    assert [one.status for one in answers[: len(paths)]] == [200] * len(paths)
    assert all(
        one.status in (307, 404, 405) for one in answers[len(paths) : len(paths) + len(wrong)]
    )
    for one in answers:
        text = (one.body + str(one.headers).encode()).lower()
        for secret in (*NAMES, "secretphotos", str(SEED), "attention", "scrambled"):
            assert secret.encode() not in text
        assert DESIGNS[design].shows != "nothing" or b"secretprompt" not in text
        for header in ("last-modified", "etag", "date", "server"):
            assert header not in one.headers
    page = answers[0].body
    assert b'name="survey-server" content="yes"' in page
    assert (folder / PUBLIC / "index.html").read_bytes() == page.replace(b'"yes"', b'"no"')


def test_the_page_names_no_other_machine(tmp_path: Path) -> None:
    small_survey(tmp_path / "s", "preference")
    for path in (tmp_path / "s" / PUBLIC).glob("*.*"):
        assert b"//" not in path.read_bytes().replace(b"// ", b"")


# Whom it answers ----------------------------------------------------------------------------------


def test_a_session_goes_on_and_is_ones_own(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    key = small_survey(folder, "preference", people=2)
    with served(folder) as url:
        people = [ask(f"{url}/api/start", {}).json for _ in range(3)]
        assert [one["form"] for one in people] == [0, 1, 0]
        assert len({one["session"] for one in people}) == 3
        first = people[0]["session"]
        for number in range(4):
            body = {"session": first, "answer": [number, key.forms[0][number][0], 1, 400 + number]}
            assert ask(f"{url}/api/answer", body).json == {"saved": True}
        again = {"session": first, "answer": [2, key.forms[0][2][0], 0, 9]}
        assert ask(f"{url}/api/answer", again).json == {"saved": False}  # the first one stays
    with served(folder) as url:
        known = ask(f"{url}/api/start", {"session": first}).json
        assert known == {"session": first, "form": 0, "answered": [0, 1, 2, 3]}
    [session] = [one for one in read_sessions(folder, key) if one.answers]
    assert [(one.choice, one.ms) for one in session.answers] == [(1, 400 + n) for n in range(4)]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("start", b"", 400),
        ("start", b"[]", 400),
        ("start", b"[" * 1_000, 400),
        ("start", b'{"session": "nobody"}', 404),
        ("start", b'{"session": "\\ud800nobodynobody"}', 404),
        ("answer", b'{"session": "\\ud800nobodynobody", "answer": []}', 404),
        ("start", b'{"session": ["nobody"]}', 404),
        ("answer", b"{}", 404),
        ("answer", b"x" * 3_000, 413),
    ],
)
def test_what_is_refused(path: str, body: bytes, status: int, tmp_path: Path) -> None:
    small_survey(tmp_path / "s", "preference")
    with served(tmp_path / "s") as url:
        found = ask(f"{url}/api/{path}", body=body)
        assert found.status == status
        assert found.json["error"]
        assert ask(f"{url}/").status == 200


def test_answers_that_the_form_does_not_ask(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    key = small_survey(folder, "preference", people=2)
    with served(folder) as url:
        session = ask(f"{url}/api/start", {}).json["session"]
        name = key.forms[0][0][0]
        for answer in (
            [0, name, 2, 1],
            [0, name, -1, 1],
            [0, name, 0.5, 1],
            [-1, name, 0, 1],
            [99, name, 0, 1],
            [0, key.forms[0][1][0], 0, 1],
            [0, name, True, 1],
            [0, [name], 0, 1],
        ):
            found = ask(f"{url}/api/answer", {"session": session, "answer": answer})
            assert found.status == 400, answer
        assert ask(f"{url}/api/start", {"session": session}).json["answered"] == []


def test_a_token_stays_after_the_server_was_started_again(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    small_survey(folder, "preference")
    tokens = []
    for _ in range(2):
        place = place_of(folder, "0.0.0.0", None)
        place.socket.close()
        tokens.append(place.token)
        (folder / TOKEN).chmod(0o644)  # as an earlier version left it
    assert tokens[0] == tokens[1]
    assert len(tokens[0] or "") >= 32
    assert place_of_closed(folder) is None
    with running(survey_application(folder, token=tokens[0])) as url:
        assert ask(url).status == 401
        assert ask(f"{url}/api/start", {}).status == 401
        assert ask(f"{url}/pictures/x.png").status == 401
        assert ask(url, authorization=f"Bearer {tokens[0]}").status == 200


def place_of_closed(folder: Path) -> str | None:
    place = place_of(folder, LOCAL, None)
    place.socket.close()
    return place.token


def test_files_are_their_owners(tmp_path: Path) -> None:
    """Also those that were there with the rights of earlier versions."""
    folder = tmp_path / "s"
    small_survey(folder, "preference")
    private = {KEY: 0o600, DATABASE: 0o600, f"{DATABASE}-wal": 0o600, TOKEN: 0o600, "": 0o700}
    for _ in range(2):
        place_of(folder, "0.0.0.0", None).socket.close()
        with served(folder) as url:
            ask(f"{url}/api/start", {})
            for name, mode in private.items():
                assert stat.S_IMODE((folder / name).stat().st_mode) == mode, name
                (folder / name).chmod(0o755)


def test_a_database_in_use(tmp_path: Path, monkeypatch, refused) -> None:
    """Nobody is told to move it away, by the server or by an analysis."""
    monkeypatch.setattr(answers, "WAIT_SECONDS", 0.05)
    folder = tmp_path / "s"
    key = small_survey(folder, "preference")
    AnswerStore(folder / DATABASE, key).close()
    other = sqlite3.connect(folder / DATABASE, isolation_level=None)
    other.execute("PRAGMA locking_mode=EXCLUSIVE")
    other.execute("INSERT INTO people VALUES ('somebody', 0, '')")
    for reading in (False, True):
        with refused(SfumatoError):
            AnswerStore(folder / DATABASE, key, reading=reading)
    other.close()
    assert [one.name for one in AnswerStore(folder / DATABASE, key).sessions()] == ["somebody"]


def test_a_database_that_cannot_be_opened(tmp_path: Path, refused) -> None:
    key = small_survey(tmp_path / "s", "preference")
    (tmp_path / "s" / DATABASE).mkdir()
    with refused(SfumatoError):
        AnswerStore(tmp_path / "s" / DATABASE, key)


def test_reading_changes_nothing(tmp_path: Path, monkeypatch) -> None:
    """Not a byte, beside a server and in a folder that is closed; a server that was killed before
    it had tables has no answers."""
    folder = tmp_path / "s"
    key = small_survey(folder, "preference", people=2)
    store = AnswerStore(folder / DATABASE, key)
    session = store.start()
    store.add(session, [0, key.forms[0][0][0], 1, 400])
    assert [len(one.answers) for one in read_sessions(folder, key)] == [1]
    store.close()
    content = (folder / DATABASE).read_bytes()
    assert [len(one.answers) for one in read_sessions(folder, key)] == [1]
    file = folder / DATABASE
    assert file.read_bytes() == content
    with monkeypatch.context() as closed:
        closed.setattr(os, "access", lambda *asked: False)
        before = sorted(folder.iterdir())
        assert [len(one.answers) for one in read_sessions(folder, key)] == [1]
        assert sorted(folder.iterdir()) == before
    file.write_bytes(b"")
    empty = AnswerStore(folder / DATABASE, key, reading=True)
    assert empty.sessions() == []
    empty.close()
    assert file.read_bytes() == b""


def test_a_database_that_is_none(tmp_path: Path, refused) -> None:
    from sfumato.base.errors import DamagedDataError

    key = small_survey(tmp_path / "s", "preference")
    (tmp_path / "s" / DATABASE).write_bytes(b"not a database" * 100)
    with refused(DamagedDataError):
        AnswerStore(tmp_path / "s" / DATABASE, key)


# Kills --------------------------------------------------------------------------------------------


def bare_survey(folder: Path, *, people: int, trials: int) -> None:
    """A survey without pictures, with many trials."""
    (folder / PUBLIC).mkdir(parents=True)
    for name in (*PAGE_FILES, PLAN):
        (folder / PUBLIC / name).write_text("")
    settings = Settings(design="preference", people=people, trials=trials, items=trials)
    (folder / KEY).write_text(json.dumps(key_of(settings, 2).plain()))


def forked_server(folder: Path, port: int) -> int:
    """The id of a process that serves; a copy of this one, so that it answers at once."""
    child = os.fork()
    if child == 0:
        try:
            place = listen(LOCAL, port)
            serve(survey_application(folder), place, browser=False, started=lambda: None)
        finally:
            os._exit(1)
    return child


class Person:
    """Answers without end, as the page does: what is not confirmed is sent again."""

    def __init__(self, port: int, rng: random.Random, key) -> None:
        self.port, self.rng, self.key = port, rng, key
        self.given: dict[str, list[list]] = {}
        self.confirmed: dict[str, int] = {}
        self.session, self.form = "", 0
        self.reloads = self.replies = 0

    def post(self, path: str, body: dict) -> dict | None:
        """None where the server is away or dies meanwhile."""
        connection = http.client.HTTPConnection(LOCAL, self.port, timeout=20)
        try:
            connection.request("POST", f"/api/{path}", json.dumps(body))
            answer = connection.getresponse()
            content = answer.read()
            assert answer.status == 200, content
            self.replies += 1
            return json.loads(content)
        except (OSError, http.client.HTTPException, ValueError):
            time.sleep(0.005)
            return None
        finally:
            connection.close()

    def step(self) -> None:
        given = self.given.get(self.session, [])
        if not self.session or len(given) == self.confirmed[self.session] == len(self.form_):
            self.begin()
        elif len(given) > self.confirmed[self.session]:
            if self.post("answer", {"session": self.session, "answer": given[-1]}) is not None:
                self.confirmed[self.session] += 1
        elif self.rng.random() < 0.05:
            self.reload()
        else:
            number = len(given)
            given.append([number, self.form_[number][0], self.rng.randrange(2), 1000 + number])

    def until_answered(self) -> None:
        """Until a server has answered."""
        before, end = self.replies, time.monotonic() + 60
        while self.replies == before:
            assert time.monotonic() < end
            self.step()

    def is_waiting(self) -> bool:
        """Whether an answer is not confirmed."""
        return len(self.given[self.session]) > self.confirmed[self.session]

    @property
    def form_(self) -> list:
        return self.key.forms[self.form]

    def begin(self) -> None:
        found = self.post("start", {})
        if found is not None:
            self.session, self.form = found["session"], found["form"]
            self.given[self.session], self.confirmed[self.session] = [], 0

    def reload(self) -> None:
        """What was confirmed is there."""
        found = self.post("start", {"session": self.session})
        if found is not None:
            assert found["form"] == self.form
            assert found["answered"] == [*range(self.confirmed[self.session])]
            self.reloads += 1


def killed_servers(folder: Path, kills: int) -> Person:
    """A person answers while the server is killed at random moments and started again."""
    bare_survey(folder, people=5, trials=60)
    socket = listen(LOCAL, 0).socket
    port = socket.getsockname()[1]
    socket.close()
    rng = random.Random(kills)
    person = Person(port, rng, read_key(folder))
    for _ in range(kills):
        child = forked_server(folder, port)
        if rng.random() < 0.8:  # the others are killed while they start
            person.until_answered()
        timer = threading.Timer(rng.random() * 0.2, os.kill, (child, signal.SIGKILL))
        timer.start()
        while timer.is_alive():
            person.step()
        timer.join()
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
    child = forked_server(folder, port)
    try:
        while person.session and person.is_waiting():
            person.step()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return person


KILLS = 100


@pytest.mark.slow
def test_no_kill_loses_an_answer(tmp_path: Path) -> None:
    """Every answer that was given is there once, as it was given first; none that was not."""
    person = killed_servers(tmp_path / "s", KILLS)
    stored = {
        one.name: [list(answer) for answer in one.answers]
        for one in read_sessions(tmp_path / "s", person.key)
    }
    assert {name: rows for name, rows in stored.items() if rows} == {
        name: rows for name, rows in person.given.items() if rows
    }
    total = sum(map(len, stored.values()))
    print(f"{KILLS} kills, {person.reloads} reloads, {total} answers")
    assert total > KILLS
    assert person.reloads > 0


# A crowd beside people ----------------------------------------------------------------------------


def test_simulated_people_are_marked_and_not_mixed_with_others(tmp_path: Path, refused) -> None:
    folder = tmp_path / "s"
    key = small_survey(folder, "preference", people=2)
    write_crowd(tmp_path / "crowd", key, Crowd(strengths=[0.0] * len(key.arms)), seed=0)
    sessions = read_sessions(folder, key, [tmp_path / "crowd"])
    assert [one.simulated for one in sessions] == [True, True]
    found = analyse(key, sessions, resamples=100)
    assert summary(found).startswith("Simulated: ")
    assert not analyse(
        key, [replace(one, simulated=False) for one in sessions], resamples=100
    ).simulated
    with served(folder) as url:
        first = ask(f"{url}/api/start", {}).json["session"]
        body = {"session": first, "answer": [0, key.forms[0][0][0], 1, 400]}
        assert ask(f"{url}/api/answer", body).json == {"saved": True}
    with refused(InputError):
        read_sessions(folder, key, [tmp_path / "crowd"])
