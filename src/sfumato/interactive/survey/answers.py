"""Answers: a row each in SQLite, or the JSON files that the page without a server returns."""

import json
import os
import secrets
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from sfumato.base.environment import now
from sfumato.base.errors import DamagedDataError, InputError, SfumatoError
from sfumato.base.files import PRIVATE_FILE, make_private, writing
from sfumato.interactive.survey.key import Key

DATABASE = "answers.sqlite"
WAIT_SECONDS = 30.0
"""For another program that has the database."""
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
    """The answers of one person, by number, under a random name; `simulated`: of a synthetic
    crowd."""

    name: str
    form: int
    answers: list[Answer]
    simulated: bool = False


def is_name(name: Any) -> TypeGuard[str]:
    """Whether something from outside can be the random name of a person."""
    return isinstance(name, str) and name.isascii() and 8 <= len(name) <= 64


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
    """The database of a survey that is served: every answer is on the disk when `add` returns.
    `reading`: one that is there, which stays as it is."""

    def __init__(self, file: Path, key: Key, *, reading: bool = False) -> None:
        """`SfumatoError` for a database that cannot be opened, `DamagedDataError` for another
        file."""
        self._key = key
        with writing(file):
            try:
                self._connection = _to_read(file) if reading else _to_write(file)
            except sqlite3.OperationalError as error:
                raise _refused(file, error) from error
            except sqlite3.DatabaseError as error:
                raise DamagedDataError(
                    f"{file} is no database of answers ({error}).",
                    hint="Move it away; a new one is made.",
                ) from error

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

    def add(self, session: Session, answer: Sequence[Any]) -> bool:
        """Append an answer; one that is there stays as it is, and False is returned where its
        choice is another. `ValueError` as of `checked`."""
        row = checked(self._key, session.form, answer)
        self._connection.execute(
            "INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?)", (session.name, *row, now())
        )
        (kept,) = self._connection.execute(
            "SELECT choice FROM answers WHERE session = ? AND number = ?",
            (session.name, row.number),
        ).fetchone()
        return kept == row.choice

    def sessions(self) -> list[Session]:
        """All people who began; none in a database whose server was killed before it had tables."""
        tables = self._connection.execute("SELECT COUNT(*) FROM sqlite_master WHERE type = 'table'")
        if not tables.fetchone()[0]:
            return []
        names = self._connection.execute("SELECT session FROM people ORDER BY started, session")
        return [one for (name,) in names.fetchall() if (one := self.session(name)) is not None]


def _connected(address: str) -> sqlite3.Connection:
    # A server makes it in one thread and uses it in another, one at a time.
    return sqlite3.connect(
        address, isolation_level=None, timeout=WAIT_SECONDS, check_same_thread=False, uri=True
    )


def _to_write(file: Path) -> sqlite3.Connection:
    # SQLite would make a file that others can read; what it puts beside it gets the same rights.
    with suppress(FileExistsError):
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, PRIVATE_FILE))
    for ending in ("", "-wal", "-shm"):
        make_private(file.with_name(file.name + ending))
    connection = _connected(f"{file.absolute().as_uri()}?mode=rw")
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.executescript(_TABLES)
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _to_read(file: Path) -> sqlite3.Connection:
    """In a folder that cannot be written SQLite must be told that nobody else writes, which is so
    where no journal lies beside the file."""
    alone = not file.with_name(f"{file.name}-wal").exists() and not os.access(file.parent, os.W_OK)
    connection = _connected(f"{file.absolute().as_uri()}?{'immutable=1' if alone else 'mode=ro'}")
    try:
        connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _refused(file: Path, error: sqlite3.OperationalError) -> SfumatoError:
    if error.sqlite_errorcode in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return SfumatoError(
            f"{file} is in use by another program ({error}).",
            hint="The answers are in it: leave it there. Close the other program, and start the "
            "same command again.",
        )
    return SfumatoError(
        f"{file} cannot be opened ({error}).",
        hint="The answers that it has are in it: leave it there. Its folder needs free space, and "
        "permission to write.",
    )


# Reading ------------------------------------------------------------------------------------------


def read_sessions(folder: Path, key: Key, files: Iterable[Path] = ()) -> list[Session]:
    """The answers of the database in a survey's folder, and of returned files and folders of them.

    A person who is there twice counts once, with the longer list. `InputError` for none, for a file
    that is not of this survey, and for simulated people beside real ones.
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
    kinds = {session.simulated for session in found.values() if session.answers}
    if len(kinds) > 1:
        simulated = sum(session.simulated for session in found.values())
        raise InputError(
            f"{simulated} of {len(found)} people are simulated, the others are real: together they "
            "say nothing.",
            hint="Analyse the real answers alone, or simulate with a survey that nobody has "
            "answered.",
        )
    return list(found.values())


def _served(folder: Path, key: Key) -> list[Session]:
    if not (folder / DATABASE).is_file():
        return []
    store = AnswerStore(folder / DATABASE, key, reading=True)
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
        if not is_name(name):
            raise ValueError("no name")
        answers = {one[0]: checked(key, plain["form"], one) for one in plain["answers"]}
        ordered = [answers[number] for number in sorted(answers)]
        return Session(name, plain["form"], ordered, bool(plain.get("simulated", False)))
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise InputError(
            f"{file} is no list of answers to this survey ({error}).", hint="Leave it out."
        ) from error


def returned(session: Session, survey: str) -> dict[str, Any]:
    """As the page writes it."""
    answers = [list(answer) for answer in session.answers]
    found = {
        "survey": survey,
        "session": session.name,
        "form": session.form,
        "answers": answers,
    }
    return {**found, "simulated": True} if session.simulated else found
