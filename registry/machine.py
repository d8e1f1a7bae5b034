"""What this machine has: memory, disk, GPUs, which processor. No torch: the planner asks."""

from __future__ import annotations

import os
import platform
import re
import shutil
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from registry import nvidia

INSTRUCTIONS = re.compile(r"avx.*|amx.*|fma|f16c|asimd\w*|sve\w*|bf16|i8mm")
"""Of a processor's flags those that choose a kernel, and with it an order of rounding."""


@dataclass(frozen=True)
class Machine:
    """Bytes, as they are now; 0 where the system does not tell."""

    memory: int
    memory_available: int
    disk_free: int
    device_memory: tuple[int, ...]
    """Of each GPU."""
    device_free: tuple[int, ...]


def machine(home: Path, *, gpus: int) -> Machine:
    """`home` lies on the disk that is meant; a study that takes no GPU asks about none."""
    memory = _memory()
    limit, left = _limit()
    there = next(p for p in (home, *home.parents) if p.exists())
    devices = _devices() if gpus else []
    return Machine(
        int(min(memory.get("MemTotal", 0), limit)),
        int(min(memory.get("MemAvailable", 0), left)),
        shutil.disk_usage(there).free,
        tuple(total for total, _ in devices),
        tuple(free for _, free in devices),
    )


def threads(asked: int | None) -> int:
    """Of a stage's process: `execution.threads`, else what OMP_NUM_THREADS says, else the cores that this process may use."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    return asked or (int(told) if told.isdecimal() else 0) or len(os.sched_getaffinity(0))


def processor() -> dict[str, Any]:
    """Linux tells it in `/proc/cpuinfo`, once for each core; elsewhere there is what Python knows."""
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
    except OSError:
        first = ""
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
    flags = (told.get("flags") or told.get("Features") or "").split()
    name = told.get("model name") or platform.processor() or platform.machine()
    return {"processor": name, "instructions": sorted(flag for flag in flags if INSTRUCTIONS.fullmatch(flag))}


def _memory() -> dict[str, int]:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    return {name: 1024 * int(rest.split()[0]) for name, rest in (line.split(":", 1) for line in lines)}


def _limit(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> tuple[float, float]:
    """What a container or a service (control groups, version 2) may hold, and what is left of that: whatever it lies in
    counts too. Files that it read are given up when it needs more. Infinite where nothing limits it."""
    try:
        path = next(line[3:] for line in own.read_text(encoding="utf-8").splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return inf, inf
    inner = root / path.lstrip("/")
    limit, left = inf, inf
    for group in (inner, *inner.parents[: len(inner.parts) - len(root.parts)]):
        try:
            most, used = int((group / "memory.max").read_text()), int((group / "memory.current").read_text())
            kept = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # none, or `max`
            continue
        limit = min(limit, most)
        left = min(left, most - used + int(kept.get("inactive_file", 0)))
    return limit, max(left, 0)


def _devices() -> list[tuple[int, int]]:
    """Total and free bytes of each GPU that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = None if visible is None else [name.strip() for name in visible.split(",")]
    return [
        (2**20 * int(total), 2**20 * int(free))
        for index, uuid, total, free in nvidia.asked("index", "uuid", "memory.total", "memory.free")
        if total.isdigit() and free.isdigit() and (names is None or {index, uuid} & {*names})  # else `[N/A]`
    ]
