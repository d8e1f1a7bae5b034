"""One run of a study: its view, its tracker, who watches, and what has finished.

A plain object handed to every task of the flow; nothing of it is stored.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field

from filelock import FileLock

from registry.claims import Claim
from registry.home import study_folder
from registry.store import Stored, disk_errors, link
from tasks import versions
from tasks.observer import Observer
from tasks.places import registry_place
from tasks.tracking import Tracker
from tasks.view import LAST, View, last_payloads


@dataclass
class Session(View):
    """See the module."""

    tracker: Tracker
    tags: dict[str, str]
    observe: Observer
    claim: Claim
    has_slots: bool = False
    """Whether a Prefect server that lasts counts the GPUs that stages take; one that ends with the run would remember those of
    a run that was killed as taken for ever."""
    body_seconds: float = 0.0
    """Time spent inside stage bodies, over all stages."""
    _finished: dict[str, Stored] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def finished(self, name: str, stored: Stored) -> None:
        """Remembers a stage's artifact, and links it under the study's name."""
        with self._lock:
            self._finished[name] = stored
        if self.nodes[name].is_stage:
            link(self.home, self.study.name, name, stored)

    def stored(self, name: str) -> Stored | None:
        return self._finished.get(name) or super().stored(name)

    def fetch(self, name: str) -> Stored:
        """Places a promoted model's files into the store; the caller holds its lock."""
        self.observe(name, "started", None)
        began = time.monotonic()
        stored = versions.fetch(self.home, self.nodes[name], registry_place(self.study, self.home)[0])
        self.finished(name, stored)
        self.observe(name, "done", ({}, time.monotonic() - began))
        return stored

    def add_body_time(self, seconds: float) -> None:
        with self._lock:
            self.body_seconds += seconds

    def remember(self) -> None:
        """Keeps the payloads of what is stored, so that the next plan can say what changed and `gc` leaves it alone."""
        path = study_folder(self.home, self.study.name) / LAST
        path.parent.mkdir(parents=True, exist_ok=True)
        stored = {*self._finished, *(name for name, p in self.planned.items() if p.state == "cached")}
        others = FileLock(path.with_suffix(".lock"))  # other runs of this study write too
        with self._lock, disk_errors(self.home), others:
            before = last_payloads(self.home, self.study.name)
            last = {name: payload for name, payload in before.items() if name in self.planned}
            last |= {name: dict(self.nodes[name].payload) for name in stored if name in self.planned}
            temporary = path.with_suffix(f".{time.monotonic_ns()}")
            temporary.write_text(json.dumps(last), encoding="utf-8")
            temporary.replace(path)
