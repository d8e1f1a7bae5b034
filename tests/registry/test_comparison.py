"""Win rates, accuracies and intervals: hand-derived numbers, limits, invariances."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from scipy.stats import t as student

from registry.methods import comparison
from registry.methods.comparison import (
    accuracy,
    best_of_n_win_rates,
    interval,
    over_seeds,
    rate_interval,
    strict_win_rates,
    win_rates,
)
from registry.methods.preferences import pairs_by_reward


def test_win_rate_counts_ties_one_half_over_all_pairs_of_different_samples() -> None:
    # (1, 2, 0) with (1, 0, 1): 1>0, 1=1 half, 2>1, 2>1, 0<1, 0=0 half: 4 of 6.
    assert win_rates(np.array([[1.0, 2.0, 0.0]]), np.array([[1.0, 0.0, 1.0]])).tolist() == [4 / 6]


def test_with_one_sample_a_side_there_is_one_pair() -> None:
    assert win_rates(np.array([[1.0], [0.0], [2.0]]), np.array([[0.0], [0.0], [3.0]])).tolist() == [1, 0.5, 0]


@pytest.mark.parametrize("samples", [2, 3, 8])
def test_best_of_n_beats_its_base_n_times_in_n_plus_1_though_they_share_their_draws(samples: int) -> None:
    # Of n + 1 independent draws each is the highest equally often. Best-of-n's own draw must not be its opponent.
    n, prompts = 4, 20_000
    draws = np.random.default_rng(samples).random((prompts, n, samples))
    found = win_rates(draws.max(axis=1), draws[:, 0])
    assert found.mean() == pytest.approx(n / (n + 1), abs=4 * found.std() / prompts**0.5)


@given(st.lists(st.lists(st.integers(-3, 3), min_size=4, max_size=4), min_size=1, max_size=8))
def test_a_policy_against_itself_is_one_half_exactly(rows) -> None:
    rewards = np.array(rows, dtype=float)
    assert (win_rates(rewards, rewards) == 0.5).all()


@given(st.lists(st.integers(-3, 3), min_size=5, max_size=5), st.lists(st.integers(-3, 3), min_size=5, max_size=5))
def test_two_policies_share_one_win_between_them(ours, theirs) -> None:
    a, b = np.array([ours], dtype=float), np.array([theirs], dtype=float)
    assert win_rates(a, b)[0] + win_rates(b, a)[0] == pytest.approx(1)


def test_a_strict_win_rate_counts_ties_as_lost() -> None:
    # (1, 2, 0) with (1, 0, 1): 1>0, 1=1, 2>1, 2>1, 0<1, 0=0: three of six.
    assert strict_win_rates(np.array([[1.0, 2.0, 0.0]]), np.array([[1.0, 0.0, 1.0]])).tolist() == [3 / 6]
    assert strict_win_rates(np.array([[1.0], [0.0], [2.0]]), np.array([[0.0], [0.0], [3.0]])).tolist() == [1, 0, 0]


@given(st.lists(st.integers(-3, 3), min_size=5, max_size=5), st.lists(st.integers(-3, 3), min_size=5, max_size=5))
def test_half_of_what_neither_strictly_wins_is_what_win_rates_add(ours, theirs) -> None:
    a, b = np.array([ours], dtype=float), np.array([theirs], dtype=float)
    strict, ties = strict_win_rates(a, b), 1 - strict_win_rates(a, b) - strict_win_rates(b, a)
    assert strict + ties / 2 == pytest.approx(win_rates(a, b))


def test_against_itself_a_policy_of_one_answer_strictly_wins_nothing() -> None:
    assert strict_win_rates(np.ones((2, 4)), np.ones((2, 4))).tolist() == [0, 0]
    assert strict_win_rates(np.arange(4.0)[None], np.arange(4.0)[None]).tolist() == [0.5]


@given(st.floats(0.1, 10), st.floats(-5, 5))
def test_win_rates_ignore_the_scale_of_the_reward(scale, shift) -> None:
    a, b = np.array([[0.0, 1.0, 3.0]]), np.array([[1.0, 2.0, 0.5]])
    assert (win_rates(a * scale + shift, b * scale + shift) == win_rates(a, b)).all()


SIX = st.lists(st.integers(-2, 2), min_size=6, max_size=6)


@given(SIX, SIX, st.sampled_from([1, 2, 3]))
def test_behind_best_of_n_it_is_the_mean_over_all_pairs_of_sets_without_a_common_number(ours, theirs, n) -> None:
    wins = []
    for mine in itertools.combinations(range(6), n):
        for its in itertools.combinations(set(range(6)) - set(mine), n):
            a, b = max(ours[i] for i in mine), max(theirs[i] for i in its)
            wins.append((a > b) + 0.5 * (a == b))
    found = best_of_n_win_rates(np.array([ours], dtype=float), np.array([theirs], dtype=float), n)
    assert found == pytest.approx(np.mean(wins))


@given(st.lists(SIX, min_size=1, max_size=4))
def test_behind_best_of_n_too_a_policy_against_itself_is_one_half(rows) -> None:
    rewards = np.array(rows, dtype=float)
    assert best_of_n_win_rates(rewards, rewards, 3) == pytest.approx(0.5)
    assert best_of_n_win_rates(rewards, rewards[:, ::-1].copy(), 1) == pytest.approx(
        win_rates(rewards, rewards[:, ::-1])
    )


@pytest.mark.parametrize("n", [2, 4])
def test_best_of_n_of_a_policy_that_is_best_of_two_is_best_of_2n(n: int) -> None:
    # Against the best of n, the best of 2 n other draws: 2 n of 3 n have the highest. The numbers are shared.
    prompts, samples = 4_000, 2 * n
    draws = np.random.default_rng(n).random((prompts, 2, samples))
    found = best_of_n_win_rates(draws.max(axis=1), draws[:, 0], n)
    assert found.mean() == pytest.approx(2 / 3, abs=4 * found.std() / prompts**0.5)


def test_too_few_samples_for_two_sets_are_refused() -> None:
    with pytest.raises(ValueError, match="7 samples are too few: the best of 4 on both sides needs 8"):
        best_of_n_win_rates(np.zeros((1, 7)), np.zeros((1, 7)), 4)


def test_an_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        found = interval(generator.exponential(1.0, 60), confidence=0.9, resamples=500, seed=trial)
        assert found.low <= found.estimate <= found.high
        hits += found.low <= 1.0 <= found.high
    assert 160 <= hits <= 196  # 180 expected; both bounds lie beyond three standard deviations of a binomial


def test_an_interval_is_the_same_for_the_same_seed() -> None:
    values = np.arange(10.0)
    assert interval(values, confidence=0.95, resamples=200, seed=1) == interval(
        values, confidence=0.95, resamples=200, seed=1
    )


@pytest.mark.parametrize("numbers", [1, 70, 10_000])
def test_how_many_resamples_are_in_memory_at_once_changes_nothing(
    numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.random.default_rng(2).normal(size=35)
    whole = interval(values, confidence=0.95, resamples=300, seed=1)
    monkeypatch.setattr(comparison, "NUMBERS", numbers)
    assert interval(values, confidence=0.95, resamples=300, seed=1) == whole


def test_values_that_differ_by_rounding_alone_have_no_spread() -> None:
    rewards = np.random.default_rng(3).normal(size=(48, 2))
    difference = (rewards + 0.1).mean(axis=1) - rewards.mean(axis=1)
    assert np.ptp(difference) > 0
    found = interval(difference, confidence=0.95, resamples=300, seed=1)
    assert found.low == found.estimate == found.high == pytest.approx(0.1)


def test_pairing_narrows_the_interval_of_a_difference() -> None:
    generator = np.random.default_rng(1)
    prompts = generator.normal(0, 5, 100)
    ours, theirs = prompts + 1, prompts + generator.normal(0, 0.1, 100)
    paired = interval(ours - theirs, confidence=0.95, resamples=500, seed=0)
    assert paired.high - paired.low < 0.1
    assert paired.low <= 1 <= paired.high


def test_values_that_say_nothing_about_spread_give_a_point() -> None:
    assert interval(np.array([2.0]), confidence=0.9, resamples=100, seed=0) == (2, 2, 2)
    assert interval(np.array([2.0, 2.0]), confidence=0.9, resamples=100, seed=0) == (2, 2, 2)


@pytest.mark.parametrize(("n", "low"), [(1, 0.025), (6, 0.5407), (48, 0.9260)])
def test_a_rate_that_was_all_or_nothing_has_the_exact_other_end(n: int, low: float) -> None:
    options = {"confidence": 0.95, "resamples": 200, "seed": 0}
    assert rate_interval(np.ones(n), **options) == pytest.approx((1, low, 1), abs=1e-4)
    assert rate_interval(np.zeros(n), **options) == pytest.approx((0, 0, 1 - low), abs=1e-4)
    assert binom.pmf(n, n, rate_interval(np.ones(n), **options).low) == pytest.approx(0.025)


def test_a_rate_that_varied_has_its_interval_and_a_half_everywhere_is_a_half() -> None:
    options = {"confidence": 0.95, "resamples": 200, "seed": 0}
    values = np.array([0.0, 1, 1, 0.5, 1, 1])
    assert rate_interval(values, **options) == interval(values, **options)
    assert rate_interval(np.full(4, 0.5), **options) == (0.5, 0.5, 0.5)


def test_of_few_normal_values_the_level_asked_of_the_resamples_makes_it_students() -> None:
    """Averaged over many sets of values, for one set is skewed."""
    n, generator = 12, np.random.default_rng(5)
    ours, students = [], []
    for seed in range(200):
        values = generator.normal(size=n)
        found = interval(values, confidence=0.95, resamples=2_000, seed=seed)
        ours.append(found.high - found.low)
        low, high = student.interval(0.95, n - 1, values.mean(), values.std(ddof=1) / n**0.5)
        students.append(high - low)
    assert np.mean(ours) / np.mean(students) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_of_a_handful_of_prompts_the_interval_ends_within_their_values(n: int) -> None:
    values = np.arange(n, dtype=float)
    found = interval(values, confidence=0.95, resamples=300, seed=0)
    assert 0 <= found.low < found.estimate < found.high <= n - 1


def test_over_seeds_and_prompts_by_hand() -> None:
    # Means 1/2 and 11/2 of seeds, 3/2 and 9/2 of prompts, 3 in all. Squares: seeds 2 (2.5^2 + 2.5^2) = 25, prompts
    # 2 (1.5^2 + 1.5^2) = 9, rest 4 of 1^2; each with one degree of freedom. 25 + 9 - 4 = 30, over 4 values.
    values = np.array([[0.0, 1.0], [3.0, 8.0]])
    freedom = 30**2 / (25**2 + 9**2 + 4**2)
    half = student.ppf(0.95, freedom) * (30 / 4) ** 0.5
    assert over_seeds(values, confidence=0.9) == pytest.approx((3, 3 - half, 3 + half))


def test_seeds_that_are_all_alike_add_nothing_to_students_interval_over_prompts() -> None:
    values = np.random.default_rng(4).exponential(1, 30)
    low, high = student.interval(0.9, 29, values.mean(), values.std(ddof=1) / 30**0.5)
    assert over_seeds(np.tile(values, (3, 1)), confidence=0.9) == pytest.approx((values.mean(), low, high))


def test_prompts_that_are_all_alike_leave_students_interval_over_seeds() -> None:
    values = np.array([0.1, 0.4, 0.9])
    low, high = student.interval(0.9, 2, values.mean(), values.std(ddof=1) / 3**0.5)
    assert over_seeds(np.tile(values[:, None], (1, 20)), confidence=0.9) == pytest.approx((values.mean(), low, high))


def test_with_one_prompt_it_is_students_interval_over_seeds() -> None:
    values = np.array([[1.0], [3.0], [5.0]])
    assert over_seeds(values, confidence=0.9) == pytest.approx((3, *student.interval(0.9, 2, 3, 2 / 3**0.5)))


def test_what_seeds_or_prompts_explain_less_of_than_nothing_is_nothing() -> None:
    # Rows and columns have one mean: all of the spread is neither the seed's nor the prompt's.
    values = np.array([[1.0, -1.0], [-1.0, 1.0]])
    half = student.ppf(0.975, 4**2 / (3 * 4**2)) * (4 / 4) ** 0.5
    assert over_seeds(values, confidence=0.95) == pytest.approx((0, -half, half))


def test_over_seeds_too_values_without_spread_give_a_point() -> None:
    assert over_seeds(np.full((3, 2), 2.0), confidence=0.9) == (2, 2, 2)


def test_accuracy_gives_ties_one_half() -> None:
    assert accuracy(np.array([1.0, 0.0, 2.0]), np.array([0.0, 1.0, 2.0])).tolist() == [1, 0, 0.5]


def test_pairs_are_best_against_worst_then_inwards() -> None:
    rewards = [0.1, 0.9, 0.5, -0.4, 0.3]
    texts = list("abcde")
    assert pairs_by_reward(rewards, texts, at_most=9, min_gap=0) == [(1, 3), (2, 0)]
    assert pairs_by_reward(rewards, texts, at_most=1, min_gap=0) == [(1, 3)]
    assert pairs_by_reward(rewards, texts, at_most=9, min_gap=0.5) == [(1, 3)]


def test_ties_and_equal_texts_never_make_a_pair() -> None:
    assert pairs_by_reward([1.0, 1.0], ["a", "b"], at_most=9, min_gap=0) == []
    assert pairs_by_reward([1.0, 0.0], ["a", "a"], at_most=9, min_gap=0) == []
    assert pairs_by_reward([1.0], ["a"], at_most=9, min_gap=0) == []


@given(st.lists(st.integers(0, 5), min_size=0, max_size=9), st.integers(1, 4))
def test_each_response_is_in_one_pair_at_most_and_the_chosen_scores_higher(rewards, at_most) -> None:
    texts = [str(i) for i in range(len(rewards))]
    pairs = pairs_by_reward([float(r) for r in rewards], texts, at_most=at_most, min_gap=0)
    members = [i for pair in pairs for i in pair]
    assert len(members) == len(set(members))
    assert all(rewards[a] > rewards[b] for a, b in pairs)
    assert len(pairs) <= at_most
