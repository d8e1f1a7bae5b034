"""p-values and what a study could have seen: by exact enumeration of the signs, hand-derived numbers, power."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.methods import significance
from registry.methods.significance import FEWEST, draws_for, holm, minimum_detectable_effect, permutation_p

FEW = st.lists(st.integers(-4, 4), min_size=2, max_size=8)
P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=8)


def exact(*values: float) -> float:
    return permutation_p(np.array(values, dtype=float), resamples=2 ** len(values), seed=0)


def test_of_five_differences_of_one_sign_the_two_extreme_signings_of_thirty_two_are_as_far() -> None:
    assert exact(1, 2, 3, 4, 5) == exact(-1, -2, -3, -4, -5) == 2 / 32


@given(FEW)
def test_it_is_the_share_of_all_signings_whose_mean_is_as_far_from_zero(values) -> None:
    signed = [
        sum(s * v for s, v in zip(signs, values, strict=True))
        for signs in itertools.product((1, -1), repeat=len(values))
    ]
    assert exact(*values) == np.mean([abs(total) >= abs(sum(values)) for total in signed])


def test_under_the_null_it_is_below_a_in_a_share_a_of_all_studies() -> None:
    # Every signing of differences whose sums all differ is as likely: p is uniform on 2/32, 4/32, ..., 1.
    found = [
        exact(*(s * v for s, v in zip(signs, (1, 2, 4, 8, 16), strict=True)))
        for signs in itertools.product((1, -1), repeat=5)
    ]
    assert sorted(found) == [2 * (i // 2 + 1) / 32 for i in range(32)]


@given(FEW, st.sampled_from([0.1, 3.0, 1e-9, -7.0]))
def test_neither_the_unit_nor_the_direction_of_a_reward_matters(values, scale) -> None:
    # Multiples of 0.1 have sums that are equal but for rounding.
    assert exact(*(scale * v for v in values)) == exact(*values)


def test_means_that_differ_by_rounding_alone_are_as_far_from_zero() -> None:
    # The sum is 0, but floats make it another number for another order of signs.
    assert exact(*(0.1 * v for v in (2, -7, -2, 5, 2))) == 1


@pytest.mark.parametrize("values", [[0.0], [3.0], [0.0, 0.0, 0.0], [1.0, -1.0]])
def test_what_says_nothing_has_p_one(values: list[float]) -> None:
    assert permutation_p(np.array(values), resamples=100, seed=0) == 1


def test_drawn_signs_find_the_exact_p_but_for_their_own_error() -> None:
    values = np.random.default_rng(5).normal(0.4, 1, 12)
    whole = permutation_p(values, resamples=2**12, seed=0)
    drawn = permutation_p(values, resamples=2**12 - 1, seed=0)
    assert 0.02 < whole < 0.5
    assert drawn != whole
    assert drawn == pytest.approx(whole, abs=4 * (whole * (1 - whole) / 2**12) ** 0.5)


def test_however_sure_it_is_p_is_never_zero() -> None:
    assert permutation_p(np.ones(60), resamples=999, seed=0) == 1 / 1000


@pytest.mark.parametrize("numbers", [1, 90, 10_000])
def test_how_many_signings_are_in_memory_at_once_changes_nothing(numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(2).normal(0.2, 1, 30)
    whole = permutation_p(values, resamples=300, seed=1)
    assert whole != permutation_p(values, resamples=300, seed=2)
    monkeypatch.setattr(significance, "NUMBERS", numbers)
    assert permutation_p(values, resamples=300, seed=1) == whole


def test_holm_multiplies_the_smallest_most_and_never_reverses_an_order() -> None:
    # 4 x 0.01; 3 x 0.02 = 0.06; 2 x 0.025 = 0.05 is raised to 0.06; 1 x 0.9.
    assert holm([0.025, 0.01, 0.9, 0.02]) == pytest.approx([0.06, 0.04, 0.9, 0.06])
    assert holm([0.5, 0.6]) == [1, 1]


def test_holm_of_one_comparison_changes_nothing_and_of_none_is_none() -> None:
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


@given(P_VALUES, st.randoms())
def test_holm_keeps_the_order_lies_between_p_and_bonferroni_and_asks_not_who_came_first(values, random) -> None:
    found = holm(values)
    for p, adjusted in zip(values, found, strict=True):
        assert p <= adjusted <= min(1, len(values) * p)
    by_p = [adjusted for _, adjusted in sorted(zip(values, found, strict=True))]
    assert by_p == sorted(by_p)
    order = list(range(len(values)))
    random.shuffle(order)
    assert holm([values[i] for i in order]) == [found[i] for i in order]


@given(P_VALUES, st.sampled_from([0.01, 0.05, 0.2]))
def test_holm_below_alpha_are_those_that_stepping_down_rejects(values, alpha) -> None:
    rejected = 0
    for i, p in enumerate(sorted(values)):
        if p > alpha / (len(values) - i):
            break
        rejected += 1
    assert sum(adjusted <= alpha * (1 + 1e-12) for adjusted in holm(values)) == rejected


@pytest.mark.parametrize("policies", [1, 37, 200])
def test_what_is_beyond_doubt_is_told_apart_among_however_many(policies: int) -> None:
    p = permutation_p(np.ones(60), resamples=draws_for(policies, resamples=100), seed=0)
    assert max(holm([p] * policies)) <= 1 / 400
    assert draws_for(policies, resamples=10**6) == 10**6


def test_many_prompts_of_unit_spread_see_what_the_normal_law_says() -> None:
    # (1.959964 + 0.841621) x 1 / 100 of ten thousand; with half the power 1.959964 alone.
    values = np.tile([1.0, -1.0], 5_000) * (9_999 / 10_000) ** 0.5
    assert minimum_detectable_effect(values, confidence=0.95) == pytest.approx(0.02801585, rel=1e-3)
    assert minimum_detectable_effect(values, confidence=0.95, power=0.5) == pytest.approx(0.01959964, rel=1e-3)


def test_half_a_deviation_takes_thirty_four_prompts_as_the_tables_of_the_t_test_say() -> None:
    found = [
        minimum_detectable_effect(values * ((n - 1) / np.square(values).sum()) ** 0.5, confidence=0.95)
        for n in (33, 34)
        for values in [np.linspace(-1, 1, n)]
    ]
    assert found[0] > 0.5 > found[1]


def test_as_many_studies_of_few_prompts_find_it_as_it_says() -> None:
    """By the permutation test, from the fewest prompts on of which it is told."""
    generator, studies = np.random.default_rng(2), 400
    size = minimum_detectable_effect(np.array([1.0, -1.0] * 5) * 0.9**0.5, confidence=0.95)  # of ten with deviation 1
    found = sum(
        permutation_p(generator.normal(size, 1, FEWEST), resamples=1_024, seed=s) <= 0.05 for s in range(studies)
    )
    assert 0.75 <= found / studies <= 0.87


@given(st.floats(0.1, 10), st.floats(-5, 5))
def test_it_has_the_unit_of_the_differences_and_ignores_their_mean(scale, shift) -> None:
    values = np.array([0.0, 1.0, 3.0, -2.0])
    found = minimum_detectable_effect(values * scale + shift, confidence=0.9)
    assert found == pytest.approx(scale * minimum_detectable_effect(values, confidence=0.9))


def test_four_times_the_prompts_see_half_the_difference() -> None:
    values = np.random.default_rng(0).normal(size=1000)
    few, many = (minimum_detectable_effect(np.tile(values, n), confidence=0.95) for n in (1, 4))
    assert few / many == pytest.approx(2, rel=3e-3)


def test_one_prompt_tells_nothing_of_what_could_be_seen() -> None:
    with pytest.raises(ValueError, match="takes two prompts at least; there are 1"):
        minimum_detectable_effect(np.array([1.0]), confidence=0.95)


@pytest.mark.slow
def test_of_studies_with_the_detectable_difference_four_in_five_find_it() -> None:
    # With 60 prompts the normal theory is off by less than the bound, four standard deviations of a binomial.
    generator = np.random.default_rng(8)
    effect = (1.959964 + 0.841621) / 60**0.5
    found = [
        permutation_p(generator.normal(effect, 1, 60), resamples=999, seed=study) <= 0.05 for study in range(1_000)
    ]
    assert np.mean(found) == pytest.approx(0.8, abs=4 * (0.8 * 0.2 / 1_000) ** 0.5)
