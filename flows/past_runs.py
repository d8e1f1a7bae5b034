"""Runs of the past: what each was, noted while it runs, and found again by whoever replays, promotes or exports it.

A note is `runs/<id>.json` in the home folder, under the id of the run in MLflow: the study as it was written, what its leaves
were then (digests, revisions), and the fingerprint of every stage. So the study stands beside the store as it did, also when
its files have changed since or are gone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from registry.provenance import code_state, command
from registry.store import Stored, disk_errors, find
from specs import written as steps
from specs.plan import Fact
from specs.problems import UserError, did_you_mean
from tasks.recorded import read, written
from tasks.view import View

if TYPE_CHECKING:
    from tasks.session import Session  # imports MLflow

NOTES = "runs"


@dataclass(frozen=True)
class PastRun:
    """A run that was."""

    id: str
    """Its parent run in MLflow."""
    view: View
    """Its study beside the store, the leaves as they were then."""
    note: Mapping[str, Any]

    def stored(self, stage: str) -> Stored:
        """A stage's artifact. Raises `UserError` where the run has no such stage, or the store does not hold what it built."""
        if stage not in self.note["stages"]:
            hint = did_you_mean(stage, self.view.planned) or f"; there are {', '.join(self.view.planned)}"
            raise UserError(f"run {self.id[:8]} of `{self.view.study.name}` has no stage `{stage}`{hint}")
        noted = self.note["stages"][stage]
        found = find(self.view.home, noted["kind"], noted["fingerprint"])
        if found is None:
            why = "is not stored: it was not built, or `gc` took it" if noted["state"] != "failed" else "failed"
            raise UserError(f"`{stage}` of run {self.id[:8]} {why}; run the study again")
        if noted["finished"] not in (None, found.record["provenance"]["finished"]):
            raise UserError(f"`{stage}` was built anew after run {self.id[:8]}; name a later run")
        return found


def past_run(asked: str, home: Path) -> PastRun:
    """The run with this id, or the one whose id begins so; of a study's name or file its last run. Raises `UserError`,
    and `SpecError` for a file that is no study."""
    notes = dict(_readable(home))
    study = _study_name(asked)
    names = {note["study"]["spec"]["name"] for note in notes.values()}
    if study in names:
        runs = [run for run, note in notes.items() if note["study"]["spec"]["name"] == study]
        runs = [max(runs, key=lambda run: str(notes[run]["started"]))]
    else:
        runs = [run for run in notes if asked and run.startswith(asked)]
    if not runs:
        raise UserError(f"{home} knows no run or study `{asked}`{did_you_mean(study, names) or _known(names)}")
    if len(runs) > 1:
        raise UserError(f"`{asked}` begins the ids of {len(runs)} runs ({', '.join(runs[:4])}); write more of it")
    return _as_it_was(runs[0], notes[runs[0]], home)


def _readable(home: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The notes of runs, without what a power cut left half-written: no other run is to be lost with it."""
    for path in sorted((home / NOTES).glob("*.json")):
        with suppress(ValueError):
            yield path.stem, json.loads(path.read_bytes())


def _study_name(asked: str) -> str:
    if Path(asked).suffix not in (".yaml", ".yml"):
        return asked
    from specs.load import load

    return load(Path(asked)).study.name


def _known(names: set[str]) -> str:
    return f"; there are {', '.join(sorted(names))}" if names else "; `alignflow run` makes one"


def _as_it_was(run: str, note: Mapping[str, Any], home: Path) -> PastRun:
    study = read(note["study"], f"run {run[:8]}")
    facts = {
        name: Fact(leaf["identity"], tuple(leaf["drops"]), steps=tuple(steps.read(leaf["steps"]).values()))
        for name, leaf in note["leaves"].items()
    }
    view = View.given(study, home, Path(note["study"]["folder"]), facts)
    other = [name for name, noted in note["stages"].items() if view.nodes[name].fingerprint != noted["fingerprint"]]
    if other:
        commit = (note["code"].get("commit") or "")[:12]
        told = f"AlignFlow has changed since run {run[:8]}, and builds {', '.join(f'`{name}`' for name in other)} otherwise now"
        raise UserError(f"{told}; use the version that ran it{f' (commit {commit})' if commit else ''}")
    return PastRun(run, view, note)


def begin(session: Session) -> None:
    """Notes what a run is about to do."""
    _write(session, {
        "study": written(session),
        "leaves": {
            name: {"identity": fact.identity, "drops": fact.drops, "steps": steps.write(fact.steps)}
            for name, fact in session.facts.items()
        },
        "stages": {
            name: {"kind": p.step.kind, "fingerprint": p.step.fingerprint, "state": None, "finished": None}
            for name, p in session.planned.items()
        },
        "command": command(),
        "code": code_state(Path(__file__).parent),
        "tags": session.tags,
        "started": datetime.now(UTC).isoformat(),
        "finished": None,
    })  # fmt: skip


def end(session: Session, states: Mapping[str, str]) -> None:
    """Notes how the stages ended: `done`, `cached` or `failed`, and when what they stand for was built."""
    note = json.loads(_place(session).read_bytes())
    for name, noted in note["stages"].items():
        stored = session.stored(name)
        noted["state"] = states.get(name)
        noted["finished"] = stored.record["provenance"]["finished"] if stored else None
    _write(session, note | {"finished": datetime.now(UTC).isoformat()})


def _place(session: Session) -> Path:
    return session.home / NOTES / f"{session.tracker.parent}.json"


def _write(session: Session, note: Mapping[str, Any]) -> None:
    path = _place(session)
    with disk_errors(session.home):
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_suffix(".part")
        temporary.write_text(json.dumps(note, indent=1, allow_nan=False), encoding="utf-8")
        temporary.replace(path)
