"""Best-of-n on finite spaces, against enumeration of every draw and the printed numbers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from closed_forms import best_of_n_pmf, best_of_poisson_density
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import rel_entr, xlogy

from registry.methods.best_of_n import expected_best, kl_bound, kl_estimate

SPACES = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3)), min_size=1, max_size=6)


def space_of(weighted: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """The probabilities and rewards of answers given as (weight, reward)."""
    weights, rewards = np.array(weighted, dtype=float).T
    return weights / weights.sum(), rewards


def uniform(outcomes: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full(outcomes, 1 / outcomes), np.arange(float(outcomes))


def win_rate(ours: np.ndarray, theirs: np.ndarray, rewards: np.ndarray) -> float:
    above = np.subtract.outer(rewards, rewards)
    return float(ours @ ((above > 0) + 0.5 * (above == 0)) @ theirs)


@pytest.mark.parametrize(
    ("outcomes", "n", "divergence", "bound"),
    [(2, 2, 0.13081, 0.19315), (2, 4, 0.45936, 0.63629), (10, 4, 0.62883, 0.63629)],
)
def test_divergences_over_equally_likely_outcomes(outcomes: int, n: int, divergence: float, bound: float) -> None:
    probabilities, rewards = uniform(outcomes)
    assert rel_entr(best_of_n_pmf(probabilities, rewards, n), probabilities).sum() == pytest.approx(
        divergence, abs=5e-6
    )
    assert kl_bound(n) == pytest.approx(bound, abs=5e-6)


@pytest.mark.parametrize(("outcomes", "n", "rate", "most"), [(2, 2, 0.625, 0.66667), (2, 4, 0.71875, 0.8)])
def test_win_rates_over_equally_likely_outcomes(outcomes: int, n: int, rate: float, most: float) -> None:
    probabilities, rewards = uniform(outcomes)
    assert win_rate(best_of_n_pmf(probabilities, rewards, n), probabilities, rewards) == pytest.approx(rate)
    assert n / (n + 1) == pytest.approx(most, abs=5e-6)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_the_distribution_is_that_of_the_first_best_of_all_draws(n: int) -> None:
    probabilities, rewards = np.array([0.4, 0.1, 0.3, 0.2]), np.array([1.0, 5.0, 1.0, 0.0])
    expected = np.zeros(4)
    for draws in itertools.product(range(4), repeat=n):
        expected[max(draws, key=lambda i: rewards[i])] += math.prod(probabilities[i] for i in draws)
    assert best_of_n_pmf(probabilities, rewards, n) == pytest.approx(expected)


@given(SPACES, st.integers(1, 9))
def test_bond_writes_the_same_distribution_as_a_sum(weighted, n) -> None:
    # p (p_<=)^{n-1} sum_{i=1}^n (p_< / p_<=)^{i-1}, arXiv 2407.14622.
    p, rewards = space_of(weighted)
    at_most = np.array([p[rewards <= reward].sum() for reward in rewards])
    below = np.array([p[rewards < reward].sum() for reward in rewards])
    expected = p * at_most ** (n - 1) * sum((below / at_most) ** i for i in range(n))
    assert best_of_n_pmf(p, rewards, n) == pytest.approx(expected)


@given(SPACES, st.integers(1, 32))
def test_divergence_and_win_rate_never_exceed_those_without_ties(weighted, n) -> None:
    p, rewards = space_of(weighted)
    best = best_of_n_pmf(p, rewards, n)
    assert best.sum() == pytest.approx(1)
    assert rel_entr(best, p).sum() <= kl_bound(n) + 1e-12
    assert 0.5 - 1e-12 <= win_rate(best, p, rewards) <= n / (n + 1) + 1e-12


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(1, 8))
def test_the_bound_is_near_where_answers_seldom_repeat(weights, n) -> None:
    p, rewards = space_of([(weight, i) for i, weight in enumerate(weights)])
    gap = kl_bound(n) - rel_entr(best_of_n_pmf(p, rewards, n), p).sum()
    assert gap <= 2 * n * (n - 1) * (p**2).sum() + 1e-12  # arXiv 2401.01879; the sum is e^{-H_2}


@given(SPACES, st.integers(1, 9))
def test_a_strictly_increasing_map_of_the_reward_leaves_the_distribution(weighted, n) -> None:
    p, rewards = space_of(weighted)
    assert np.array_equal(best_of_n_pmf(p, np.exp(rewards) - 7, n), best_of_n_pmf(p, rewards, n))


def test_one_draw_and_equal_rewards_leave_the_reference() -> None:
    p = np.array([0.5, 0.3, 0.2])
    assert best_of_n_pmf(p, np.array([0.0, 2.0, 1.0]), 1) == pytest.approx(p)
    assert best_of_n_pmf(p, np.zeros(3), 7) == pytest.approx(p)
    assert kl_bound(1) == 0


def test_what_the_reference_never_says_is_never_chosen() -> None:
    assert best_of_n_pmf(np.array([0.5, 0.5, 0.0]), np.array([0.0, 1.0, 2.0]), 2).tolist() == [0.25, 0.75, 0]


def test_numbers_that_are_no_distribution_are_refused() -> None:
    with pytest.raises(ValueError, match=r"sum to 1\.5"):
        best_of_n_pmf(np.array([0.5, 1.0]), np.array([0.0, 1.0]), 2)


@pytest.mark.parametrize(("outcomes", "expected"), [(2, 0.17910), (10, 0.19306)])
def test_the_estimate_at_the_printed_points(outcomes: int, expected: float) -> None:
    assert kl_estimate(np.array([1 / outcomes]), 2) == pytest.approx(expected, abs=5e-6)


@pytest.mark.parametrize("n", [1, 2, 16])
def test_the_estimate_goes_from_the_bound_to_nothing(n: int) -> None:
    epsilon = np.array([0, 1e-300, 1e-12, 0.1, 0.5, 1])
    found = kl_estimate(epsilon, n)
    assert found[:3] == pytest.approx(kl_bound(n))
    assert found[-1] == 0
    assert bool((np.diff(found) <= 1e-12).all())


@given(SPACES, st.integers(1, 32))
def test_the_estimate_is_no_less_than_the_divergence_and_no_more_than_its_bound(weighted, n) -> None:
    p, rewards = space_of(weighted)
    best = best_of_n_pmf(p, rewards, n)
    exact = rel_entr(best, p).sum()
    level = np.array([p[rewards == reward].sum() for reward in rewards])  # what cannot be told apart is one outcome
    assert exact - 1e-12 <= best @ kl_estimate(np.minimum(level, 1.0), n) <= kl_bound(n) + 1e-12


def test_a_reward_of_yes_and_no_moves_best_of_n_less_than_texts_alone_would_say() -> None:
    # One answer in a hundred is rewarded, and no text repeats: 0.0394 log 3.94 + 0.9606 log 0.9703 = 0.0251 nats, and not 0.636.
    p, rewards = np.full(1000, 1 / 1000), np.repeat([1.0, 0.0], [10, 990])
    best = best_of_n_pmf(p, rewards, 4)
    assert rel_entr(best, p).sum() == pytest.approx(0.02507, abs=5e-6)
    assert best @ kl_estimate(np.where(rewards == 1, 0.01, 0.99), 4) == pytest.approx(0.035, abs=5e-4)
    assert best @ kl_estimate(p, 4) > 0.63


@pytest.mark.parametrize("mu", [0.01, 1.0, 7.0])
def test_best_of_poisson_mixes_best_of_n(mu: float) -> None:
    u = np.linspace(0, 1, 11)
    chances = [math.exp(-mu) * mu**extra / math.factorial(extra) for extra in range(60)]
    mixture = sum(chance * (extra + 1) * u**extra for extra, chance in enumerate(chances))
    assert best_of_poisson_density(u, mu) == pytest.approx(mixture)
    assert quad(best_of_poisson_density, 0, 1, args=(mu,))[0] == pytest.approx(1)


def test_best_of_poisson_at_one() -> None:
    def density(u):
        return best_of_poisson_density(u, 1)

    assert quad(lambda u: u * density(u), 0, 1)[0] == pytest.approx(0.63212, abs=5e-6)
    assert quad(lambda u: xlogy(density(u), density(u)), 0, 1)[0] == pytest.approx(0.10715, abs=5e-6)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-5, 5)), min_size=1, max_size=6), st.data())
def test_the_best_of_fewer_draws_is_the_mean_over_all_ways_to_choose_them(draws, data) -> None:
    n = data.draw(st.integers(1, len(draws)))
    guide, judged = np.array(draws, dtype=float).T
    ways = list(itertools.combinations(range(len(draws)), n))
    expected = np.mean([judged[max(way, key=lambda i: (guide[i], -i))] for way in ways])
    assert expected_best(guide[None], judged[None], n) == pytest.approx(expected)


def test_the_best_of_as_many_as_there_are_is_the_best_and_of_one_the_mean() -> None:
    guide, judged = np.array([[1.0, 3.0, 3.0, 2.0]]), np.array([[10.0, 20.0, 30.0, 40.0]])
    assert expected_best(guide, judged, 4).tolist() == [20.0]
    assert expected_best(guide, judged, 1).tolist() == [25.0]
    for n in (0, 5):
        with pytest.raises(ValueError, match=f"n is {n}; it must be at least 1 and at most the 4 draws"):
            expected_best(guide, judged, n)


def test_from_uniform_draws_the_best_of_n_is_n_over_n_plus_one_on_average() -> None:
    draws = np.random.default_rng(1).random((20_000, 8))
    for n in (1, 2, 4, 8):
        assert expected_best(draws, draws, n).mean() == pytest.approx(n / (n + 1), abs=0.005)
