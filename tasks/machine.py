"""What a stage's process computed with: the processor and its instructions, GPUs, torch's own settings, and the environment
variables that change any of it. Told by that very process once its body is done: the same seed on another processor rounds bf16
otherwise, and so draws other answers.
"""

from __future__ import annotations

import os
import re
from typing import Any

import torch

from registry import nvidia
from registry.machine import processor
from specs.problems import without_password
from tasks.job import Job, Result
from tasks.threads import use_threads

VARIABLES = re.compile(
    r"(OMP|KMP|MKL|OPENBLAS|DNNL|ONEDNN|ATEN|CUDA|CUBLAS|NVIDIA|NCCL|TORCH|PYTORCH|TRANSFORMERS|ALIGNFLOW)_\w+"
    r"|PYTHONHASHSEED|HF_HUB_OFFLINE"
)
SECRETS = re.compile(r"KEY|TOKEN|SECRET|PASS|PWD|CREDENTIAL", re.IGNORECASE)


def look(job: Job) -> Result:
    """A body that builds nothing: its process only says what it would compute with."""
    use_threads(job.execution)
    return Result()


def machine() -> dict[str, Any]:
    """See the module. Of a process that sees GPUs, also those."""
    lines = [line for line in torch.__config__.show().splitlines() if re.search("Math Kernel|MKL-DNN|OpenMP", line)]
    found: dict[str, Any] = {
        **processor(),
        "torch": {
            "threads": torch.get_num_threads(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "libraries": [line.strip(" -") for line in lines],
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
            "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        },
        "variables": {
            name: without_password(value)
            for name, value in sorted(os.environ.items())
            if VARIABLES.fullmatch(name) and not SECRETS.search(name)
        },
    }
    if torch.cuda.is_available():
        found["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        found["cuda"] = {
            "version": torch.version.cuda,
            "driver": _driver(),
            "cudnn": torch.backends.cudnn.version(),
            "cudnn_deterministic": torch.backends.cudnn.deterministic,
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
        }
    return found


def _driver() -> str | None:
    return next((version for (version,) in nvidia.asked("driver_version")), None)
