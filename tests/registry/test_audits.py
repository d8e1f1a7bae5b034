"""Length bias and gold's lag: hand-derived numbers, SciPy's own correlation, invariances."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from registry.methods.audits import divergence_of_gold, length_bias

FIVE = st.lists(st.integers(-3, 3), min_size=5, max_size=5)


def test_length_bias_is_one_minus_six_sums_of_squared_rank_differences() -> None:
    # Ranks (1, 2, 3, 4) and (2, 1, 4, 3): 1 - 6 x 4 / (4 x 15) = 0.6.
    assert length_bias(np.array([[0.1, 0.2, 0.3, 9.0]]), np.array([[20.0, 10, 80, 40]])).tolist() == pytest.approx(
        [0.6]
    )


@given(FIVE, FIVE)
def test_it_is_spearmans_correlation_and_left_out_where_that_is_none(rewards, lengths) -> None:
    found = length_bias(np.array([rewards], dtype=float), np.array([lengths], dtype=float))
    if len(set(rewards)) == 1 or len(set(lengths)) == 1:
        assert len(found) == 0
    else:
        assert found[0] == pytest.approx(spearmanr(rewards, lengths).statistic)


def test_prompts_whose_answers_were_all_cut_at_the_limit_dilute_nothing() -> None:
    rewards, lengths = np.array([[0.0, 1, 2], [3, 1, 2]]), np.array([[1.0, 2, 3], [48, 48, 48]])
    assert length_bias(rewards, lengths).tolist() == pytest.approx([1])


@given(FIVE, FIVE)
def test_it_hears_the_order_alone_and_turns_with_it(rewards, lengths) -> None:
    r, n = np.array([rewards], dtype=float), np.array([lengths], dtype=float)
    assert length_bias(np.exp(r), n**3) == pytest.approx(length_bias(r, n))
    assert length_bias(-r, n) == pytest.approx(-length_bias(r, n))


def test_prompts_that_differ_in_length_and_reward_are_no_bias() -> None:
    # Across all six answers the longer ones score higher; within each prompt the shorter ones do.
    rewards, lengths = np.array([[2.0, 1, 0], [12, 11, 10]]), np.array([[1.0, 2, 3], [101, 102, 103]])
    assert spearmanr(rewards.ravel(), lengths.ravel()).statistic > 0
    assert length_bias(rewards, lengths).tolist() == pytest.approx([-1, -1])


def test_a_reward_that_is_length_has_bias_one_and_one_that_is_noise_none() -> None:
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 200, (2_000, 4)).astype(float)
    assert length_bias(3 * lengths - 7, lengths).mean() == pytest.approx(1)
    noise = length_bias(generator.normal(size=(2_000, 4)), lengths)
    assert noise.mean() == pytest.approx(0, abs=4 * noise.std() / 2_000**0.5)


def test_one_sample_a_prompt_has_no_correlation() -> None:
    with pytest.raises(ValueError, match="two samples at least; there are 1"):
        length_bias(np.ones((3, 1)), np.ones((3, 1)))


def apart(x: np.ndarray, y: np.ndarray, of_x: np.ndarray, of_y: np.ndarray) -> np.ndarray:
    return divergence_of_gold(x, y, guide_reference=of_x, gold_reference=of_y)


def test_gains_are_compared_in_the_references_deviations() -> None:
    # 4 of 2 and 1 of 0.5 are two deviations each; -1 of 2 is half a one down while gold rose by one. Each prompt has as much
    # spread as the other, so neither tells more of the unit.
    two, half = np.array([[2.0, -2.0]] * 2), np.array([[0.5, -0.5]] * 2)
    assert apart(np.array([4.0, -1.0]), np.array([1.0, 0.5]), two, half).tolist() == [0, -1.5]


def test_a_prompt_with_more_spread_than_others_says_that_the_unit_is_larger() -> None:
    # Deviation 1 over all, own mean squares 1.6 and 0.4: a gain of 2 on average, of which each prompt's share is 2 -+ 2/2 x 0.6.
    reference = np.sqrt(np.array([[1.6], [0.4]])) * np.array([[1.0, -1.0]])
    found = apart(np.array([2.0, 2.0]), np.zeros(2), reference, reference)
    assert found == pytest.approx([1.4, 2.6])


@given(FIVE, FIVE, st.floats(0.1, 10), st.floats(0.1, 10))
def test_the_units_of_the_two_rewards_cancel(guide, gold, a, b) -> None:
    x, y = np.array(guide, dtype=float), np.array(gold, dtype=float)
    of_x, of_y = np.random.default_rng(0).normal(size=(2, 5, 3))
    plain = apart(x, y, of_x, of_y)
    assert apart(a * x, b * y, a * of_x + 7, b * of_y - 7) == pytest.approx(plain)
    assert apart(x, x, of_x, of_x) == pytest.approx(0)
    assert plain.mean() == pytest.approx(x.mean() / of_x.std() - y.mean() / of_y.std())


def test_its_intervals_hold_the_truth_as_often_as_they_say() -> None:
    # Gains of three deviations, whose unit is known from the same 48 prompts of two answers: with the unit taken for known, intervals
    # of 95 % hold the truth in 60 % of studies.
    generator, many, known = np.random.default_rng(1), 1_000, 0
    held = 0
    for _ in range(many):
        of_x, of_y = generator.normal(size=(2, 48, 2))
        x, y = 3 + generator.normal(size=(2, 48)) - np.stack([of_x, of_y]).mean(-1)
        told = apart(x, y, of_x, of_y)
        held += abs(told.mean()) <= 1.96 * told.std(ddof=1) / 48**0.5
        plain = x / of_x.std() - y / of_y.std()
        known += abs(plain.mean()) <= 1.96 * plain.std(ddof=1) / 48**0.5
    assert 0.93 <= held / many <= 0.97 and known / many < 0.85


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_a_reward_without_spread_has_no_unit(value: float) -> None:
    spread, none = np.array([[1.0, 2.0]]), np.full((1, 2), value)
    with pytest.raises(ValueError, match=r"it must be positive"):
        apart(np.ones(1), np.ones(1), spread, none)
