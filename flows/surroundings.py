"""What a record says of the surroundings of a build, against those of here and now: each difference with what it means for the
numbers. None of it is identity, so none of it forbids a replay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from registry import environments
from registry.provenance import PACKAGES, provenance
from specs.execution import Execution
from tasks import child

LOOK = "tasks.machine:look"
ROUNDS = "sums are rounded otherwise, so that draws may tip and weights differ in their last bits"
MEANING = "other code; had its meaning changed, the fingerprints would differ"
VERSIONS = "another version may compute otherwise"
PLACES = ("ALIGNFLOW_", "CUDA_VISIBLE_DEVICES")
"""How variables begin that say where things lie, or which of the GPUs it was."""


@dataclass
class Difference:
    """One thing that is otherwise here than where some stages were built."""

    what: str
    then: Any
    now: Any
    means: str
    stages: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.what}: {_shown(self.then)}, here {_shown(self.now)}"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return "none" if value in (None, "") else str(value)


def here(execution: Execution, home: Path) -> dict[str, Any]:
    """As a record's provenance: told by a process like those that build stages."""
    log = home / "logs" / "surroundings.log"
    devices = None if execution.gpus else ""
    request = child.Request(LOOK, None, home, home, execution, log, devices)
    result, _ = child.run_body(request, on_event=lambda _: None)
    return {
        **provenance(execution.gpus, execution.threads),
        "machine": result.machine,
        "environment": environments.remember(home),
    }


def differences(records: Mapping[str, Mapping[str, Any]], home: Path, now: Mapping[str, Any]) -> list[Difference]:
    """Between `now` and each stage's record, the same for several stages told once. `home` is where the records lie."""
    found: dict[str, Difference] = {}
    for stage, record in records.items():
        then = record["provenance"]
        whole = environments.recall(home, then.get("environment", "")) or then
        for one in _between(then, whole, now):
            found.setdefault(str(one), one).stages.append(stage)
    return list(found.values())


def _between(then: Mapping[str, Any], whole: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Difference]:
    yield from _code(whole.get("code", {}), environments.environment()["code"])
    packages = {"python": then["packages"].get("python"), **whole["packages"]}
    present = {"python": now["packages"]["python"], **environments.environment()["packages"]}
    for name in dict.fromkeys((*packages, *present)):
        known = name in packages or whole is not then  # the short list of a record does not say what else there was
        if known and packages.get(name) != present.get(name):
            means = VERSIONS if name in (*PACKAGES, "python") else "seldom matters"
            yield Difference(f"package {name}", packages.get(name), present.get(name), means)
    for what in ("device", "threads"):
        if then[what] != now[what]:
            yield Difference(what, then[what], now[what], ROUNDS)
    if "machine" in then:
        yield from _machines(then["machine"], now["machine"])


def _code(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Difference]:
    if then.get("commit") != now.get("commit"):
        yield Difference("AlignFlow's commit", then.get("commit"), now.get("commit"), MEANING)
    mine, yours = _uncommitted(then), _uncommitted(now)
    if mine != yours:
        told = ["with uncommitted changes" if some else "as committed" for some in (mine, yours)]
        yield Difference("AlignFlow's code", told[0], f"{'others' if mine and yours else told[1]}", MEANING)


def _uncommitted(code: Mapping[str, Any]) -> dict[str, Any]:
    """What no commit holds: changes, or why they are not known, and new files by their digests."""
    if code.get("dirty") and "difference" not in code:
        return {"why": "its environment is gone"}
    return {key: code[key] for key in ("difference", "why", "untracked") if code.get(key)}


def _machines(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Difference]:
    for what in ("processor", "instructions", "gpus"):
        if then.get(what) != now.get(what) and (what != "gpus" or set(then.get(what, ())) != set(now.get(what, ()))):
            yield Difference(what, then.get(what), now.get(what), ROUNDS)
    for group, name in (("torch", "torch's"), ("cuda", "CUDA's")):
        mine, yours = then.get(group, {}), now.get(group, {})
        for key in dict.fromkeys((*mine, *yours)):
            if key != "threads" and mine.get(key) != yours.get(key):
                yield Difference(f"{name} {key.replace('_', ' ')}", mine.get(key), yours.get(key), ROUNDS)
    mine, yours = then["variables"], now["variables"]
    for key in sorted({*mine, *yours}):
        if not key.startswith(PLACES) and mine.get(key) != yours.get(key):
            yield Difference(f"variable {key}", mine.get(key), yours.get(key), "it may change what libraries do")
