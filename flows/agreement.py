"""Whether a stage that was built twice came out the same: its files by their digests, its metrics by both intervals.

Both say what the same thing is worth, so they overlap, where two estimates of 95 % often lie outside of each other's: of those of
equal width one in six does. An interval without width (a count that was 0, a policy against itself) says nothing of a second try.
What has no interval (weights, a loss, a count) is the same to the bit or it differs, and then the comparisons that are made of it
say whether that matters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from registry.store import Stored
from specs.evaluation import Evaluate
from tasks.evaluation_table import MEASURED, Evaluation, named
from tasks.view import View

ROUNDING = 1e-6
"""Two numbers as near as this are one, summed in another order."""

Verdict = Literal["identical", "agrees", "differs", "outside"]
WORDS: Mapping[Verdict, str] = {
    "identical": "identical to the bit",
    "agrees": "agrees, the intervals overlap",
    "differs": "differs",
    "outside": "intervals apart",
}


@dataclass(frozen=True)
class Metric:
    """A number that was measured twice, and its intervals where they have a width."""

    name: str
    then: float
    now: float | None
    interval: tuple[float, float] | None = None
    interval_now: tuple[float, float] | None = None

    @property
    def agrees(self) -> bool:
        if self.now is None:
            return False
        if self.interval and self.interval_now:
            return self.interval[0] <= self.interval_now[1] and self.interval_now[0] <= self.interval[1]
        return math.isclose(self.now, self.then, rel_tol=ROUNDING, abs_tol=ROUNDING)


@dataclass(frozen=True)
class Compared:
    """A stage of a past run and its replay."""

    stage: str
    kind: str
    files: int
    """How many there were, but for times and memory, which never repeat."""
    other_files: list[str]
    """Those that are not the same to the bit, or are in one of the two alone."""
    metrics: list[Metric]

    @property
    def verdict(self) -> Verdict:
        with_interval = [metric.agrees for metric in self.metrics if metric.interval]
        if not self.other_files and all(metric.now == metric.then for metric in self.metrics):
            return "identical"
        if not all(with_interval):
            return "outside"
        return "agrees" if with_interval else "differs"


def compared(past: View, again: View, stage: str, then: Stored, now: Stored) -> Compared:
    """`past` and `again` are the study beside the store of each."""
    before, after = ({n: f["sha256"] for n, f in s.record["files"].items() if n != MEASURED} for s in (then, now))
    others = [name for name in dict.fromkeys((*before, *after)) if before.get(name) != after.get(name)]
    metrics = _metrics(then.record["metrics"], now.record["metrics"])
    if isinstance(past.study.stages[stage], Evaluate):
        first, second = (_intervals(named(view.artifact(stage))) for view in (past, again))
        metrics += [
            Metric(name, one, now, *((ends, ends_now) if ends and ends_now else ()))
            for name, (one, ends) in first.items()
            for now, ends_now in [second.get(name, (None, None))]
        ]
    return Compared(stage, then.record["kind"], len(before), others, metrics)


def _metrics(then: Mapping[str, float], now: Mapping[str, float]) -> list[Metric]:
    """Of a record. The ends of an interval stand beside their estimate, as `accuracy_low` and `accuracy_high`."""
    ends = {f"{name}{end}" for name in then for end in ("_low", "_high") if f"{name}_low" in then}
    found = []
    for name, value in then.items():
        if name not in ends:
            both = [_wide(of.get(f"{name}_low"), of.get(f"{name}_high")) for of in (then, now)]
            found.append(Metric(name, value, now.get(name), *(both if all(both) else ())))
    return found


def _intervals(evaluation: Evaluation) -> dict[str, tuple[float, tuple[float, float] | None]]:
    """Every estimate of a comparison that has an interval, under what is told of it: `bon[n=4], gold: reward`."""
    found = {}
    for row in _rows(evaluation):
        whose = ", ".join(str(v) for k, v in row.items() if (isinstance(v, str) and k not in _SAID) or k == "n")
        for what, value in row.items():
            if row.get(f"{what}_low") is not None:
                found[f"{whose}: {what}"] = (value, _wide(row[f"{what}_low"], row[f"{what}_high"]))
    return found


def _wide(low: float | None, high: float | None) -> tuple[float, float] | None:
    """The interval, where it has a width."""
    return (low, high) if low is not None and high is not None and high - low > ROUNDING else None


_SAID = ("against", "reward_had_part")
"""What a row says of the study, and not whose it is."""


def _rows(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    for row in evaluation.rows():
        yield {what: value for what, value in row.items() if not what.startswith(("length_low", "length_high"))}
    yield from evaluation.policy_rows()
    yield from evaluation.best_of()
    yield from evaluation.apart()
    yield from evaluation.over_seeds()
    yield from evaluation.verdicts()


def disagreeing(view: View, stages: list[Compared]) -> list[str]:
    """The stages that do not agree: those whose intervals lie apart, and those that differ and have no comparison made of them that
    agrees."""
    judged: set[str] = set()
    waiting = [one.stage for one in stages if one.verdict == "agrees"]
    while waiting:
        for _, below in view.nodes[waiting.pop()].inputs:
            if below not in judged:
                judged.add(below)
                waiting.append(below)
    return [
        one.stage
        for one in stages
        if one.verdict == "outside" or (one.verdict == "differs" and one.stage not in judged)
    ]
