"""Calibrated rewards: ties one half, never against itself, uniform for the reference, deaf to the reward's scale."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.methods.calibration import mid_rank, pooled, self_excluded, smoothed, uniformity

SOME = st.lists(st.integers(-3, 3), min_size=1, max_size=12)
TWO_OR_MORE = st.lists(st.integers(-3, 3), min_size=2, max_size=12)


def of(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)


def test_a_calibrated_reward_counts_what_is_below_and_half_of_what_is_equal() -> None:
    # Below 2: one of four. Equal to 2: two of four.
    assert mid_rank(of(2, 0, 1, 9, 5), of(2, 5, 1, 2)).tolist() == [0.5, 0, 0.125, 1, 0.875]


def test_only_half_ties_give_a_reference_with_ties_the_mean_one_half() -> None:
    # The reference (.5, .3, .2) with rewards (0, 1, 1), as ten rollouts that are the whole space.
    space = np.repeat([0.0, 1.0, 1.0], [5, 3, 2])
    assert mid_rank(of(0, 1), space).tolist() == [0.25, 0.75]
    assert mid_rank(space, space).mean() == 0.5
    assert np.mean([(space <= reward).mean() for reward in space]) == 0.75
    assert np.mean([(space < reward).mean() for reward in space]) == 0.25


@given(SOME, SOME)
def test_calibration_is_the_count_that_defines_it(rewards, rollouts) -> None:
    counted = [sum((z < r) + 0.5 * (z == r) for z in rollouts) / len(rollouts) for r in rewards]
    assert mid_rank(of(*rewards), of(*rollouts)) == pytest.approx(counted)


@pytest.mark.parametrize("rollouts", [1, 2, 3, 5])
def test_a_fresh_draw_is_uniform_on_the_multiples_of_one_over_m(rollouts: int) -> None:
    # Every order of a fresh draw and M rollouts is equally likely, so the orders are the whole law.
    orders = [of(*order) for order in itertools.permutations(range(rollouts + 1))]
    found = np.concatenate([mid_rank(order[:1], order[1:]) for order in orders])
    values, counts = np.unique(found, return_counts=True)
    assert values == pytest.approx(np.arange(rollouts + 1) / rollouts)
    assert set(counts) == {math.factorial(rollouts)}
    assert found.mean() == pytest.approx(0.5)
    assert found.var() == pytest.approx(1 / 12 + 1 / (6 * rollouts))


@given(SOME, SOME)
def test_a_strictly_increasing_map_of_the_reward_changes_nothing(rewards, rollouts) -> None:
    def mapped(values):
        return np.exp(of(*values)) - 7

    assert np.array_equal(mid_rank(mapped(rewards), mapped(rollouts)), mid_rank(of(*rewards), of(*rollouts)))
    assert np.array_equal(pooled(mapped(rewards), [mapped(rollouts)]), pooled(of(*rewards), [of(*rollouts)]))


@given(SOME, SOME)
def test_the_order_turned_round_turns_the_calibrated_reward_round(rewards, rollouts) -> None:
    assert mid_rank(-of(*rewards), -of(*rollouts)) == pytest.approx(1 - mid_rank(of(*rewards), of(*rollouts)))


def test_a_prompt_of_equal_rewards_says_nothing() -> None:
    assert mid_rank(of(3), of(3, 3, 3)).tolist() == [0.5]
    assert self_excluded(of(3, 3, 3)).tolist() == [0.5, 0.5, 0.5]


def test_no_rollouts_are_refused() -> None:
    with pytest.raises(ValueError, match="there is none"):
        mid_rank(of(1), of())


@given(TWO_OR_MORE)
def test_a_rollout_is_ranked_among_the_others_only(rollouts) -> None:
    values = of(*rollouts)
    expected = [mid_rank(values[i : i + 1], np.delete(values, i))[0] for i in range(len(values))]
    assert self_excluded(values) == pytest.approx(expected)
    assert self_excluded(values).mean() == pytest.approx(0.5)


@pytest.mark.parametrize("size", [2, 4, 7])
def test_ranked_among_themselves_too_the_mean_would_be_above_one_half(size: int) -> None:
    rollouts = np.arange(float(size))
    included = np.mean([(rollouts <= reward).mean() for reward in rollouts])
    assert included == pytest.approx((size + 1) / (2 * size))  # 0.625 for 4
    assert self_excluded(rollouts) == pytest.approx(np.arange(size) / (size - 1))


@pytest.mark.parametrize("rollouts", [of(), of(1)])
def test_a_rollout_alone_cannot_be_ranked(rollouts: np.ndarray) -> None:
    with pytest.raises(ValueError, match=f"there are {len(rollouts)} in all"):
        self_excluded(rollouts)


def test_smoothing_moves_the_ends_inwards_and_keeps_the_mean() -> None:
    # M = 4: u = 0, 1/4, ..., 1 becomes 1/10, 3/10, ..., 9/10.
    assert smoothed(np.arange(5) / 4, 4) == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])
    # The count of vBoN, (#{<} + 1) / (M + 1), has mean (M + 2) / (2 M + 2) and reaches 1.
    assert ((np.arange(5) + 1) / 5).mean() == pytest.approx(6 / 10)


@given(TWO_OR_MORE)
def test_smoothed_rewards_have_logarithms_and_mean_one_half(rollouts) -> None:
    values = smoothed(self_excluded(of(*rollouts)), len(rollouts) - 1)
    assert 0 < values.min() <= values.max() < 1
    assert values.mean() == pytest.approx(0.5)


def test_pooling_averages_over_prompts_not_over_rollouts() -> None:
    # 1 is above the one rollout of the first prompt, above one and level with one of four of the second.
    assert pooled(of(1), [of(0), of(0, 1, 2, 3)]).tolist() == [(1 + 1.5 / 4) / 2]


@given(st.lists(SOME, min_size=1, max_size=6), SOME)
def test_pooling_is_the_mean_of_the_prompts_calibrations(prompts, rewards) -> None:
    rollouts = [of(*values) for values in prompts]
    found = pooled(of(*rewards), rollouts)
    assert found == pytest.approx(np.mean([mid_rank(of(*rewards), values) for values in rollouts], axis=0))
    assert 0 <= found.min() <= found.max() <= 1


def test_pooling_stays_inside_zero_and_one_for_many_prompts() -> None:
    rollouts = list(np.random.default_rng(0).normal(size=(1000, 64)))
    assert pooled(of(-99, 99), rollouts).tolist() == [0, 1]
    assert pooled(np.concatenate(rollouts), rollouts).mean() == pytest.approx(0.5)


@pytest.mark.parametrize("rollouts", [[], [of(1), of()]])
def test_a_prompt_without_rollouts_cannot_be_pooled(rollouts: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="one rollout at least"):
        pooled(of(1), rollouts)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_fresh_draw_of_a_reward_with_ties_covers_the_interval_evenly(size: int) -> None:
    # Every tuple of a fresh draw and M rollouts of the fair reward in {0, 1, 2}, each as a prompt. With two seeds the
    # values a + V b of a prompt give its interval [a, a + b], where V is what a prompt with all rollouts above gives.
    tuples = [of(*values) for values in itertools.product(range(3), repeat=size + 1)]
    fresh, rollouts = np.array([t[0] for t in tuples]), [t[1:] for t in tuples]
    one, two = (uniformity(fresh, rollouts, seed).values * (size + 1) for seed in (1, 2))
    v, w = (uniformity(fresh, [np.full(1, 9.0)] * len(tuples), seed).values * 2 for seed in (1, 2))
    width = np.rint((one - two) / (v - w)).astype(int)
    start = np.rint(one - v * width).astype(int)
    assert one == pytest.approx(start + v * width)
    covered = np.zeros(size + 1)
    for first, slots in zip(start, width, strict=True):
        covered[first : first + slots] += 1 / slots
    assert covered == pytest.approx(len(tuples) / (size + 1))


def test_the_reference_passes_and_a_better_policy_does_not() -> None:
    generator = np.random.default_rng(5)
    rollouts = list(generator.integers(1, 6, (400, 16)).astype(float))  # a judge's marks: ties everywhere
    same = uniformity(generator.integers(1, 6, 400).astype(float), rollouts, seed=0)
    better = uniformity(generator.integers(1, 6, (400, 2)).max(axis=1).astype(float), rollouts, seed=0)
    assert same.p_value > 0.01
    assert better.p_value < 1e-6
    assert better.statistic > same.statistic
    assert same.values.shape == (400,)
    assert 0 <= same.values.min() <= same.values.max() <= 1


def test_uniformity_draws_the_same_numbers_for_the_same_seed() -> None:
    fresh, rollouts = of(0, 1), [of(0, 0), of(1, 2)]
    assert np.array_equal(uniformity(fresh, rollouts, 3).values, uniformity(fresh, rollouts, 3).values)
    assert not np.array_equal(uniformity(fresh, rollouts, 3).values, uniformity(fresh, rollouts, 4).values)


def test_fresh_draws_and_rollouts_are_of_the_same_prompts() -> None:
    with pytest.raises(ValueError, match="shorter"):
        uniformity(of(1, 2), [of(1)], seed=0)
