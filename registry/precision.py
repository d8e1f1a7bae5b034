"""Which number type `precision: auto` means on this machine. No torch: the planner asks too."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

from registry import nvidia

Resolved = Literal["bf16", "fp32"]


@cache
def best(gpus: int) -> Resolved:
    """bf16 where the processor (with `gpus`, the GPU) computes in it, else fp32."""
    return "bf16" if (_gpu_has_bf16() if gpus else _cpu_has_bf16()) else "fp32"


def resolve(precision: str, gpus: int) -> str:
    return best(gpus) if precision == "auto" else precision


def _cpu_has_bf16() -> bool:
    try:
        words = set(Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore").split())
    except OSError:
        return False
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


def _gpu_has_bf16() -> bool:
    capabilities = [float(capability) for (capability,) in nvidia.asked("compute_cap")]
    return bool(capabilities) and min(capabilities) >= 8.0
