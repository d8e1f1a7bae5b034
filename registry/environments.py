"""The Python that artifacts were built with: every installed package, the interpreter's build, and of AlignFlow's own code what no
commit holds. Too long for every record and the same in most, so it is kept once in the home folder, under its digest.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from registry.provenance import code_state
from registry.store import digest, disk_errors
from specs.plan import fingerprint

FOLDER = "environments"
CODE = ("flows", "tasks", "specs", "registry", "pyproject.toml")
"""What a difference is taken of: code, and no file in which a secret is kept."""
LONGEST_DIFFERENCE = 200_000  # bytes; whoever has changed more can commit it


@cache
def environment() -> dict[str, Any]:
    """That of this process. Takes a third of a second, once."""
    found = ((package.metadata["Name"], package.version) for package in distributions())
    packages = dict(sorted(((name, version) for name, version in found if name), key=lambda pair: pair[0].lower()))
    return {"python": sys.version, "packages": packages, "code": _code(Path(__file__).parents[1])}


def _code(root: Path) -> dict[str, Any]:
    state = code_state(root / "registry")
    if "dirty" not in state:  # no checkout: an image, say, whose commit is all that is known
        return state

    def git(*command: str) -> bytes:
        return subprocess.run(
            ["git", "-C", str(root), *command, "--", *CODE], capture_output=True, timeout=10, check=True
        ).stdout

    try:
        difference = git("diff", "HEAD", "--no-color", "--no-ext-diff")
        unknown = git("ls-files", "--others", "--exclude-standard", "-z").decode(errors="replace")
    except (OSError, subprocess.SubprocessError):
        return state | {"difference": None, "why": "git did not tell it"}
    state = state | {"untracked": {name: digest(root / name) for name in unknown.split("\0") if name}}
    if len(difference) > LONGEST_DIFFERENCE:
        return state | {"difference": None, "why": f"{len(difference):,} bytes are more than {LONGEST_DIFFERENCE:,}"}
    return state | {"difference": difference.decode(errors="replace")}


def remember(home: Path) -> str:
    """Keeps it, and returns the first 16 digits of its digest, which is its name."""
    content = environment()
    name = fingerprint(content)[:16]
    path = home / FOLDER / f"{name}.json"
    if not path.exists():
        with disk_errors(home):
            path.parent.mkdir(exist_ok=True)
            temporary = path.with_suffix(f".{os.getpid()}.part")
            temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
            temporary.replace(path)
    return name


def recall(home: Path, name: str) -> dict[str, Any] | None:
    """What was kept under the name; None where it is not there or is not what was kept."""
    try:
        content: dict[str, Any] = json.loads((home / FOLDER / f"{name}.json").read_bytes())
    except (OSError, ValueError):
        return None
    return content if fingerprint(content)[:16] == name else None
