"""The graph that the references of a study make, and what can be wrong with it. What one kind asks of its references beyond
their types stands beside the kind (`Entry.problems`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from specs.base import Entry
from specs.data import Data
from specs.problems import Path, did_you_mean, listed
from specs.references import REWARDS, Accepts, references

SOUP = "soup"
"""What a soup says that it produces; it is what its experts are."""


@dataclass(frozen=True, slots=True)
class Node:
    """Something a reference can name: an entry, or one part of a split data set."""

    name: str
    section: str
    entry: Entry
    produces: str
    """The artifact type that a reference to it gives."""
    part: str | None = None


class Graph:
    """The nodes of a study by name, and what each refers to."""

    def __init__(self, entries: list[tuple[str, str, Entry]]):
        self.nodes: dict[str, Node] = {}
        self.sweeps: dict[str, list[str]] = {}
        self.parts: dict[str, list[str]] = {}
        for section, name, entry in entries:
            produces = entry.row_type if isinstance(entry, Data) else entry.produces
            if isinstance(entry, Data) and entry.split:
                self.parts[name] = [f"{name}.{part}" for part in entry.split]
                for part in entry.split:
                    self.nodes[f"{name}.{part}"] = Node(f"{name}.{part}", section, entry, produces, part)
            else:
                self.nodes[name] = Node(name, section, entry, produces)
            # A round that another follows is meant only where it is named.
            if "[" in name and entry.is_last:
                self.sweeps.setdefault(name.split("[")[0], []).append(name)
        for name, node in self.nodes.items():
            if node.produces == SOUP:
                self.nodes[name] = replace(node, produces=self._kind_of_soup(name))

    def members(self, name: str) -> list[str]:
        """The nodes that a reference to `name` means; empty if there is none."""
        return [name] if name in self.nodes else self.sweeps.get(name, [])

    def inputs(self, name: str) -> Iterator[tuple[str, str]]:
        """`(slot key, node name)` of everything that node `name` refers to and that exists."""
        for slot, _, reference in references(self.nodes[name].entry):
            if slot.key != "expect":
                yield from ((slot.key, member) for member in self.members(reference))

    def are_apart(self, one: str, other: str) -> bool:
        """Whether two references mean different parts of one split, which share no prompt."""
        first, second = self.nodes.get(one), self.nodes.get(other)
        return bool(first and second and first.entry is second.entry and first.part != second.part)

    def known(self) -> list[str]:
        return [*self.nodes, *self.sweeps]

    def judges_only(self, name: str) -> bool:
        """Whether the reward `name` is, or is made of, one kept for evaluation."""
        use = getattr(self.nodes[name].entry, "use", "any")
        return use == "evaluation" or any(map(self.judges_only, self.parts_of(name)))

    def parts_of(self, name: str) -> list[str]:
        """The rewards that the reward `name` is made of."""
        made_of = self.nodes[name].entry.made_of
        return [member for slot, member in self.inputs(name) if slot in made_of and member != name]

    def lineage(self, name: str) -> set[str]:
        """A model and those that it was trained from."""
        found, waiting = set(), [name]
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting += [member for slot, member in self.inputs(name) if slot in ("from", "previous", "experts")]
        return found

    def _kind_of_soup(self, name: str) -> str:
        """What a soup's first expert is, looked for through soups of soups."""
        seen = set()
        while self.nodes[name].entry.produces == SOUP and name not in seen:
            seen.add(name)
            name = next((member for _, member in self.inputs(name)), name)
        produces = self.nodes[name].produces
        return "language model" if produces == SOUP else produces


def graph_problems(graph: Graph, broken: set[str]) -> Iterator[tuple[Path, str]]:
    """What is wrong with the references: `(path, message)`. Names in `broken` exist but are wrong in
    themselves, so nothing is said about references to them."""
    cycles = list(_cycles(graph))
    for where, chain in cycles:
        yield where, f"a cycle: {' -> '.join(chain)}"
    for node in graph.nodes.values():
        path: Path = (node.section, node.name)
        if node.part is not None:
            continue
        for slot, inner, name in references(node.entry):
            if name.split(".")[0].split("[")[0] not in broken:
                text = _reference_problem(graph, slot.accepts, slot.many, name, bool(cycles), broken)
                if text:
                    yield (*path, *inner), text
        yield from (((*path, *inner), text) for inner, text in node.entry.problems(graph))


def _reference_problem(
    graph: Graph, accepts: Accepts, many: bool, name: str, cyclic: bool, broken: set[str]
) -> str | None:
    members = graph.members(name)
    if name in graph.parts:
        return f"`{name}` is split; name one part: {listed(graph.parts[name])}"
    if not members:
        hint = did_you_mean(name, [*graph.known(), *broken]) or _fits(graph, accepts)
        return f"`{name}` is not defined{hint}"
    if len(members) > 1 and not many:
        return f"`{name}` is a sweep of {len(members)}; name one: {listed(members)}"
    for member in members:
        kind = graph.nodes[member].produces
        if kind not in accepts.types:
            takes = accepts.words or _a(" or ".join(accepts.types))
            return f"`{member}` is {_a(kind)}; this takes {takes}{_fits(graph, accepts)}"
        guides = kind in REWARDS and accepts.use != "evaluation" and not cyclic
        if guides and graph.judges_only(member):
            return f"`{member}` is kept for evaluation (`use: evaluation`) and may not serve {accepts.use}"
    return None


def _fits(graph: Graph, accepts: Accepts) -> str:
    guides = accepts.use != "evaluation"
    fitting = [
        n.name
        for n in graph.nodes.values()
        if n.produces in accepts.types and not (guides and n.produces in REWARDS and graph.judges_only(n.name))
    ]
    return f"; what fits: {listed(fitting)}" if fitting else ""


def _a(noun: str) -> str:
    return noun if noun.endswith("s") else f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _cycles(graph: Graph) -> Iterator[tuple[Path, list[str]]]:
    """Each cycle once, named in order, found by walking from every node (iteratively: a study may be
    thousands of stages deep)."""
    done: set[str] = set()
    for start in graph.nodes:
        trail: list[str] = []
        stack: list[tuple[str, Iterator[tuple[str, str]]]] = []
        if start not in done:
            trail.append(start)
            stack.append((start, graph.inputs(start)))
        while stack:
            name, rest = stack[-1]
            following = next(rest, None)
            if following is None:
                stack.pop()
                done.add(trail.pop())
                continue
            key, child = following
            if child in trail:
                chain = [*trail[trail.index(child) :], child]
                yield (graph.nodes[name].section, name, key), chain
            elif child not in done:
                trail.append(child)
                stack.append((child, graph.inputs(child)))
