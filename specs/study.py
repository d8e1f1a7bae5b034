"""A whole study, and the graph its references make."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, model_validator

from specs.base import Entry, Name, Seed, Spec, StageName
from specs.data import Data
from specs.evaluation import Evaluate
from specs.execution import Execution, Schedule, Tracking
from specs.generation import Decode, DecodeGreedy, Label, Sample
from specs.models import Model
from specs.problems import Path, did_you_mean, show_path
from specs.references import Accepts, references
from specs.rewards import Reward, Weighted
from specs.training import SFT, RewardModel

AnyStage = Annotated[SFT | RewardModel | Sample | Label | Decode | Evaluate, Field(discriminator="do")]

SECTIONS = ("models", "data", "rewards", "stages")


class Study(Spec):
    """One alignment study: what exists, what is made of it, and how it runs."""

    version: Literal[1]
    """The version of the language."""
    name: Name
    """The study's name: its folder, its Prefect flow run and its MLflow run are called so."""
    seed: Seed = 0
    """The seed of every stage that names none of its own."""
    models: dict[Name, Model] = {}
    """External language models."""
    data: dict[Name, Data] = {}
    """External data."""
    rewards: dict[Name, Reward] = {}
    """Rewards that need no training."""
    stages: Annotated[dict[StageName, AnyStage], Field(min_length=1)]
    """The steps, in any order; references decide what runs first."""
    execution: Execution = Execution()
    """Resources and patience; never part of a stage's identity."""
    tracking: Tracking = Tracking()
    """Where MLflow keeps the runs."""
    schedule: Schedule | None = None
    """When a deployment of the study runs."""

    @model_validator(mode="after")
    def _is_a_graph(self) -> "Study":
        problems = list(graph_problems(Graph(entries(self)), set()))
        if problems:
            raise ValueError("; ".join(f"{show_path(path)}: {text}" for path, text in problems))
        return self


@dataclass(frozen=True, slots=True)
class Node:
    """Something a reference can name: an entry, or one part of a split data set."""

    name: str
    section: str
    entry: Entry
    part: str | None = None

    @property
    def produces(self) -> str:
        return self.entry.row_type if isinstance(self.entry, Data) else self.entry.produces


def entries(study: Study) -> list[tuple[str, str, Entry]]:
    """`(section, name, entry)` of everything in the study."""
    return [(s, name, entry) for s in SECTIONS for name, entry in getattr(study, s).items()]


class Graph:
    """The nodes of a study by name, and what each refers to."""

    def __init__(self, entries: list[tuple[str, str, Entry]]):
        self.nodes: dict[str, Node] = {}
        self.sweeps: dict[str, list[str]] = {}
        self.parts: dict[str, list[str]] = {}
        for section, name, entry in entries:
            if isinstance(entry, Data) and entry.split:
                self.parts[name] = [f"{name}.{part}" for part in entry.split]
                for part in entry.split:
                    self.nodes[f"{name}.{part}"] = Node(f"{name}.{part}", section, entry, part)
            else:
                self.nodes[name] = Node(name, section, entry)
            if "[" in name:
                self.sweeps.setdefault(name.split("[")[0], []).append(name)

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
        """Whether the reward `name` is, or contains, one kept for evaluation."""
        entry = self.nodes[name].entry
        if isinstance(entry, Weighted):
            inner = [m for _, m in self.inputs(name) if m != name]
            return entry.use == "evaluation" or any(map(self.judges_only, inner))
        return getattr(entry, "use", "any") == "evaluation"


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
            return f"`{member}` is {_a(kind)}; this takes {_a(' or '.join(accepts.types))}{_fits(graph, accepts)}"
        guides = kind == "reward" and accepts.use != "evaluation" and not cyclic
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
