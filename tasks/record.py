"""What a record says of how an artifact came to be: all that a reviewer asks for who would build it again, but the files
themselves (whose digests the store adds) and MLflow's ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from registry import environments
from registry.provenance import provenance
from specs.base import Entry
from specs.problems import without_password
from tasks.inputs import dropped_rows
from tasks.job import Result
from tasks.recorded import snapshot
from tasks.view import View, Work


class Record:
    """Begins with the build: what is to be told of its start cannot be found out at its end."""

    def __init__(self, view: View, work: Work, scratch: Path, attempt: int):
        self.view, self.work = view, work
        self.begun = {
            "started": datetime.now(UTC).isoformat(),
            "attempt": attempt,
            "resumed": any(path.is_file() for path in scratch.rglob("*")),
            "environment": environments.remember(view.home),
        }

    def end(self, result: Result, out: Path, seconds: float, foreseen: Mapping[str, Any] | None) -> dict[str, Any]:
        """The record, once the body is done. `foreseen` is what was reckoned of the stage beforehand."""
        execution = self.view.study.execution
        return {
            "payload": self.work.payload,
            "study": snapshot(self.view, self.work.name),
            "inputs": [
                {"slot": slot, "name": below.name, "kind": below.entry.kind_name, "fingerprint": below.fingerprint}
                for slot, some in self.view.artifact(self.work.name).inputs.items()
                for below in some
            ],
            "leaves": dict(self._leaves(self.work.name)),
            "metrics": {**result.metrics, **dropped_rows(out)},
            "provenance": {
                **provenance(execution.gpus, execution.threads),
                "machine": result.machine,
                **self.begun,
                "seconds": round(seconds, 3),
                "spent": result.spent,
                "foreseen": foreseen,
                "finished": datetime.now(UTC).isoformat(),
            },
        }

    def _leaves(self, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """What was given, directly or as a part of a reward: where it lay and what pins it."""
        for _, below in self.view.nodes[name].inputs:
            step = self.view.nodes[below]
            if not step.is_stage:
                yield below, {**_place(step.node.entry), **step.payload["facts"]}
                yield from self._leaves(below)


def _place(entry: Entry) -> dict[str, Any]:
    told = {name: getattr(entry, name, None) for name in ("source", "target", "base_url", "revision")}
    return {name: without_password(value) for name, value in told.items() if value is not None}
