"""How well scores order held-out pairs: prompts are the unit."""

from __future__ import annotations

import pytest

from registry.rows import Pair
from tasks.pair_accuracy import pair_accuracy


def pairs(*prompts: str) -> list[Pair]:
    return [Pair(({"role": "user", "content": prompt},), "long", "no") for prompt in prompts]


def test_every_prompt_counts_the_same_however_many_pairs_it_has() -> None:
    found = pair_accuracy([(1, 0), (2, 0), (3, 1), (0, 5)], pairs("a", "a", "a", "b"), seed=0)
    assert found["test/accuracy"] == 0.5  # all three of the one, none of the other
    assert (found["test/length_baseline"], found["test/accuracy_minus_length_baseline"]) == (1.0, -0.5)
    assert (found["test/pairs"], found["test/mean_margin"]) == (4, 0.0)


def test_more_pairs_of_the_same_prompts_make_no_interval_narrower() -> None:
    scores, prompts = [(1, 0), (0, 1), (1, 0), (1, 0), (0, 1), (1, 0)], "abcdef"
    one = pair_accuracy(scores, pairs(*prompts), seed=0)
    four = pair_accuracy(scores * 4, pairs(*prompts * 4), seed=0)
    assert {k: v for k, v in four.items() if k != "test/pairs"} == pytest.approx(
        {k: v for k, v in one.items() if k != "test/pairs"}
    )
    assert one["test/accuracy_low"] < 0.5 < one["test/accuracy_high"]


def test_a_rise_is_that_of_each_prompt_on_its_own_pairs() -> None:
    before, after = [(0, 1), (0, 1), (1, 0), (0, 1)], [(1, 0), (0, 1), (1, 0), (1, 0)]
    found = pair_accuracy(after, pairs("a", "a", "b", "c"), seed=0, before=before)
    assert found["test/before/accuracy"] == pytest.approx(1 / 3)
    assert found["test/accuracy_minus_before"] == pytest.approx((1 / 2 + 0 + 1) / 3)
    # What rises everywhere alike has no spread, however far apart the prompts are.
    risen = pair_accuracy([(1, 0)] * 4, pairs(*"abcd"), seed=0, before=[(0, 1)] * 4)
    assert [risen[f"test/accuracy_minus_before{end}"] for end in ("_low", "", "_high")] == [1, 1, 1]
