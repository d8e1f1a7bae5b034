"""The graph that the references of a study make, and what can be wrong with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from specs.base import Entry
from specs.calibration import Calibrate
from specs.data import Data
from specs.evaluation import Evaluate
from specs.generation import DecodeGreedy
from specs.problems import Path, did_you_mean
from specs.references import REWARDS, Accepts, references
from specs.reward_training import RL, RRHF
from specs.rewards import Weighted
from specs.rounds import Rounds
from specs.soup import Grid, Soup


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
            if "[" in name and not (isinstance(entry, Rounds) and not entry.is_last):
                self.sweeps.setdefault(name.split("[")[0], []).append(name)
        for name, node in self.nodes.items():
            if isinstance(node.entry, Soup):
                self.nodes[name] = replace(node, produces=self._kind_of_soup(name))

    def members(self, name: str) -> list[str]:
        """The nodes that a reference to `name` means; empty if there is none."""
        return [name] if name in self.nodes else self.sweeps.get(name, [])

    def inputs(self, name: str) -> Iterator[tuple[str, str]]:
        """`(slot key, node name)` of everything that node `name` refers to and that exists."""
        for slot, _, reference in references(self.nodes[name].entry):
            if slot.key != "expect":
                yield from ((slot.key, member) for member in self.members(reference))

    def known(self) -> list[str]:
        return [*self.nodes, *self.sweeps]

    def judges_only(self, name: str) -> bool:
        """Whether the reward `name` is, or is made of, one kept for evaluation."""
        entry = self.nodes[name].entry
        within = {"of", "reward"} if isinstance(entry, (Weighted, Calibrate)) else set()
        inner = [member for slot, member in self.inputs(name) if slot in within and member != name]
        return getattr(entry, "use", "any") == "evaluation" or any(map(self.judges_only, inner))

    def _kind_of_soup(self, name: str) -> str:
        """What a soup's first expert is, looked for through soups of soups."""
        seen = set()
        while isinstance(self.nodes[name].entry, Soup) and name not in seen:
            seen.add(name)
            name = next((member for _, member in self.inputs(name)), name)
        produces = self.nodes[name].produces
        return "language model" if produces == "soup" else produces


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
        if isinstance(node.entry, Evaluate):
            yield from _expectation_problems(graph, path, node.entry)
            yield from _sample_problems(graph, path, node.entry)
        elif isinstance(node.entry, RL):
            yield from _transform_problems(graph, path, node.entry)
        elif isinstance(node.entry, RRHF):
            yield from _candidate_problems(graph, path, node.entry)
        elif isinstance(node.entry, Soup):
            yield from _soup_problems(graph, path, node.entry)


def _reference_problem(
    graph: Graph, accepts: Accepts, many: bool, name: str, cyclic: bool, broken: set[str]
) -> str | None:
    members = graph.members(name)
    if name in graph.parts:
        return f"`{name}` is split; name one part: {_list(graph.parts[name])}"
    if not members:
        hint = did_you_mean(name, [*graph.known(), *broken]) or _fits(graph, accepts)
        return f"`{name}` is not defined{hint}"
    if len(members) > 1 and not many:
        return f"`{name}` is a sweep of {len(members)}; name one: {_list(members)}"
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
    fitting = [n.name for n in graph.nodes.values() if n.produces in accepts.types]
    return f"; what fits: {_list(fitting)}" if fitting else ""


def _list(names: list[str]) -> str:
    return ", ".join(f"`{n}`" for n in names[:8]) + (", ..." if len(names) > 8 else "")


def _a(noun: str) -> str:
    return noun if noun.endswith("s") else f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _expectation_problems(graph: Graph, path: Path, entry: Evaluate) -> Iterator[tuple[Path, str]]:
    policies = {member for name in entry.policies for member in graph.members(name)}
    if not all(graph.members(name) for name in entry.rewards):
        return  # said already
    rewards = [member for name in entry.rewards for member in graph.members(name)]
    known = [f"{what}.{name}" for what in ("reward", "win_rate") for name in rewards]
    if len(rewards) == 1:
        known += ["reward", "win_rate"]
    for policy, bars in entry.expect.items():
        here = (*path, "expect", policy)
        if any(m not in policies for m in graph.members(policy)):
            yield here, f"`{policy}` is not among this stage's `policies`"
        for metric in bars:
            if metric not in [*known, "length"]:
                hint = did_you_mean(metric, known) or f"; there are {_list([*known, 'length'])}"
                yield (*here, metric), f"`{metric}` is not a metric of this stage{hint}"


def _sample_problems(graph: Graph, path: Path, entry: Evaluate) -> Iterator[tuple[Path, str]]:
    """One sample a prompt leaves a win rate no pair of independent samples (`registry.methods.comparison`)."""
    against, *others = (
        {m for m in graph.members(name) if _is_random(graph, m)} for name in (entry.against, *entry.policies)
    )
    if entry.budget.samples_per_prompt == 1 and against and set().union(*others) - against:
        message = "policies share their random numbers, so a win rate needs at least 2 samples a prompt"
        yield (*path, "budget", "samples_per_prompt"), message


def _is_random(graph: Graph, policy: str) -> bool:
    return not isinstance(graph.nodes[policy].entry, DecodeGreedy)


def _transform_problems(graph: Graph, path: Path, entry: RL) -> Iterator[tuple[Path, str]]:
    """The transforms are functions on [0, 1], where calibrated rewards are uniform."""
    if getattr(entry.transform, "form", None) == "fixed_point" and entry.beta == 0:
        yield (*path, "beta"), "the fixed point is the optimum for a `beta` above 0; give one, or take `form: exponential`"
    for member in graph.members(entry.reward):
        if entry.transform.kind != "identity" and graph.nodes[member].produces in set(REWARDS) - {"calibrated reward"}:
            what = f"`{entry.transform.kind}` is for calibrated rewards, and `{member}` is none"
            yield (*path, "transform"), f"{what}; put a `do: calibrate` stage between"


def _candidate_problems(graph: Graph, path: Path, entry: RRHF) -> Iterator[tuple[Path, str]]:
    for slot in ("data", "test"):
        needs = entry.candidates.by == "data" if slot == "data" else entry.test is not None
        for member in graph.members(getattr(entry, slot) or ""):
            if needs and graph.nodes[member].produces == "prompts":
                yield (*path, slot), f"`{member}` is prompts, which have no answers; give preference pairs here"


def _soup_problems(graph: Graph, path: Path, entry: Soup) -> Iterator[tuple[Path, str]]:
    experts = [member for name in entry.experts for member in graph.members(name)]
    if not experts:
        return  # said already
    for member in experts:
        if graph.nodes[member].section == "rewards":
            yield (*path, "experts"), f"`{member}` is not trained, so it has no weights to average"
            return
    kinds = {graph.nodes[member].produces for member in experts}
    if len(kinds) > 1:
        yield (*path, "experts"), "language models and reward models do not mix"
    if len(set(experts)) < 2:
        yield (*path, "experts"), "a soup has at least two experts"
    if isinstance(entry.weights, Grid):
        yield (*path, "weights"), "a grid is spread out by the loader, and this stage did not go through it"
    elif entry.weights is not None and len(entry.weights) != len(experts):
        yield (*path, "weights"), f"{len(entry.weights)} weights for {len(experts)} experts: {_list(experts)}"
    if entry.rule != "weights" and not set.intersection(*(_lineage(graph, member) for member in experts)):
        yield (*path, "experts"), "they come from no one model, so there is no update to average"
    if entry.rule == "slerp" and len(experts) != 2:
        yield (*path, "rule"), f"`slerp` goes between two experts, and there are {len(experts)}"


def _lineage(graph: Graph, name: str) -> set[str]:
    """A model and those that it was trained from."""
    found, waiting = set(), [name]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += [member for slot, member in graph.inputs(name) if slot in ("from", "previous", "experts")]
    return found


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


def resolved_expectations(graph: Graph, entry: Evaluate) -> Mapping[str, dict[str, str]]:
    """The bars of an evaluation by member policy and full metric name (`win_rate.gold`)."""
    rewards = [member for name in entry.rewards for member in graph.members(name)]
    bars: dict[str, dict[str, str]] = {}
    for policy, metrics in entry.expect.items():
        for member in graph.members(policy):
            for metric, bar in metrics.items():
                full = f"{metric}.{rewards[0]}" if metric in ("reward", "win_rate") else metric
                bars.setdefault(member, {})[full] = bar
    return bars
