"""GPU slots: how many GPUs there are, and leases on particular ones by kernel file locks.

A Prefect concurrency limit counts slots over all runs of a server; the lease says which device a stage
sees, and is freed with its holder.
"""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from specs.problems import UnfitError


@cache
def device_names() -> tuple[str, ...]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = (v.strip() for v in visible.split(","))
        return tuple(v for v in names if v and v != "-1")
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(answer.stdout.split())


def require(gpus: int) -> None:
    """Raises `UnfitError` where a study asks for more GPUs than there are."""
    if gpus > len(device_names()):
        raise UnfitError(
            f"`execution.gpus: {gpus}`, and this machine shows {len(device_names())}; run it where there are, or set it to 0"
        )


def limit_name() -> str:
    """The name of this host's Prefect concurrency limit."""
    return f"gpu-{socket.gethostname()}"


@contextmanager
def leased(count: int, waiting: Callable[[], None] = lambda: None) -> Iterator[str]:
    """Holds `count` GPUs and gives their names for CUDA_VISIBLE_DEVICES: the empty text, which hides them all, where
    none are asked for. `waiting` is called between tries and may raise to give up."""
    if count == 0:
        yield ""
        return
    folder = Path(tempfile.gettempdir()) / "alignflow-gpus"
    with suppress(FileExistsError):
        folder.mkdir()
        folder.chmod(0o1777)  # all users of the host share its GPUs
    while True:
        with ExitStack() as held:
            mine = []
            for name in device_names():
                lock = FileLock(folder / f"{name}.lock", mode=0o666)
                try:
                    lock.acquire(timeout=0)
                except Timeout:
                    continue
                held.callback(lock.release)
                mine.append(name)
                if len(mine) == count:
                    yield ",".join(mine)
                    return
        waiting()
        time.sleep(0.5)
