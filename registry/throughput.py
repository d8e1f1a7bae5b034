"""How fast this machine's processor goes through a decoder, timed once for each precision and number of threads. No torch
here: the planner asks, and what times is a process of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

from registry.machine import processor

WAY = 1
"""Of timing: what was timed in another way is timed anew."""
LONGEST = 300.0
"""Seconds that it may take; it is about ten."""


@dataclass(frozen=True)
class Speed:
    """Operations a second of all threads together, as `footprint.forward` counts them."""

    reading: float
    """Of passes that only go there."""
    training: float
    """Of passes there and back."""


@cache
def speed(precision: str, threads: int) -> Speed | None:
    """Timed, and kept for this user, machine, processor and torch. None where it cannot be timed."""
    kept = _folder() / f"{socket.gethostname()}-{precision}-{threads}.json"
    of = {"way": WAY, "torch": version("torch"), "processor": processor()["processor"]}
    with suppress(OSError, ValueError, TypeError, KeyError):
        known = json.loads(kept.read_bytes())
        if known["of"] == of:
            return Speed(known["reading"], known["training"])
    sys.stderr.write(f"timing this processor in {precision}, once: about ten seconds\n")
    command = [sys.executable, "-P", "-m", "registry.timing", precision, str(threads)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=LONGEST)
        found = Speed(**json.loads(done.stdout.splitlines()[-1]))
    except (OSError, subprocess.SubprocessError, ValueError, TypeError, IndexError):
        return None
    with suppress(OSError):  # else it is timed anew
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(asdict(found) | {"of": of}) + "\n", encoding="utf-8")
    return found


def _folder() -> Path:
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(caches) / "alignflow" / "speed"
