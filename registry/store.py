"""The store: a fingerprint to an artifact folder.

A build holds a kernel file lock on the fingerprint, so two processes that want one artifact build it
once, and the lock dies with its holder. It writes into a temporary folder beside the final one; `record.json`
is written last, everything is synced, and one rename publishes it. A folder without a record does not exist.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specs.problems import UnfitError

RECORD = "record.json"


@dataclass(frozen=True, slots=True)
class Stored:
    """An artifact in the store."""

    folder: Path
    record: dict[str, Any]


def folder_of(home: Path, kind: str, fingerprint: str) -> Path:
    return home / "store" / kind / fingerprint[:16]


def find(home: Path, kind: str, fingerprint: str, *, verify: bool = False) -> Stored | None:
    """The artifact, if it is whole: its record is there and every file has the recorded size (with
    `verify`, the recorded digest as well)."""
    folder = folder_of(home, kind, fingerprint)
    try:
        record = json.loads((folder / RECORD).read_bytes())
        files = record["files"]
        whole = record["fingerprint"] == fingerprint and all(
            (folder / name).stat().st_size == entry["bytes"] for name, entry in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if whole and verify:
        whole = all(digest(folder / name) == entry["sha256"] for name, entry in files.items())
    return Stored(folder, record) if whole else None


@contextmanager
def locked(home: Path, fingerprint: str, *, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Holds the lock on a fingerprint. `waiting` is called about once a second while another
    process holds it, and may raise to give up."""
    from filelock import FileLock, Timeout  # only a run pays for it

    lock = FileLock(home / "locks" / f"{fingerprint[:16]}.lock")
    while True:
        try:
            lock.acquire(timeout=1.0, poll_interval=0.05)
            break
        except Timeout:
            waiting()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def building(home: Path, kind: str, fingerprint: str) -> Iterator[Path]:
    """A temporary folder to build in, beside where the artifact will be; removed if it was not
    published. The caller holds the lock, so whatever an earlier holder left half-written goes first."""
    import shutil

    final = folder_of(home, kind, fingerprint)
    temporary = final.parent / f".{final.name}.building"
    with disk_errors(home):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def scratch_of(home: Path, kind: str, fingerprint: str) -> Path:
    """The folder for what is to outlive a build that dies (checkpoints); it goes when the artifact is published."""
    return folder_of(home, kind, fingerprint).with_name(f".{fingerprint[:16]}.scratch")


def drop_if_empty(home: Path, kind: str, fingerprint: str) -> None:
    """Removes the folder for what is to outlive a build, where nothing has been put there."""
    import shutil

    folder = scratch_of(home, kind, fingerprint)
    if not any(p.is_file() for p in folder.rglob("*")):
        shutil.rmtree(folder, ignore_errors=True)


def publish(home: Path, kind: str, fingerprint: str, built: Path, record: dict[str, Any]) -> Stored:
    """Makes what lies in `built` the artifact: digests, record, sync, rename."""
    import shutil

    final = folder_of(home, kind, fingerprint)
    with disk_errors(home):
        files = {}
        for path in sorted(p for p in built.rglob("*") if p.is_file()):
            files[str(path.relative_to(built))] = {"bytes": path.stat().st_size, "sha256": digest(path)}
            _sync(path)
        record = {"fingerprint": fingerprint, "kind": kind, **record, "files": files}
        text = json.dumps(record, indent=1, allow_nan=False)
        (built / RECORD).write_text(text, encoding="utf-8")
        _sync(built / RECORD)
        _sync(built)
        if final.exists():  # forced, or no longer whole
            shutil.rmtree(final)
        built.rename(final)
        _sync(final.parent)
        shutil.rmtree(scratch_of(home, kind, fingerprint), ignore_errors=True)
    return Stored(final, record)


@contextmanager
def disk_errors(home: Path) -> Iterator[None]:
    """A full or read-only disk as one line for the person."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UnfitError(f"the disk that holds {home} is full; `alignflow gc` frees what no study needs") from None
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise UnfitError(f"{error.filename or home} cannot be written: {error.strerror}") from None
        raise


def digest(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link(home: Path, study: str, stage: str, stored: Stored) -> None:
    """The readable link `studies/<study>/<stage>` to an artifact."""
    folder = home / "studies" / study
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{stage}.{os.getpid()}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(os.path.relpath(stored.folder, folder))
    temporary.replace(folder / stage)
