"""Answers: a row each in SQLite, or the JSON files that the page without a server returns."""

import json
import secrets
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sfumato.base.environment import now
from sfumato.base.errors import DamagedDataError, InputError
from sfumato.base.files import writing
from sfumato.interactive.survey.key import Key

DATABASE = "answers.sqlite"
MOST_BYTES = 4_000_000
"""Of a returned file: 40,000 answers."""
_TABLES = """
CREATE TABLE IF NOT EXISTS people (session TEXT PRIMARY KEY, form INTEGER, started TEXT);
CREATE TABLE IF NOT EXISTS answers (
  session TEXT, number INTEGER, trial TEXT, choice INTEGER, ms INTEGER, at TEXT,
  PRIMARY KEY (session, number)) WITHOUT ROWID;
"""


class Answer(NamedTuple):
    """`number`: place in the form; `choice`: number of what was chosen, as it was shown; `ms`: time
    from the picture to the choice."""

    number: int
    trial: str
    choice: int
    ms: int


@dataclass(frozen=True)
class Session:
    """The answers of one person, by number, under a random name."""

    name: str
    form: int
    answers: list[Answer]


def checked(key: Key, form: Any, answer: Sequence[Any]) -> Answer:
    """An answer from outside; `ValueError` where the form does not ask it."""
    if len(answer) != 4 or any(type(answer[place]) is not int for place in (0, 2, 3)):
        raise ValueError("an answer is number, trial, choice and milliseconds")
    number, trial, choice, ms = answer
    if type(form) is not int or not 0 <= form < len(key.forms):
        raise ValueError("no such form")
    if not 0 <= number < len(key.forms[form]) or key.forms[form][number][0] != trial:
        raise ValueError("this form does not ask that")
    if not 0 <= choice < len(key.trials[trial].values):
        raise ValueError("no such choice")
    return Answer(number, trial, choice, min(max(ms, 0), 10**9))


class AnswerStore:
    """The database of a survey that is served: every answer is on the disk when `add` returns."""

    def __init__(self, file: Path, key: Key) -> None:
        self._key = key
        with writing(file):
            try:
                self._open(file)
            except sqlite3.DatabaseError as error:
                raise DamagedDataError(
                    f"{file} is no database of answers ({error}).",
                    hint="Move it away; a new one is made.",
                ) from error

    def _open(self, file: Path) -> None:
        # A server makes it in one thread and uses it in another, one at a time.
        self._connection = sqlite3.connect(
            file, isolation_level=None, timeout=30, check_same_thread=False
        )
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.executescript(_TABLES)

    def close(self) -> None:
        self._connection.close()

    def people(self) -> int:
        """How many began."""
        return self._connection.execute("SELECT COUNT(*) FROM people").fetchone()[0]

    def start(self) -> Session:
        """A new person, with the form that fewest have."""
        taken = dict(self._connection.execute("SELECT form, COUNT(*) FROM people GROUP BY form"))
        form = min(range(len(self._key.forms)), key=lambda one: (taken.get(one, 0), one))
        name = secrets.token_hex(16)
        self._connection.execute("INSERT INTO people VALUES (?, ?, ?)", (name, form, now()))
        return Session(name, form, [])

    def session(self, name: str) -> Session | None:
        """Where a person is; None for a name that was not given here."""
        row = self._connection.execute(
            "SELECT form FROM people WHERE session = ?", (name,)
        ).fetchone()
        if row is None:
            return None
        rows = self._connection.execute(
            "SELECT number, trial, choice, ms FROM answers WHERE session = ? ORDER BY number",
            (name,),
        )
        return Session(name, row[0], [Answer(*one) for one in rows])

    def add(self, session: Session, answer: Sequence[Any]) -> None:
        """Append an answer; one that is there stays as it is. `ValueError` as of `checked`."""
        row = checked(self._key, session.form, answer)
        self._connection.execute(
            "INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?)", (session.name, *row, now())
        )

    def sessions(self) -> list[Session]:
        """All people who began."""
        names = self._connection.execute("SELECT session FROM people ORDER BY started, session")
        return [one for (name,) in names.fetchall() if (one := self.session(name)) is not None]


# Reading ------------------------------------------------------------------------------------------


def read_sessions(folder: Path, key: Key, files: Iterable[Path] = ()) -> list[Session]:
    """The answers of the database in a survey's folder, and of returned files and folders of them.

    A person who is there twice counts once, with the longer list. `InputError` for none, and for a
    file that is not of this survey.
    """
    found: dict[str, Session] = {}
    given = list(_served(folder, key))
    for path in files:
        paths = sorted(path.glob("answers*.json")) if path.is_dir() else [path]
        given += [read_returned(one, key) for one in paths]
    for session in given:
        known = found.get(session.name)
        if known is None or len(known.answers) < len(session.answers):
            found[session.name] = session
    if not any(session.answers for session in found.values()):
        raise InputError(
            f"{folder} has no answers yet.",
            hint="Serve it with `sfumato survey serve`, or give the files that people returned.",
        )
    return list(found.values())


def _served(folder: Path, key: Key) -> list[Session]:
    if not (folder / DATABASE).is_file():
        return []
    store = AnswerStore(folder / DATABASE, key)
    try:
        return store.sessions()
    finally:
        store.close()


def read_returned(file: Path, key: Key) -> Session:
    """A file that the page without a server gave; `InputError` for any other."""
    if not file.is_file():
        raise InputError(f"{file} does not exist.", hint="Give files that people returned.")
    try:
        if file.stat().st_size > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES:,} bytes")
        plain = json.loads(file.read_bytes())
        if plain["survey"] != key.survey:
            raise ValueError("of another survey")
        name = plain["session"]
        if not isinstance(name, str) or not 8 <= len(name) <= 64:
            raise ValueError("no name")
        answers = {one[0]: checked(key, plain["form"], one) for one in plain["answers"]}
        return Session(name, plain["form"], [answers[number] for number in sorted(answers)])
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise InputError(
            f"{file} is no list of answers to this survey ({error}).", hint="Leave it out."
        ) from error


def returned(session: Session, survey: str) -> dict[str, Any]:
    """As the page writes it."""
    answers = [list(answer) for answer in session.answers]
    return {
        "survey": survey,
        "session": session.name,
        "form": session.form,
        "answers": answers,
    }
