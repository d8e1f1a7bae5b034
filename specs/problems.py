"""What is wrong with a spec, said to the person who wrote it.

A `Problem` is one line: where in the file, which path, what is wrong and what to do. A `SpecError`
carries all of them at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a source: a file's line and column (from 1), or an option on the command line."""

    source: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, where, and the remedy."""

    mark: Mark
    path: Path
    message: str

    def __str__(self) -> str:
        place = f"{self.mark}  {show_path(self.path)}".rstrip()
        return f"{place}  {self.message}"

    def as_json(self) -> dict[str, object]:
        return {
            "file": self.mark.source,
            "line": self.mark.line,
            "column": self.mark.column,
            "path": show_path(self.path),
            "message": self.message,
        }


class SpecError(ValueError):
    """A study that cannot be run as written; holds every problem found."""

    def __init__(self, problems: Sequence[Problem]):
        # The members of a sweep share what was written once, and so its mistakes.
        distinct = {(p.mark, p.message): p for p in reversed(problems)}
        self.problems = sorted(
            distinct.values(),
            key=lambda p: (p.mark.source, p.mark.line or 0, p.mark.column or 0, show_path(p.path)),
        )
        super().__init__("\n".join(map(str, self.problems)))
        self.sound: Any = None
        """Of a study that could not be loaded what of its leaves could (`specs.load.Loaded`), to be looked at besides."""


def show_path(path: Path) -> str:
    """`("stages", "rm", "policies", 0)` as `stages.rm.policies[0]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def listed(names: Sequence[str]) -> str:
    """Names as a sentence has them, the first eight of many."""
    return ", ".join(f"`{n}`" for n in names[:8]) + (", ..." if len(names) > 8 else "")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean `x`?` for the nearest of `known`, else an empty text."""
    from difflib import get_close_matches  # a study without mistakes does not pay for it

    close = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean `{close[0]}`?" if close else ""


def without_password(text: str) -> str:
    """`text` with the password of any address in it taken out, where it stands before the host and where it is a
    parameter."""
    # A number up to a slash is a port where the address is one of the web; of a database it may begin a password.
    text = re.sub(r"(?:(https?)|(?<!http)(?<!https))://([^:/@\s]*):(?(1)(?!\d+/))\S+@", _masked, text)
    return _SECRET.sub(r"\1***", text)


_SECRET = re.compile(r"(\w*(?:passw|pwd|secret|token|api[_-]?key)\w*(?:=|%3D))(?:(?!%3B)[^&;\s])+", re.IGNORECASE)


def _masked(found: re.Match[str]) -> str:
    return f"{found[1] or ''}://{found[2]}:***@"


def without_user(address: str) -> str:
    """`address` with neither user nor password, as a browser or a health check takes it."""
    return re.sub(r"://[^/\s]+@", "://", address)


class UserError(Exception):
    """A fault in what the person gave, found while running. Its text is one line for them: what, where, remedy."""


class UnfitError(Exception):
    """The environment cannot run this: a server out of reach, a full disk, a missing GPU. One line for the person."""
