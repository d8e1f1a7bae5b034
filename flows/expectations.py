"""What a study expects of its policies (`expect:`), and whether it came so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from specs.evaluation import Evaluate, meets
from specs.graph import Graph
from specs.study import entries
from tasks.evaluation_table import named
from tasks.view import View


@dataclass(frozen=True)
class Expectation:
    """A bar for one metric of one policy, beside what was found."""

    stage: str
    policy: str
    metric: str
    bar: str
    found: float

    @property
    def met(self) -> bool:
        return meets(self.bar, self.found)

    def __str__(self) -> str:
        return f"{self.stage}: {self.policy} {self.metric} is {self.found:.4g}, expected {self.bar}"


def expectations(view: View, stage: str | None = None) -> Iterator[Expectation]:
    """Every bar of the evaluations that are stored, or of one of them."""
    graph = Graph(entries(view.study))
    for name, entry in view.study.stages.items():
        if isinstance(entry, Evaluate) and entry.expect and stage in (None, name) and view.stored(name):
            evaluation = named(view.artifact(name))
            for policy, bars in entry.bars(graph).items():
                for metric, bar in bars.items():
                    yield Expectation(name, policy, metric, bar, evaluation.metric(policy, metric))
