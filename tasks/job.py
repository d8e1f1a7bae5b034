"""What a stage body is given and what it gives back.

A body is a plain function `body(job) -> Result`. It writes its files under `job.out`, reports through `job.log`,
and never chooses paths, run ids or devices.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from registry.artifacts import Artifact
from specs.execution import Execution

Event = tuple[str, Any]
"""`("metrics", (step, {name: value}))`, `("progress", (done, total, what))` or `("note", text)`."""


class Log:
    """How a body reports while it works."""

    def __init__(self, send: Callable[[Event], None]):
        self._send = send
        self._last = 0.0

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Measurements at an optimizer step, round or other count."""
        self._send(("metrics", (step, dict(values))))

    def progress(self, done: int, total: int, what: str) -> None:
        """How far the body is; sent at most five times a second."""
        now = time.monotonic()
        if done >= total or now - self._last > 0.2:
            self._last = now
            self._send(("progress", (done, total, what)))

    def note(self, text: str) -> None:
        """A sentence for the person."""
        self._send(("note", text))


@dataclass(frozen=True)
class Job:
    """One stage to be built."""

    artifact: Artifact
    """The stage itself with its inputs; its folder is not there yet."""
    out: Path
    """Where to write."""
    scratch: Path
    """What lies here outlives a process that died, until the stage is built: checkpoints, samples already drawn."""
    execution: Execution
    log: Log

    @property
    def entry(self) -> Any:
        return self.artifact.entry

    @property
    def fields(self) -> Mapping[str, Any]:
        return self.artifact.fields

    @property
    def seed(self) -> int:
        """The stage's seed, or the study's."""
        return int(self.fields["seed"])

    @property
    def start(self) -> Artifact:
        """The model that training goes on from: of the round before, where there is one."""
        return self.artifact.start

    def one(self, slot: str) -> Artifact:
        return self.artifact.one(slot)

    def many(self, slot: str) -> tuple[Artifact, ...]:
        return self.artifact.inputs.get(slot, ())


@dataclass(frozen=True)
class Result:
    """What a body found out; its files lie in `job.out`."""

    metrics: dict[str, float] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    """What it computed with; its process says so itself."""
    spent: dict[str, float] = field(default_factory=dict)
    """`host_bytes` and `device_bytes`, the most in use at once, and `processor_seconds`; written by who ran the body."""
