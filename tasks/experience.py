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

from registry.machine import threads
from registry.methods.footprint import Work
from registry.store import RECORD
from registry.throughput import Speed, speed
from specs.problems import UserError
from tasks.foreseen import FULL, Foreseen
from tasks.foretold import foresee
from tasks.texts import Unknown
from tasks.view import View

OF_A_GPU = Speed(1e14, 1e14)
"""What runs there are measured by: those before and the one to come alike, so that it cancels out."""
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
BEGINNING, TRAINING_BEGINS = 0.5, 1.5
"""Seconds of a stage with a model before it computes: the first call of everything. And of one that trains: adapters are laid,
a save is tried."""
AROUND = 1.3
"""Seconds of a stage's passes to one of bare layers: masks, padding, losses, memory that is fetched."""
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
    """Of one stage."""

    host_bytes: float = 0.0
    device_bytes: float = 0.0
    disk_bytes: float = 0.0
    passing_bytes: float = 0.0
    weights_bytes: float = 0.0
    """Of the models that are in memory at once: less will not do."""
    lost: tuple[str, ...] = ()
    """Rows that will not be used, each reason a line."""
    unknown: str = ""
    """Why nothing can be said."""


@dataclass(frozen=True)
class Time:
    """Of one stage. `seconds` is None where nothing is known."""

    seconds: float | None = None
    runs: int = 0
    """Earlier runs that it is from; 0 where it is from the processor's speed alone."""


@dataclass
class Experience:
    """Of one study on this machine."""

    view: View
    _past: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    _reckoned: dict[str, Foreseen] = field(default_factory=dict)

    def expected(self, name: str) -> Expected:
        """Of a stage or packaged model that is to be built."""
        try:
            found = self._foreseen(name)
        except (Unknown, UserError) as error:
            return Expected(unknown=str(error))
        return Expected(found.host, found.device, found.disk, found.passing, found.certain, tuple(found.lost))

    def time(self, name: str) -> Time:
        """Of a stage or packaged model that is to be built. What is not known of this machine's speed is timed."""
        try:
            found = self._foreseen(name)
        except (Unknown, UserError):
            return Time()
        kind = self.view.work(name).kind
        runs = self._runs(kind, found.parameters)
        if not runs and (self.view.study.execution.gpus or kind == "model"):  # which a network brings
            return Time()
        alone = self._alone(found.work, found.precision, threads(self.view.study.execution.threads))
        before = [
            self._alone(Work(**run["foreseen"]["work"]), run["foreseen"]["precision"], run["threads"]) for run in runs
        ]
        if alone is None or None in before:
            return Time()
        ratios = [run["seconds"] / reckoned for run, reckoned in zip(runs, before, strict=True)]
        return Time(alone * (median(ratios) if ratios else 1.0), len(ratios))

    def _alone(self, work: Work, precision: str, threads: int) -> float | None:
        """Seconds by this machine's speed alone; None where that is not known."""
        computed = 0.0
        if work.operations or work.trained:
            here = OF_A_GPU if self.view.study.execution.gpus else speed(precision, threads)
            if here is None:
                return None
            computed = AROUND * (work.operations / here.reading + work.trained / here.training)
        begins = NOTHING + BEGINNING * (work.loaded > 0) + TRAINING_BEGINS * (work.trained > 0)
        brought = work.moved / MOVING + work.loaded / LOADING
        return begins + computed + brought + work.launched * CALL + work.scored * SCORING

    def to_record(self, name: str) -> dict[str, Any]:
        """What is kept of the reckoning beside what was measured; nothing where nothing could be said."""
        try:
            found = self._foreseen(name)
        except (Unknown, UserError):
            return {}
        sizes = {"host_bytes": round(found.host), "device_bytes": round(found.device), "disk_bytes": round(found.disk)}
        return {**sizes, "parameters": found.parameters, "precision": found.precision, "work": asdict(found.work)}

    def _foreseen(self, name: str) -> Foreseen:
        if name not in self._reckoned:
            self._reckoned[name] = self._reckon(name)
        return self._reckoned[name]

    def _reckon(self, name: str) -> Foreseen:
        try:
            return foresee(self.view.artifact(name), self.view.study.execution, self.view.home, self._share)
        except (Unknown, UserError):
            raise
        except Exception as error:
            # Spoilt settings, a tokenizer that is none: the stage itself tells it, and may do without this.
            raise Unknown(f"{type(error).__name__}: {error}".splitlines()[0]) from error

    def _runs(self, kind: str, parameters: float) -> list[dict[str, Any]]:
        """Earlier ones of a kind, of those with models of the nearest size."""
        runs = [
            (abs(math.log((run["foreseen"]["parameters"] or 1.0) / (parameters or 1.0))), run)
            for run in self._of_kind(kind)
        ]
        nearest = min((distance for distance, _ in runs), default=0.0)
        return [run for distance, run in runs if distance <= min(nearest + ALIKE, FAR)][:HEARD]

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
