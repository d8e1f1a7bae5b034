"""How fast this machine's processor goes through a decoder, measured once for each precision and number of threads. No torch
here: the planner asks, and what measures is a process of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Speed:
    """Operations a second of all threads together, as `footprint.forward` counts them."""

    reading: float
    """Of passes that only go there."""
    training: float
    """Of passes there and back."""


@cache
def speed(precision: str, threads: int) -> Speed:
    """Measured in about ten seconds, and kept for this user and machine."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "alignflow" / "speed"
    path = folder / f"{socket.gethostname()}-{precision}-{threads}.json"
    with suppress(OSError, ValueError, TypeError):
        return Speed(**json.loads(path.read_bytes()))
    sys.stderr.write(f"timing this processor in {precision}, once: about ten seconds\n")
    command = [sys.executable, "-P", "-m", "registry.timing", precision, str(threads)]
    found = Speed(**json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    with suppress(OSError):  # else it is measured anew
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(found)) + "\n", encoding="utf-8")
    return found
