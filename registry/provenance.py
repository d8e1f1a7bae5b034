"""Where an artifact comes from: package versions, code commit, command, host, device. Light: `plan` must not pay for it."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from registry import machine
from specs.problems import without_password

PACKAGES = (
    "alignflow", "torch", "transformers", "trl", "peft", "datasets", "accelerate", "tokenizers",
    "safetensors", "prefect", "mlflow", "pydantic", "numpy", "scipy", "nltk", "vaderSentiment",
)  # fmt: skip


@cache
def versions() -> dict[str, str]:
    """The versions of the packages that can change a result or its record."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@cache
def code_state(folder: Path) -> dict[str, Any]:
    """The commit of the code in `folder` and whether it has uncommitted changes. Outside a checkout, and where it only lies in
    one, as an environment may in a person's own repository, what ALIGNFLOW_COMMIT says, as an image does; else empty."""
    git = ["git", "-C", str(folder)]
    try:
        own, status = (
            subprocess.run([*git, *command], capture_output=True, text=True, timeout=10, check=True).stdout
            for command in (["ls-files"], ["status", "--porcelain=v2", "--branch", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        own = status = ""
    if not own:
        told = os.environ.get("ALIGNFLOW_COMMIT", "unknown")
        return {} if told in ("", "unknown") else {"commit": told}
    lines = status.splitlines()
    commit = next((line.split()[2] for line in lines if line.startswith("# branch.oid")), None)
    return {"commit": commit, "dirty": any(not line.startswith("#") for line in lines)}


def command() -> list[str]:
    """The command line, without its passwords."""
    words = sys.argv[1:]
    pairs = zip(["", *words], words, strict=False)
    return [
        Path(sys.argv[0]).name,
        *("***" if before == "--api-key" else without_password(word) for before, word in pairs),
    ]


def provenance(gpus: int, threads: int | None) -> dict[str, Any]:
    """What is recorded with every artifact."""
    return {
        "packages": versions(),
        "code": code_state(Path(__file__).parent),
        "command": command(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "device": f"{gpus} GPU" if gpus else "cpu",
        "threads": machine.threads(threads),
    }
