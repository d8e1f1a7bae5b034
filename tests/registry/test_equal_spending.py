"""Equal spending: whole draws, the dearest answer as the measure, costs shared by all of an answer's draws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.methods.equal_spending import affordable_draws


def test_whoever_costs_a_third_has_three_draws_and_a_part_of_a_draw_is_none() -> None:
    # The dearest answer costs 12: three of 4, two of 5 (10, for a third would make 15), one of 7, one of its own.
    costs, draws = np.array([4.0, 5.0, 7.0, 12.0]), np.ones(4)
    assert affordable_draws(costs, draws).tolist() == [3, 2, 1, 1]


def test_best_of_n_is_counted_in_draws_of_what_it_draws_from() -> None:
    # Best-of-2 pays 6 for two draws: four of them cost 12, as best-of-4 does. The base may draw as often.
    assert affordable_draws(np.array([3.0, 6.0, 12.0]), np.array([1.0, 2.0, 4.0])).tolist() == [4, 4, 4]


def test_what_is_paid_once_is_not_paid_for_each_draw() -> None:
    """Best-of-4 of a prompt of 400 tokens with answers of 49 is four draws of the base: for as much the base has four."""
    costs, draws = np.array([449.0, 498.0, 596.0]), np.array([1.0, 2.0, 4.0])
    assert affordable_draws(costs, draws, np.full(3, 400.0)).tolist() == [4, 4, 4]
    assert affordable_draws(costs, draws).tolist() == [1, 2, 4]


def test_a_third_thrice_is_the_whole() -> None:
    for third in (0.1, 1 / 3, 7 / 11, 1e9 / 7):
        assert affordable_draws(np.array([third, third * 3]), np.ones(2)).tolist() == [3, 1]


@given(
    st.lists(st.tuples(st.integers(1, 500), st.integers(1, 16)), min_size=1, max_size=8),
    st.floats(0.01, 100),
    st.data(),
)
def test_no_one_spends_more_than_the_dearest_answer_and_one_draw_more_would(
    policies: list[tuple[int, int]], unit: float, data: st.DataObject
) -> None:
    costs, draws = (np.array(values, dtype=float) for values in zip(*policies, strict=True))
    found = affordable_draws(costs, draws)
    each, purse = costs / draws, costs.max()
    assert (found * each <= purse * (1 + 1e-6)).all() and ((found + 1) * each > purse * (1 - 1e-6)).all()
    assert (found >= draws).all()
    assert (affordable_draws(costs * unit, draws) == found).all(), "the unit of the costs changed the draws"
    order = data.draw(st.permutations(range(len(policies))))
    assert (affordable_draws(costs[order], draws[order]) == found[order]).all()


def test_an_answer_that_costs_nothing_has_no_equal() -> None:
    with pytest.raises(ValueError, match="each draw must cost something; one costs 0"):
        affordable_draws(np.array([0.0, 1.0]), np.ones(2))
