"""GPU slots: how many GPUs there are, and leases on particular ones by kernel file locks.

The lease says which device a stage sees, whichever server its run belongs to, and is freed with its holder. A Prefect
concurrency limit shows on a lasting server how many are taken, and counts what a lock cannot see.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from registry import nvidia
from specs.execution import Execution
from specs.problems import UnfitError

LEASES = Path("/tmp/alignflow-gpus")


@cache
def device_names() -> tuple[str, ...]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = (v.strip() for v in visible.split(","))
        return tuple(v for v in names if v and v != "-1")
    return _of_this_host()


def count() -> int:
    """The GPUs of this host, whichever of them this process may use."""
    return max(len(_of_this_host()), len(device_names()))


def studies_at_once() -> int:
    """How many deployed studies this host runs at once: two on the same cores would ruin each other."""
    return max(1, count())


def _of_this_host() -> tuple[str, ...]:
    return tuple(index for (index,) in nvidia.asked("index"))


@cache
def _card(name: str) -> str:
    """What a device is by, however it is called here: two processes may see different ones as the first."""
    cards = {row[0]: row[-1] for row in nvidia.asked("index", "uuid")}
    full = (uuid for uuid in cards.values() if name.startswith("GPU-") and uuid.startswith(name))
    return cards.get(name) or next(full, name)


def lacking(execution: Execution) -> str | None:
    """What a study asks for and this machine has not: so many GPUs, or what splits a model over them."""
    if execution.gpus > len(device_names()):
        there = len(device_names()) or "none"
        return f"`execution.gpus: {execution.gpus}`, and this machine shows {there}; run it where there are, or set it to 0"
    if execution.sharding == "deepspeed" and importlib.util.find_spec("deepspeed") is None:
        return "`execution.sharding: deepspeed` needs the package deepspeed, which is not installed"
    return None


def require(execution: Execution) -> None:
    """Raises `UnfitError` where a study asks for what this machine has not."""
    if told := lacking(execution):
        raise UnfitError(told)


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
    with suppress(FileExistsError):
        LEASES.mkdir()
        LEASES.chmod(0o1777)  # all users of the host share its GPUs
    while True:
        with ExitStack() as held:
            mine = []
            for name in device_names():
                lock = FileLock(LEASES / f"{_card(name).replace('/', '-')}.lock", mode=0o666)
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
