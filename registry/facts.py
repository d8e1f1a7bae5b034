"""Looks at every leaf of a study: what identifies it, and whether it can be had. Before anything expensive."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Iterator
from pathlib import Path

from registry import data, judges, models
from registry.python_source import python_fact
from specs.data import Data
from specs.execution import Execution
from specs.graph import Graph, Node
from specs.judges import Judge
from specs.models import Model
from specs.plan import Fact
from specs.problems import Path as SpecPath
from specs.problems import UserError
from specs.rewards import Classifier, Coherence, PythonReward
from specs.sources import origin
from specs.study import Study, entries
from specs.training import Training

_NAMED_BY: dict[type, str] = {PythonReward: "target", Judge: "base_url"}
"""The field that says what a leaf is, where it is not `source`."""
BITSANDBYTES = "needs the package bitsandbytes, which is not installed; install that, or `alignflow[four_bits]`"


def gather(study: Study, home: Path, folder: Path, *, offline: bool) -> dict[str, Fact]:
    """Facts by node name, but for promoted models: only the shell speaks to MLflow. `folder` is the spec's, where Python rewards
    may lie."""
    graph = Graph(entries(study))
    facts: dict[str, Fact] = {}
    seen: dict[int, Fact] = {}
    for name, node in graph.nodes.items():
        if node.section != "stages" and not is_promoted(node):
            key = id(node.entry)  # the parts of a split share one file
            if key not in seen:
                seen[key] = look(node, study.execution.gpus, home, folder, offline)
            facts[name] = seen[key]
    return facts


def look(node: Node, gpus: int, home: Path, folder: Path, offline: bool) -> Fact:
    """What identifies a leaf beside its spec, and why it cannot be had if so."""
    try:
        return _found(node, gpus, home, folder, offline)
    except UserError as error:  # a variable in its source is not set
        return Fact(drops=("source",), problem=str(error))


def _found(node: Node, gpus: int, home: Path, folder: Path, offline: bool) -> Fact:
    match node.entry:
        case Model() as model:
            return models.fact(model, home, gpus=gpus, offline=offline)
        case Data() as rows:
            return data.fact(rows, offline=offline)
        case Classifier() as classifier:
            return models.classifier_fact(classifier, home, gpus=gpus, offline=offline)
        case Coherence() as encoder:
            return models.encoder_fact(encoder, home, offline=offline)
        case PythonReward() as reward:
            return python_fact(reward, folder)
        case Judge() as judge:
            return judges.fact(judge, offline=offline)
        case _:
            return Fact()


def is_promoted(node: Node) -> bool:
    """Whether a study has this model from MLflow's model registry."""
    return isinstance(node.entry, Model) and origin(node.entry.source, node.entry.revision) == "registry"


def check_unchanged(study: Study, facts: dict[str, Fact], names: Collection[str], home: Path, folder: Path) -> None:
    """Looks again at the leaves among the nodes `names`. Raises `UserError` if one is not what `facts` say: what is built
    of it now would be stored under the fingerprint of what it was."""
    for name, node in Graph(entries(study)).nodes.items():
        if name in names and node.section != "stages" and not is_promoted(node):
            found = look(node, study.execution.gpus, home, folder, offline=False)
            if found.problem:
                raise UserError(f"{node.section}.{name}: {found.problem}")
            if found.identity != facts[name].identity:
                raise UserError(f"{node.section}.{name}: it changed after the run began; run again")


def row_problems(study: Study, names: set[str]) -> list[tuple[SpecPath, str]]:
    """What is wrong with the rows of the local data among the nodes `names`: unreadable, too many unusable, too
    few for the split. A hub's data are left to the stage that reads them."""
    found = []
    for name, node in Graph(entries(study)).nodes.items():
        if name in names and isinstance(node.entry, Data) and node.entry.revision is None:
            label = name.split(".")[0]
            try:
                data.read(node.entry, node.part, f"data.{label}")
            except UserError as error:
                text = str(error).removeprefix(f"data.{label}: ")
                found.append(((node.section, label, "source"), text))
    return list(dict.fromkeys(found))


def problems(study: Study, facts: dict[str, Fact]) -> list[tuple[SpecPath, str]]:
    """What cannot be had, at the field of the spec that names it."""
    found: list[tuple[SpecPath, str]] = []
    for name, node in Graph(entries(study)).nodes.items():
        fact = facts.get(name)
        if fact and fact.problem:
            field = _NAMED_BY.get(type(node.entry), "source")
            # Of stages there is a fact only about the model that one goes on from.
            where = (name, "since") if node.section == "stages" else (name.split(".")[0], field)
            found.append(((node.section, *where), fact.problem))
        found += _not_together(name, node, study.execution)
        lora = getattr(node.entry, "lora", None)
        if lora and lora.base == "nf4" and importlib.util.find_spec("bitsandbytes") is None:
            found.append(((node.section, name, "lora", "base"), BITSANDBYTES))
    execution = study.execution
    if execution.sharding != "ddp" and execution.gpus < 2:
        told = f"`{execution.sharding}` splits a model over GPUs, and a stage has {execution.gpus}; set `gpus`, or leave it out"
        found.append((("execution", "sharding"), told))
    return list(dict.fromkeys(found))


def _not_together(name: str, node: Node, execution: Execution) -> Iterator[tuple[SpecPath, str]]:
    """Why several processes cannot train a stage as `execution` says."""
    entry = node.entry
    if not isinstance(entry, Training):
        return
    # Whole rows: what is sampled to one prompt is compared in one process.
    if entry.batch_size % execution.training_processes:
        told = (
            f"`{entry.batch_size}` does not divide among {execution.training_processes} processes; change one of them"
        )
        yield (node.section, name, "batch_size"), told
    if execution.sharding == "fsdp" and entry.lora is not None and entry.lora.base == "nf4":
        told = f"`fsdp` does not split weights in four bits (`lora.base: nf4` of `{name}`); use `ddp` or `deepspeed`"
        yield ("execution", "sharding"), told
    if execution.sharding == "fsdp" and entry.kind_name == "bond":
        told = f"`fsdp` does not split the anchor that `{name}` keeps beside its policy; use `ddp` or `deepspeed`"
        yield ("execution", "sharding"), told
