"""What a stage will take, for the person: reckoned from shapes, and the time brought to what earlier runs on this machine took.

Each record holds the work that was reckoned for its stage and the seconds that it took, so that what the reckoning gets wrong
of a kind it gets wrong alike before and after, and cancels out.
"""

from __future__ import annotations

import json
import math
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from registry.machine import speed, threads
from registry.methods.footprint import Work
from registry.store import RECORD
from specs.problems import UserError
from tasks.foreseen import FULL, Foreseen
from tasks.foretold import foresee
from tasks.texts import Unknown
from tasks.view import View

CALL = 6e-4
"""Seconds of calling a layer, whatever it computes."""
MOVING = 1e10
"""Bytes a second that a processor's memory gives."""
LOADING = 4e8
"""Bytes of weights a second from the disk to where they are used."""
SCORING = 2e-4
"""Seconds of a text that a reward without a model scores."""
NOTHING = 0.02
"""Seconds of a stage that computes nothing."""
BEGINNING = 0.5
"""Seconds of a stage with a model before it computes: the first call of everything."""
RECORDS = 30
"""Of one kind, the newest that are looked at."""
ALIKE = math.log(2)
"""Runs of models that are at most so much further from the size in question than the nearest are heard."""
FAR = math.log(10)
"""Runs of models further away in size say nothing: of a tiny one most of the time is not its arithmetic."""
HEARD = 5
"""Of those, the newest."""


@dataclass(frozen=True)
class Expected:
    """Of one stage. `seconds` is None where nothing is known of its time."""

    host_bytes: float = 0.0
    device_bytes: float = 0.0
    disk_bytes: float = 0.0
    passing_bytes: float = 0.0
    weights_bytes: float = 0.0
    """Of the models that are in memory at once: less will not do."""
    seconds: float | None = None
    runs: int = 0
    """Earlier runs that the time is from; 0 where it is from the processor's speed alone."""
    lost: tuple[str, ...] = ()
    """Rows that will not be used, each reason a line."""
    unknown: str = ""
    """Why nothing can be said."""


@dataclass
class Experience:
    """Of one study on this machine."""

    view: View
    _past: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def expected(self, name: str) -> Expected:
        """Of a stage or packaged model that is to be built."""
        try:
            found = self._foreseen(name)
        except (Unknown, UserError) as error:
            return Expected(unknown=str(error))
        return self._brought_to_here(name, found)

    def _brought_to_here(self, name: str, found: Foreseen) -> Expected:
        kind = self.view.work(name).kind
        ratios = self._ratios(kind, found.parameters)
        known = ratios or not (self.view.study.execution.gpus or kind == "model")  # which a network brings
        return Expected(
            found.host, found.device, found.disk, found.passing, found.certain,
            self._seconds(found.work, self._threads) * (median(ratios) if ratios else 1.0) if known else None,
            len(ratios), tuple(found.lost),
        )  # fmt: skip

    def to_record(self, name: str) -> dict[str, Any]:
        """What is kept of the reckoning beside what was measured; nothing where nothing could be said."""
        try:
            found = self._foreseen(name)
        except (Unknown, UserError):
            return {}
        sizes = {"host_bytes": round(found.host), "device_bytes": round(found.device), "disk_bytes": round(found.disk)}
        return {
            **sizes,
            "parameters": found.parameters,
            "work": asdict(found.work),
            "seconds": self._brought_to_here(name, found).seconds,
        }

    def _foreseen(self, name: str) -> Foreseen:
        try:
            return foresee(self.view.artifact(name), self.view.study.execution, self.view.home, self._share)
        except (Unknown, UserError):
            raise
        except Exception as error:
            # Spoilt settings, a tokenizer that is none: the stage itself tells it, and may do without this.
            raise Unknown(f"{type(error).__name__}: {error}".splitlines()[0]) from error

    def _seconds(self, work: Work, threads: int) -> float:
        """By the processor's speed alone."""
        a_second = speed(self.view.home) * threads
        return (
            NOTHING + BEGINNING * (work.loaded > 0) + work.operations / a_second + work.launched * CALL
            + work.moved / MOVING + work.loaded / LOADING + work.scored * SCORING
        )  # fmt: skip

    def _ratios(self, kind: str, parameters: float) -> list[float]:
        """Measured to reckoned seconds of earlier runs of a kind, of those with models of the nearest size."""
        runs = [
            (abs(math.log((run["foreseen"]["parameters"] or 1.0) / (parameters or 1.0))), run)
            for run in self._of_kind(kind)
        ]
        nearest = min((distance for distance, _ in runs), default=0.0)
        alike = [run for distance, run in runs if distance <= min(nearest + ALIKE, FAR)]
        return [
            run["seconds"] / self._seconds(Work(**run["foreseen"]["work"]), run["threads"]) for run in alike[:HEARD]
        ]

    @property
    def _threads(self) -> int:
        return threads(self.view.study.execution.threads)

    @cached_property
    def _share(self) -> float:
        """The length of a sampled answer to the most that it may have."""
        found = [
            run["metrics"]["tokens_per_response"] / run["payload"]["spec"]["max_new_tokens"]
            for kind in ("sample", "calibrate")
            for run in self._of_kind(kind)
        ]
        return median(found) if found else FULL

    def _of_kind(self, kind: str) -> list[dict[str, Any]]:
        """What the newest records of a kind on such a device of this machine say, the newest first."""
        if kind not in self._past:
            gpus = self.view.study.execution.gpus
            here = {"host": socket.gethostname(), "device": f"{gpus} GPU" if gpus else "cpu"}
            paths = [path / RECORD for path in (self.view.home / "store" / kind).glob("[!.]*")]
            newest = sorted(((_changed(path), path) for path in paths), reverse=True)
            self._past[kind] = []
            for _, path in newest[:RECORDS]:
                with suppress(OSError, ValueError, KeyError):  # another process may be taking it away, or it is none
                    record = json.loads(path.read_bytes())
                    run = record["provenance"]
                    if _is_of_today(run) and all(run[key] == value for key, value in here.items()):
                        self._past[kind].append({**run, "metrics": record["metrics"], "payload": record["payload"]})
        return self._past[kind]


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _is_of_today(run: dict[str, Any]) -> bool:
    """Whether a record holds work, and as it is counted now."""
    return set(run.get("foreseen", {}).get("work", {})) == set(Work.__slots__)
