"""Verdicts read strictly, and folded over both orders: numbers by hand, limits, invariances."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.methods.judging import FIRST_WINS, fold, sample_pairs, verdict_of

NONE = float("nan")


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("[[A]]", "A"),
        ("[[B]]", "B"),
        ("[[C]]", "tie"),
        (" My verdict:\n[[B]].", "B"),
        ("At first [[A]] seems better, but [[B]]", "B"),
        ("**[[A]]**", "A"),
        ("A", None),
        ("[A]", None),
        ("Answer A is better", None),
        ("[[D]]", None),
        ("[[a]]", None),
        ("[[ A ]]", None),
        ("[[[A]]]", None),
        ("x[[A]]", None),
        ("[[A]]x", None),
        ("[[A", None),
        ("", None),
    ],
)
def test_a_verdict_is_the_last_letter_in_two_brackets_that_stands_alone(reply: str, verdict: str | None) -> None:
    assert verdict_of(reply) == verdict


def test_no_pair_is_of_one_number_where_there_are_two_samples() -> None:
    assert sample_pairs(4, 1) == [(0, 1)]
    assert sample_pairs(3, 3) == [(0, 1), (1, 2), (2, 0)]
    assert sample_pairs(1, 1) == [(0, 0)]
    with pytest.raises(ValueError, match="2 samples make 2 pairs, not 3"):
        sample_pairs(2, 3)


def test_verdicts_by_hand() -> None:
    # Prompt 0: ours both times (1), then ours and a tie (3/4). Prompt 1: theirs both times (0), then the first both times (1/2).
    found = fold(np.array([[[1.0, 0.0], [1.0, 0.5]], [[0.0, 1.0], [1.0, 1.0]]]))
    assert found.wins.tolist() == [7 / 8, 1 / 4]
    assert found.position_bias == pytest.approx(5.5 / 8)
    assert found.agreement == 2 / 4
    assert (found.pairs, found.unparsable) == (4, 0)


@pytest.mark.parametrize("first", [0.0, 1.0])
def test_a_judge_that_looks_at_the_place_alone_finds_every_pair_a_tie(first: float) -> None:
    found = fold(np.full((5, 3, 2), first))
    assert found.wins.tolist() == [0.5] * 5
    assert (found.position_bias, found.agreement) == (first, 0.0)


def test_a_judge_that_finds_ties_alone_has_no_bias_and_agrees_with_itself() -> None:
    found = fold(np.full((5, 1, 2), 0.5))
    assert (found.wins.tolist(), found.position_bias, found.agreement) == ([0.5] * 5, 0.5, 1.0)


VERDICT = st.sampled_from([*FIRST_WINS.values(), NONE])
VERDICTS = st.lists(st.lists(st.tuples(VERDICT, VERDICT), min_size=2, max_size=2), min_size=1, max_size=6)


@given(VERDICTS)
def test_what_we_win_they_lose(rows) -> None:
    verdicts = np.array(rows)
    ours, theirs = fold(verdicts), fold(verdicts[..., ::-1])
    assert theirs.wins == pytest.approx(1 - ours.wins)
    assert theirs[1:] == ours[1:]


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=8))
def test_a_judge_that_looks_at_the_answers_alone_has_no_bias(ours) -> None:
    found = fold(np.array([[[win, 1 - win]] for win in ours]))
    assert (found.position_bias, found.agreement) == (0.5, 1.0)
    assert found.wins.tolist() == ours


def test_a_pair_with_a_verdict_in_one_order_alone_does_not_count() -> None:
    """A judge that always takes the first, and falls silent when it is shown theirs first: counted by the one order, ours
    would win everywhere."""
    found = fold(np.array([[[1.0, NONE], [1.0, 1.0]], [[1.0, NONE], [NONE, NONE]]]))
    assert found.wins.tolist() == [0.5]  # of prompt 0; prompt 1 has no pair that counts
    assert (found.pairs, found.unparsable, found.position_bias, found.agreement) == (1, 4, 1.0, 0.0)


@given(VERDICTS)
def test_replies_without_a_verdict_are_counted_and_change_nothing_else(rows) -> None:
    verdicts = np.array(rows)
    more = np.concatenate([verdicts, np.full((len(rows), 1, 2), NONE)], axis=1)
    assert fold(more).wins.tolist() == fold(verdicts).wins.tolist()
    assert fold(more).unparsable == fold(verdicts).unparsable + 2 * len(rows)


def test_without_any_verdict_there_is_nothing_to_tell() -> None:
    found = fold(np.full((3, 2, 2), NONE))
    assert len(found.wins) == 0
    assert found[1:] == (0, None, None, 12)
