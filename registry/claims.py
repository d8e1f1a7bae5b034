"""What runs have open elsewhere: each holds a kernel lock beside a note on it. Its death, however it came, frees the lock and
leaves the note.

So a later run finds what the dead have left marked as running, with no guess about process numbers or silence.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

FOLDER = "claims"


@dataclass
class Claim:
    """A note, and the lock on it that this process holds."""

    path: Path
    lock: FileLock
    note: dict[str, Any]

    def end(self, left: dict[str, Any] | None = None) -> None:
        """Takes the note away, or writes down what is left to be told; and lets go of the lock."""
        if left:
            _write(self.path, left)
        else:
            self.path.unlink(missing_ok=True)
            Path(self.lock.lock_file).unlink(missing_ok=True)  # while it is held, so that it is nobody else's
        self.lock.release()


def claim(home: Path, name: str, note: dict[str, Any]) -> Claim:
    """Writes the note down, and holds its lock as long as this process lives."""
    folder = home / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    made = Claim(folder / f"{name}.json", FileLock(folder / f"{name}.lock"), note)
    made.lock.acquire()
    _write(made.path, note)
    return made


def orphans(home: Path) -> Iterator[Claim]:
    """The claims of processes that are gone, each held until it is ended."""
    for path in sorted((home / FOLDER).glob("*.json")):
        lock = FileLock(path.with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        note = _read(path)
        found = Claim(path, lock, note or {})
        if note is None:  # another has ended it meanwhile, or the disk was full
            found.end()
        else:
            yield found


def living(home: Path) -> list[dict[str, Any]]:
    """The notes of processes that are at work."""
    notes = []
    for path in sorted((home / FOLDER).glob("*.json")):
        lock = FileLock(path.with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if (note := _read(path)) is not None:
                notes.append(note)
        else:
            lock.release()
    return notes


def _read(path: Path) -> dict[str, Any] | None:
    with suppress(OSError, ValueError):
        note: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return note
    return None


def _write(path: Path, note: dict[str, Any]) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(note), encoding="utf-8")
    temporary.replace(path)
