"""A whole study."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from specs.base import Entry, Name, Seed, Spec, StageName
from specs.data import Data
from specs.execution import Execution, Tracking
from specs.graph import Graph, graph_problems
from specs.judges import Judge
from specs.kinds import EveryKind
from specs.models import Model
from specs.problems import show_path
from specs.rewards import Reward
from specs.schedule import Schedule
from specs.stage import Stage

SECTIONS = ("models", "data", "rewards", "judges", "stages")


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
    judges: dict[Name, Judge] = {}
    """Language models elsewhere that compare two answers."""
    stages: Annotated[dict[StageName, Annotated[Stage, EveryKind()]], Field(min_length=1)]
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


def entries(study: Study) -> list[tuple[str, str, Entry]]:
    """`(section, name, entry)` of everything in the study."""
    return [(s, name, entry) for s in SECTIONS for name, entry in getattr(study, s).items()]
