"""The planner: a study and facts about its leaves to ordered steps with fingerprints. Pure.

A fingerprint is the sha256 of canonical JSON of {kind, version, identity fields with their defaults, fingerprints
of inputs}: a hash of the recipe, known before anything runs. Names of stages and studies are not in
it, nor is anything of `execution`, `tracking` or `schedule`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from specs.base import NotIdentity
from specs.graph import Graph, Node
from specs.problems import show_path
from specs.references import references, renamed
from specs.stage import Seeded
from specs.study import Study, entries

State = Literal["cached", "run", "blocked"]


@dataclass(frozen=True, slots=True)
class Fact:
    """What the study's text alone does not say about a leaf, found by looking at it."""

    identity: Mapping[str, Any] = field(default_factory=dict)
    """Joins the fingerprint: a file's digest, a pinned revision, the resolved precision."""
    drops: tuple[str, ...] = ()
    """Fields whose text the identity replaces (a path is no identity; its digest is)."""
    problem: str | None = None
    """Why the leaf cannot be had; what needs it is blocked."""
    steps: tuple[Step, ...] = ()
    """Of a promoted model what it was made of and, last and under the leaf's name, itself: it is what it was when it was built,
    so a stage above it has the fingerprint that it would have beside the stages that made it."""


@dataclass(frozen=True, slots=True)
class Step:
    """A node of the study with its identity. Stages are run; the others are leaves."""

    name: str
    node: Node
    kind: str
    inputs: tuple[tuple[str, str], ...]
    """`(slot, node name)`, in the order of the slots."""
    payload: Mapping[str, Any]
    """What the fingerprint is the hash of."""
    fingerprint: str
    held_by: str | None = None
    """Of a promoted model the place in MLflow that holds its files: it is fetched, not built."""

    @property
    def is_stage(self) -> bool:
        return self.node.section == "stages"


@dataclass(frozen=True, slots=True)
class Planned:
    """A stage and what a run would do with it."""

    step: Step
    state: State
    why: str


def canonical(payload: Any) -> str:
    """JSON with sorted keys and no white space; refuses what is not finite."""
    return json.dumps(payload, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def fingerprint(payload: Any) -> str:
    """The sha256 of the canonical JSON, in hex."""
    return hashlib.sha256(canonical(payload).encode()).hexdigest()


def steps(study: Study, facts: Mapping[str, Fact]) -> dict[str, Step]:
    """Every node in an order in which inputs come first (the file's order wherever that is free)."""
    graph = Graph(entries(study))
    done: dict[str, Step] = {}
    for start in graph.nodes:
        stack = [start]
        while stack:
            name = stack[-1]
            missing = [i for _, i in graph.inputs(name) if i not in done] if name not in done else []
            if missing:
                stack.extend(reversed(missing))
                continue
            stack.pop()
            if name not in done:
                fact = facts.get(name, Fact())
                own = fact.steps or (_step(graph, name, study, fact, done),)
                done |= {step.name: step for step in own}
    return done


def _step(graph: Graph, name: str, study: Study, fact: Fact, done: Mapping[str, Step]) -> Step:
    node = graph.nodes[name]
    inputs = tuple(graph.inputs(name))
    prints = {i: done[i].fingerprint for _, i in inputs}
    # A reference may be one name for many nodes; the hash sees the nodes.
    names = {r: [prints[m] for m in graph.members(r)] for r in _referenced(graph, node)}
    fields = renamed(node.entry, names)
    for key, info in type(node.entry).model_fields.items():
        if any(isinstance(m, NotIdentity) for m in info.metadata):
            fields.pop(info.alias or key, None)
    for key in (*fact.drops, "do", "kind"):  # the kind stands beside the fields
        fields.pop(key, None)
    if isinstance(node.entry, Seeded) and fields["seed"] is None:
        fields["seed"] = study.seed
    payload: dict[str, Any] = {
        "kind": node.entry.kind_name,
        "version": node.entry.version,
        "spec": fields,
        "facts": dict(fact.identity),
    }
    if node.part is not None:
        payload["part"] = node.part
    return Step(name, node, node.entry.kind_name, inputs, payload, fingerprint(payload))


def _referenced(graph: Graph, node: Node) -> list[str]:
    return [name for _, _, name in references(node.entry)]


def plan(
    study: Study,
    facts: Mapping[str, Fact],
    is_stored: Callable[[Step], bool],
    previous: Callable[[str], Mapping[str, Any] | None] = lambda name: None,
    forced: frozenset[str] = frozenset(),
) -> list[Planned]:
    """What a run would do, in order. `is_stored` says whether a stage's artifact exists; `previous` gives
    the payload that a stage of this name had when it last ran, to explain why it runs again."""
    nodes = steps(study, facts)
    blocked: dict[str, str] = {}
    planned: list[Planned] = []
    for name, step in nodes.items():
        problem = facts.get(name, Fact()).problem
        cause = problem or next((blocked[i] for _, i in step.inputs if i in blocked), None)
        if not step.is_stage:
            if cause:
                blocked[name] = cause
            continue
        if name not in forced and is_stored(step):
            planned.append(Planned(step, "cached", "stored"))
        elif cause:
            blocked[name] = cause
            planned.append(Planned(step, "blocked", cause))
        else:
            why = "forced" if name in forced else _why(step, previous(name), nodes)
            if since := step.payload["facts"].get("since"):
                why += f"; goes on from {step.kind} {since[:16]}"
            planned.append(Planned(step, "run", why))
    return planned


def _why(step: Step, before: Mapping[str, Any] | None, nodes: Mapping[str, Step]) -> str:
    if before is None:
        return "never ran"
    names = {n.fingerprint: n.name for n in nodes.values()}
    changed = [_show(c, names, step.kind) for c in changes(before, step.payload)]
    return "changed: " + ", ".join(changed) if changed else "its artifact is gone"


def changes(before: Any, now: Any, path: tuple[str | int, ...] = ()) -> list[tuple[tuple[str | int, ...], Any, Any]]:
    """`(path, before, now)` of every leaf that differs between two payloads."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = [*before, *(k for k in now if k not in before)]
        return [c for k in keys for c in changes(before.get(k), now.get(k), (*path, k))]
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        return [c for i, pair in enumerate(zip(before, now, strict=True)) for c in changes(*pair, (*path, i))]
    return [] if before == now else [(path, before, now)]


def _show(change: tuple[tuple[str | int, ...], Any, Any], names: Mapping[str, str], kind: str) -> str:
    path, before, now = change
    if path == ("version",):  # of the kind, not of the study's language
        return f"AlignFlow's `{kind}` {before} -> {now}"
    place = show_path(path[1:] if path[0] in ("spec", "facts") else path)
    if isinstance(now, str) and now in names:
        return f"{place} ({names[now]})"
    if _is_print(before) or _is_print(now) or isinstance(now, (dict, list)):
        return place
    return f"{place} {json.dumps(before)} -> {json.dumps(now)}"


def _is_print(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64
