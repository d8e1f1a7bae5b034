"""Where an artifact comes from: package versions, code commit, command, host, device."""

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
    """The commit of the code in `folder` and whether it has uncommitted changes; empty outside a checkout."""
    command = ["git", "-C", str(folder), "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    lines = answer.stdout.splitlines()
    commit = next((line.split()[2] for line in lines if line.startswith("# branch.oid")), None)
    return {"commit": commit, "dirty": any(not line.startswith("#") for line in lines)}


def provenance(gpus: int, threads: int | None) -> dict[str, Any]:
    """What is recorded with every artifact."""
    return {
        "packages": versions(),
        "code": code_state(Path(__file__).parent),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "device": f"{gpus} GPU" if gpus else "cpu",
        "threads": threads or len(os.sched_getaffinity(0)),
    }
