"""Which number type `precision: auto` means on this machine. No torch: the planner asks too."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

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
    import subprocess  # `check` on a machine without GPUs does not pay for it

    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return False
    capabilities = [float(line) for line in answer.stdout.split()]
    return bool(capabilities) and min(capabilities) >= 8.0
