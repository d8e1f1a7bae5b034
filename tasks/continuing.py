"""`since: last_run`: a stage goes on from the model that the last completed run of its study made with it.

A small file beside the study's links says what that was. Only a run in which nothing failed writes it, so that a run which
was killed is finished by the next with the very fingerprints that it had, and the night after goes on from there. What a stage
goes on from is a fact about it, as a file's digest is one about data: it joins the fingerprint, and the planner stays pure.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from registry.home import study_folder
from registry.store import disk_errors, find
from specs.plan import Fact
from specs.stage import LAST_RUN, NEVER
from specs.study import Study

COMPLETED = "completed.json"


def completed(home: Path, study: str) -> dict[str, dict[str, Any]]:
    """By stage, the `kind` and the fingerprint `made` that the last completed run left, and what it went on from itself
    (`since`; None where that was the model under `from`)."""
    try:
        found: dict[str, dict[str, Any]] = json.loads((study_folder(home, study) / COMPLETED).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def facts(study: Study, home: Path, *, as_it_was: bool) -> dict[str, Fact]:
    """What the first rounds of stages with `since` go on from: in the next run, or (`as_it_was`) in the last completed one."""
    before = completed(home, study.name)
    found = {}
    stages: dict[str, Any] = study.stages
    for name, entry in stages.items():
        if _goes_on(entry) and entry.round == 1:
            made = before.get(_last_round(name), {}).get("since" if as_it_was else "made")
            model = made if entry.since == LAST_RUN else entry.since
            if model:
                kept = find(home, entry.kind_name, model)
                problem = None if kept else f"the model {model[:16]} that it goes on from is gone from the store"
                found[name] = Fact({"since": model}, problem=problem and f"{problem}; take `since` out to begin anew")
    return found


def complete(study: Study, home: Path, nodes: Any) -> None:
    """Writes down what a completed run made of its stages with `since`. `nodes` are its steps."""
    stages: dict[str, Any] = study.stages
    made = {
        name: {
            "kind": entry.kind_name,
            "made": nodes[name].fingerprint,
            "since": nodes[_first_round(name, entry)].payload["facts"].get("since"),
        }
        for name, entry in stages.items()
        if _goes_on(entry) and entry.is_last
    }
    path = study_folder(home, study.name) / COMPLETED
    if made or path.exists():
        with disk_errors(home):
            temporary = path.with_suffix(f".{time.monotonic_ns()}")
            temporary.write_text(json.dumps(made), encoding="utf-8")
            temporary.replace(path)


def _goes_on(entry: Any) -> bool:
    return getattr(entry, "since", None) not in (None, NEVER)


def _last_round(name: str) -> str:
    """The name that a chain of rounds goes by, of its first: `raft[k=4,round=1]` belongs to `raft[k=4]`."""
    return re.sub(r"\[round=1\]$", "", re.sub(r",round=1\]$", "]", name))


def pinned(study: Study, facts: Mapping[str, Fact]) -> dict[str, str]:
    """What `since` came to for each stage that has it, as a study says it that means that and nothing else."""
    stages: dict[str, Any] = study.stages
    return {
        name: facts.get(name, Fact()).identity.get("since", NEVER)
        for name, entry in stages.items()
        if _goes_on(entry) and entry.round == 1
    }


def _first_round(name: str, entry: Any) -> str:
    if entry.rounds == 1:
        return name
    return f"{name[:-1]},round=1]" if name.endswith("]") else f"{name}[round=1]"
