"""The command line as a person meets it, called in the test's process or in one of its own."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str], list[str]]:
    """The exit status, and the lines on stdout and stderr, of a verb that imports nothing heavy."""
    from flows.cli import main

    gc.enable()  # the command line does without it, the other tests do not
    capsys.readouterr()
    status = main(list(arguments))
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return status, out.splitlines(), err.splitlines()


def planned(lines: list[str]) -> list[list[str]]:
    """The stages that `plan` tells, cell by cell, without what it says of all of them together."""
    table = lines[: lines.index("")] if "" in lines else lines
    return [line.split() for line in table if not line.startswith("state ")]


def alignflow(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The verb in a process of its own, in `folder`."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("alignflow")), *arguments],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    return done


def stored(home: Path) -> list[str]:
    """The kinds of the artifacts in the store, where nothing half-written may lie."""
    kinds = []
    for folder in (home / "store").glob("*/*"):
        assert not folder.name.endswith((".building", ".scratch"))
        record: dict[str, Any] = json.loads((folder / "record.json").read_bytes())
        assert all((folder / name).stat().st_size == file["bytes"] for name, file in record["files"].items())
        kinds.append(folder.parent.name)
    return sorted(kinds)
