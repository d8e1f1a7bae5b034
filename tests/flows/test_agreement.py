"""Two builds of one stage: the same to the bit, with intervals that overlap, or neither; and whether what differs matters."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import evaluated
import handmade
import pytest

from flows.agreement import Compared, Metric, compared, disagreeing
from registry.store import Stored
from tasks.view import View


@pytest.fixture
def first(tmp_path: Path, home: Path) -> View:
    return evaluated.and_trained(tmp_path)


def again(view: View, stage: str, change: Callable[[], object]) -> Compared:
    """The stage compared with what it becomes when `change` builds it anew."""
    before, artifact = view.stored(stage), view.artifact(stage)
    assert before is not None
    kept = Path(shutil.move(before.folder, tempfile.mkdtemp(dir=view.folder)))
    change()
    after = view.stored(stage)
    assert after is not None
    past = View(**{**vars(view), "_artifacts": {stage: dataclasses.replace(artifact, folder=kept)}})
    return compared(past, view, stage, Stored(kept, before.record), after)


def test_what_is_built_alike_is_identical_whatever_time_it_took(first: View) -> None:
    found = again(first, "table", lambda: evaluated.put(first))
    assert found.verdict == "identical" and found.files == 2 and len(found.metrics) > 50


def test_estimates_whose_intervals_overlap_agree_and_others_do_not(first: View) -> None:
    # Of -0.75 and of 0 the intervals are 0.5 wide to each side: neither estimate lies in the other's, and both say the same.
    near = again(first, "table", lambda: evaluated.put(first, sft=0.0))
    assert (near.verdict, near.other_files) == ("agrees", ["evaluation.json"])
    assert [m.name for m in near.metrics if m.now != m.then] == ["sft, gold: difference", "sft, tone: difference"]
    evaluated.put(first)
    far = again(first, "table", lambda: evaluated.put(first, sft=0.75))
    assert far.verdict == "outside"
    metric, _ = (m for m in far.metrics if not m.agrees)
    assert (metric.name, metric.then, metric.now) == ("sft, gold: difference", -0.75, 0.75)
    assert (metric.interval, metric.interval_now) == ((-1.25, -0.25), (0.25, 1.25))


def test_an_interval_without_width_decides_nothing() -> None:
    """No refusal among 96 answers says little of the next 96, and a policy is as far from itself as rounding takes it."""
    none, rounded = Metric("refusals", 0.0, 0.01), Metric("kl", -8e-14, -3e-14)
    assert (none.agrees, rounded.agrees) == (False, True)
    wide = Metric("m", 1.0, 1.1, (0.0, 2.0), (0.1, 2.1))
    assert Compared("table", "evaluate", 1, ["f"], [none, wide]).verdict == "agrees"
    assert Compared("table", "evaluate", 1, ["f"], [none]).verdict == "differs"


def test_what_has_no_interval_differs(first: View) -> None:
    found = again(first, "sft", lambda: handmade.put(first, "sft", {"training.jsonl": "other"}, {"rows": 8.0}))
    assert found.verdict == "differs"
    assert [m.name for m in found.metrics if m.now is None] == ["test/accuracy"]


def test_the_ends_of_an_interval_in_a_record_belong_to_their_estimate(first: View) -> None:
    whole = {"test/accuracy": 0.6, "test/accuracy_low": 0.5, "test/accuracy_high": 0.7}
    handmade.put(first, "sft", {"a": "x"}, whole)
    other = {"test/accuracy": 0.8, "test/accuracy_low": 0.65, "test/accuracy_high": 0.9}
    found = again(first, "sft", lambda: handmade.put(first, "sft", {"a": "y"}, other))
    assert found.metrics == [Metric("test/accuracy", 0.6, 0.8, (0.5, 0.7), (0.65, 0.9))]
    assert found.verdict == "agrees"


def test_what_differs_is_excused_by_a_comparison_above_it_that_agrees(first: View) -> None:
    inside, outside = (Metric("m", 1.0, x, (0.0, 2.0), (x - 0.5, x + 0.5)) for x in (1.1, 3.0))

    def stages(of_table: Metric) -> list[Compared]:
        return [Compared(s, "k", 1, ["f"], [of_table] if s == "table" else []) for s in ("pairs", "sft", "table")]

    assert disagreeing(first, stages(inside)) == []
    assert disagreeing(first, stages(outside)) == ["pairs", "sft", "table"]
    assert disagreeing(first, stages(inside)[:2]) == ["pairs", "sft"]
