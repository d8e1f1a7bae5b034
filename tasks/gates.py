"""Whether evaluations are sure that a policy meets its bars: not the estimate is to meet them, but the end of its interval.

A promotion is a decision for some time, made on some prompts: a bar of 0.55 that the estimate meets and the interval does not
is one that the next prompts may miss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from registry.methods.significance import can_tell
from specs.evaluation import Evaluate, read_bar, surely_meets
from specs.graph import Graph
from specs.problems import UserError, did_you_mean, listed
from specs.study import entries
from tasks.evaluation_table import Evaluation, named
from tasks.view import View


@dataclass(frozen=True)
class Gate:
    """A bar, and what an evaluation found."""

    evaluation: str
    metric: str
    bar: str
    estimate: float
    low: float
    high: float
    prompts: int
    """From so many is the interval."""
    confidence: float

    @property
    def _tells(self) -> bool:
        return can_tell(self.prompts, confidence=self.confidence)

    @property
    def is_met(self) -> bool:
        return self._tells and surely_meets(self.bar, {"low": self.low, "high": self.high})

    def __str__(self) -> str:
        found = f"{self.evaluation}: {self.metric} is {self.estimate:.4g} [{self.low:.4g}, {self.high:.4g}]"
        if not self._tells:
            return f"{found} on {self.prompts} {'prompt' if self.prompts == 1 else 'prompts'}, too few to be sure of {self.bar}"
        end = "lower" if self.bar.startswith(">") else "upper"
        return f"{found}, and its {end} end {'meets' if self.is_met else 'misses'} {self.bar}"


def evaluations(view: View, policy: str) -> dict[str, Evaluate]:
    """The evaluations of the study that compare the policy, by name."""
    graph = Graph(entries(view.study))
    found = {name: entry for name, entry in view.study.stages.items() if isinstance(entry, Evaluate)}
    return {name: entry for name, entry in found.items() if policy in entry.compared(graph)}


def gates(view: View, policy: str, more: Sequence[str]) -> list[Gate]:
    """Each bar that the study's evaluations and `more` (texts such as `win_rate.gold >= 0.55`) set for the policy. Raises
    `UserError` where one is set that nothing stored can tell about."""
    graph = Graph(entries(view.study))
    comparing = evaluations(view, policy)
    bars = [(name, m, bar) for name, e in comparing.items() for m, bar in e.bars(graph).get(policy, {}).items()]
    for text in more:
        bars += _named(text, policy, comparing, graph)
    missing = sorted({name for name, _, _ in bars if view.stored(name) is None})
    if missing:
        raise UserError(f"a bar for `{policy}` needs {listed(missing)}, which is not stored; run the study first")
    found: dict[str, Evaluation] = {name: named(view.artifact(name)) for name, _, _ in bars}
    return [
        Gate(
            name, metric, bar, **found[name].interval(policy, metric), prompts=found[name].prompts(policy, metric),
            confidence=found[name].results["confidence"],
        )
        for name, metric, bar in dict.fromkeys(bars)
    ]  # fmt: skip


def _named(text: str, policy: str, comparing: dict[str, Evaluate], graph: Graph) -> list[tuple[str, str, str]]:
    read = read_bar(text)
    if read is None:
        raise UserError(f"--expect '{text}': a bar is written `win_rate.gold >= 0.55`, with >=, <=, > or <")
    metric, bar = read
    if not comparing:
        raise UserError(f"--expect '{text}': no evaluation of this study compares `{policy}`")
    known = {name: entry.metrics(graph) for name, entry in comparing.items()}
    bars = [(name, comparing[name].full(metric, graph), bar) for name, metrics in known.items() if metric in metrics]
    if not bars:
        all_known = list(dict.fromkeys(m for metrics in known.values() for m in metrics))
        hint = did_you_mean(metric, all_known) or f"; there are {listed(all_known)}"
        raise UserError(f"--expect '{text}': `{metric}` is not a metric of {listed(list(known))}{hint}")
    return bars
