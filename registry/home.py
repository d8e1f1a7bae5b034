"""The home folder: where a project's store, studies, locks, logs and tracking database live.

`ALIGNFLOW_HOME`, else `.alignflow` in the current folder.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from specs.problems import UnfitError

PROBE_BYTES = 1_000_000
"""What must fit on the disk for a run to start: about the size of an empty tracking database."""


def home() -> Path:
    """The home folder's path; it need not exist yet."""
    return Path(os.environ.get("ALIGNFLOW_HOME", ".alignflow")).resolve()


def make_home() -> Path:
    """The home folder, made and found writable. Raises `UnfitError`."""
    folder = home()
    try:
        for name in ("store", "studies", "locks", "logs"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        probe = folder / "locks" / f".probe-{os.getpid()}"
        try:
            probe.write_bytes(bytes(PROBE_BYTES))
        finally:
            probe.unlink(missing_ok=True)
        ignore = folder / ".gitignore"
        if not ignore.exists():
            ignore.write_text("*\n", encoding="utf-8")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UnfitError(
                f"the disk that holds {folder} is full; `alignflow gc` frees what no study needs"
            ) from None
        raise UnfitError(
            f"the home folder {folder} cannot be written: {error.strerror}; set ALIGNFLOW_HOME to a folder that can"
        ) from None
    return folder


def study_folder(home: Path, study: str) -> Path:
    """Where a study keeps its readable links, its last plan and its report."""
    return home / "studies" / study
