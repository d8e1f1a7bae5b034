"""Replies of judges, kept by what was asked: one SQLite file in the home folder, so that no run pays for a reply twice.

Rows are only added, each in a transaction of its own: a run that is killed keeps what it was told, and runs at the same
time share the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from registry.home import home
from specs.plan import fingerprint
from specs.problems import UnfitError

if TYPE_CHECKING:
    import sqlite3

_TABLE = """\
CREATE TABLE IF NOT EXISTS replies (
    asked TEXT PRIMARY KEY, text TEXT NOT NULL, prompt_tokens INTEGER, completion_tokens INTEGER
) WITHOUT ROWID
"""


class Reply(NamedTuple):
    """What a judge said, and what the endpoint says that it took."""

    text: str
    prompt_tokens: int | None
    completion_tokens: int | None


def place() -> Path:
    """The file."""
    return home() / "verdicts.db"


def key(base_url: str, request: Mapping[str, Any]) -> str:
    """What a reply is kept under: all that it depends on, the endpoint, the model, the criterion, the prompt, and both
    answers in their order."""
    return fingerprint({"base_url": base_url, **request})


def known(path: Path, keys: Iterable[str]) -> dict[str, Reply]:
    """The replies that are there already, by key. Raises `UnfitError` where the file cannot be read."""
    found: dict[str, Reply] = {}
    with _opened(path) as database:
        query = "SELECT text, prompt_tokens, completion_tokens FROM replies WHERE asked = ?"
        for key in keys:
            row = database.execute(query, (key,)).fetchone()
            if row:
                found[key] = Reply(*row)
    return found


def keep(path: Path, key: str, reply: Reply) -> None:
    """Adds a reply; one that another run has added meanwhile stays. Raises `UnfitError` where the file cannot be written."""
    with _opened(path) as database:
        database.execute("INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?)", (key, *reply))


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    import sqlite3  # `check` and `plan` do without it

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=60)) as database, database:
            database.execute(_TABLE)
            yield database
    except sqlite3.Error as error:
        raise UnfitError(f"{path}, which keeps the replies of judges, cannot be used: {error}") from error
