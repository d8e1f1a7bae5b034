"""Memory between models: what one stage's models held is given back before the next is loaded; and the most that was in use."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

_most = {"host_bytes": 0, "device_bytes": 0}
"""What was found before the system's and the device's own marks were set back."""


def free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """The list holds, afterwards, the most bytes in use at once: of the device's tensors, or of the process where there is no
    device (0 where the system does not tell)."""
    found = [0]
    most_in_use()
    on_device, is_reset = torch.cuda.is_available(), False
    if on_device:
        torch.cuda.reset_peak_memory_stats()
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
            is_reset = True
    yield found
    if on_device:
        found[0] = torch.cuda.max_memory_allocated()
    elif is_reset:
        found[0] = _resident()


def most_in_use() -> dict[str, int]:
    """The most bytes that this process has had in use at once: in the host's memory, and on its device what was taken from the
    driver."""
    _most["host_bytes"] = max(_most["host_bytes"], _resident())
    if torch.cuda.is_available():
        _most["device_bytes"] = max(_most["device_bytes"], torch.cuda.max_memory_reserved())
    return dict(_most)


def _resident() -> int:
    with suppress(OSError):
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return 1024 * int(status.get("VmHWM", "0").split()[0])
    return 0
