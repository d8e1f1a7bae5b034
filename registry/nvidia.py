"""What NVIDIA's driver says of the GPUs of this host, without torch."""

from __future__ import annotations


def asked(*fields: str) -> list[list[str]]:
    """By GPU, the answers to fields of `nvidia-smi --query-gpu`; nothing where there is no driver or it is out of order."""
    import subprocess  # `check` of a study without GPUs does not pay for it

    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [[word.strip() for word in line.split(",")] for line in answer.stdout.splitlines()]
