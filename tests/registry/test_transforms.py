"""Transforms, fixed points and the theory on a grid: the printed table, closed forms, equations put back, limits."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from closed_forms import (
    best_of_n_pmf,
    best_of_n_win_rate,
    best_of_poisson_density,
    beta_for_kl,
    kl,
    log_partition,
    tilted,
    win_rate,
    worst_of_n_win_rate,
)
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import cumulative_trapezoid
from scipy.optimize import brentq
from scipy.special import rel_entr

from registry.methods import transforms
from registry.methods.best_of_n import kl_bound
from registry.methods.calibration import mid_rank
from registry.methods.transforms import (
    best_of_n_exponential,
    best_of_n_fixed_point,
    worst_of_n_exponential,
    worst_of_n_fixed_point,
)

U = np.linspace(0, 1, 2001)
# Every transform of section 9.4, as beta -> Phi.
TRANSFORMS: dict[str, Callable[[float], np.ndarray]] = {
    "identity": lambda beta: U,
    "best exponential": lambda beta: best_of_n_exponential(U, 10),
    "worst exponential": lambda beta: worst_of_n_exponential(U, 10),
    "log": lambda beta: transforms.log(U),
    "best fixed point": lambda beta: best_of_n_fixed_point(4, beta),
    "worst fixed point": lambda beta: worst_of_n_fixed_point(4, beta),
}


@cache
def matched(name: str, divergence: float) -> tuple[float, tuple[float, float, float]]:
    """The beta of a transform at a KL, and its win rates: plain, best of 4, worst of 4."""
    phi = TRANSFORMS[name]
    beta = beta_for_kl(phi, divergence)
    f = tilted(phi(beta), beta)
    return beta, (win_rate(f), best_of_n_win_rate(f, 4), worst_of_n_win_rate(f, 4))


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("identity", (0.7737, 0.7998, 0.8860)),
        ("best exponential", (0.7117, 0.8715, 0.6763)),
        ("worst exponential", (0.7358, 0.6859, 0.9476)),
        ("log", (0.7682, 0.7682, 0.9270)),
        ("best fixed point", (0.7025, 0.8733, 0.6646)),
        ("worst fixed point", (0.7344, 0.6803, 0.9479)),
    ],
)
def test_win_rates_at_half_a_nat(name: str, rates: tuple[float, float, float]) -> None:
    assert matched(name, 0.5)[1] == pytest.approx(rates, abs=5e-5)


@pytest.mark.parametrize(
    ("name", "beta"), [("identity", 0.24281), ("best exponential", 0.31834), ("worst exponential", 0.01151)]
)
def test_betas_at_half_a_nat(name: str, beta: float) -> None:
    assert matched(name, 0.5)[0] == pytest.approx(beta, abs=5e-6)


def test_the_logarithm_at_half_a_nat_is_best_of_a_fraction_of_draws() -> None:
    effective = 1 + 1 / matched("log", 0.5)[0]
    assert effective == pytest.approx(3.3144, abs=5e-5)
    assert effective == pytest.approx(brentq(lambda n: math.log(n) - (n - 1) / n - 0.5, 2, 5), abs=1e-6)


@pytest.mark.parametrize("divergence", [0.1, 0.5, 2.0])
def test_each_column_is_won_by_its_own_optimum(divergence: float) -> None:
    for column, winner in enumerate(("identity", "best fixed point", "worst fixed point")):
        rates = {name: matched(name, divergence)[1][column] for name in TRANSFORMS}
        assert max(rates, key=lambda name: rates[name]) == winner


@pytest.mark.parametrize("divergence", [0.1, 0.25, 0.5])
def test_the_best_of_n_exponential_is_near_the_optimum_and_loses_elsewhere(divergence: float) -> None:
    found, optimum = matched("best exponential", divergence)[1], matched("best fixed point", divergence)[1]
    identity = matched("identity", divergence)[1]
    assert optimum[1] - 0.006 <= found[1] <= optimum[1]
    assert found[0] < identity[0] and found[2] < identity[2]


@pytest.mark.parametrize("divergence", [0.5, 1.0, 2.0])
def test_the_worst_of_n_exponential_is_near_the_optimum(divergence: float) -> None:
    found, optimum = matched("worst exponential", divergence)[1][2], matched("worst fixed point", divergence)[1][2]
    assert optimum - 0.0003 <= found <= optimum


def test_the_identity_at_a_quarter() -> None:
    f = tilted(U, 0.25)
    assert win_rate(f) == pytest.approx(0.768657, abs=5e-7)
    assert kl(f) == pytest.approx(0.479409, abs=5e-7)


@pytest.mark.parametrize("beta", [1e-5, 1e-3, 0.02, 0.25, 1.0, 100.0])
def test_the_identity_is_its_closed_form_at_every_beta(beta: float) -> None:
    # beta (e^{1 / beta} - 1), with e^{1 / beta} taken out: it overflows.
    log_z = 1 / beta + math.log(-beta * math.expm1(-1 / beta))
    mean = -1 / math.expm1(-1 / beta) - beta
    f = tilted(U, beta)
    assert log_partition(U, beta) == pytest.approx(log_z, rel=1e-12)
    assert f == pytest.approx(np.exp(U / beta - log_z), rel=1e-9)
    assert kl(f) == pytest.approx(mean / beta - log_z, rel=1e-6, abs=1e-12)
    if beta > 1e-4:  # else all but e^{-5} of the mass lies in one cell, too steep for the quadrature
        assert win_rate(f) == pytest.approx(mean, abs=1e-6)
    # QRPO's code leaves out the -1 (arXiv 2507.08068).
    dropped = beta * (math.log(beta) + 1 / beta)
    assert beta * log_partition(U, beta) - dropped == pytest.approx(beta * math.log(-math.expm1(-1 / beta)), abs=1e-12)


@pytest.mark.parametrize("n", [2, 4, 16, 128])
def test_the_logarithm_with_beta_one_over_n_minus_1_is_best_of_n(n: int) -> None:
    f = tilted(transforms.log(U), 1 / (n - 1))
    assert f == pytest.approx(n * U ** (n - 1), abs=1e-3 * n)
    assert kl(f) == pytest.approx(kl_bound(n), abs=1e-3)
    assert win_rate(f) == pytest.approx(n / (n + 1), abs=1e-5)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3)), min_size=1, max_size=6))
def test_over_a_finite_space_the_logarithm_with_beta_1_is_best_of_two_exactly(weighted) -> None:
    # p u of a level is p (F + F^-) / 2, and p (F + F^-) is F^2 - (F^-)^2.
    weights, rewards = np.array(weighted).T
    u = mid_rank(rewards, np.repeat(rewards, weights))
    tilt = weights * np.exp(transforms.log(u))
    assert tilt / tilt.sum() == pytest.approx(best_of_n_pmf(weights / weights.sum(), rewards, 2))


@pytest.mark.parametrize("n", [3, 4, 9])
def test_over_many_outcomes_the_logarithm_tends_to_best_of_n(n: int) -> None:
    distances = []
    for outcomes in (100, 1000, 10_000):
        rewards = np.arange(float(outcomes))
        tilt = np.exp((n - 1) * transforms.log(mid_rank(rewards, rewards)))
        best = best_of_n_pmf(np.full(outcomes, 1 / outcomes), rewards, n)
        distances.append(np.abs(tilt / tilt.sum() - best).sum() / 2)
    assert [far / near for far, near in pairwise(distances)] == pytest.approx([100, 100], rel=0.05)


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3), st.integers(1, 9)), min_size=2, max_size=6),
    st.floats(0.05, 5),
)
def test_over_a_finite_space_the_tilt_by_the_calibrated_reward_has_the_best_win_rate_for_its_kl(space, beta) -> None:
    weights, rewards, others = np.array(space).T
    reference, other = weights / weights.sum(), others / others.sum()
    u = mid_rank(rewards, np.repeat(rewards, weights))
    z = (reference * np.exp(u / beta)).sum()
    policy = reference * np.exp(u / beta) / z
    above = np.subtract.outer(rewards, rewards)
    wins = ((above > 0) + 0.5 * (above == 0)) @ reference

    def worth(p: np.ndarray) -> float:
        return float(p @ wins - beta * rel_entr(p, reference).sum())

    assert wins == pytest.approx(u)
    assert worth(policy) == pytest.approx(beta * math.log(z), abs=1e-12)
    # Any other policy falls short by beta times its divergence from the tilt.
    assert worth(policy) - worth(other) == pytest.approx(beta * rel_entr(other, policy).sum(), abs=1e-9)


@pytest.mark.parametrize("beta", [0.1, 0.25, 1.0])
def test_the_density_is_what_a_tilted_policy_over_many_outcomes_tends_to(beta: float) -> None:
    rewards = np.arange(8000.0)
    u = mid_rank(rewards, rewards)
    policy = np.exp(u / beta) / np.exp(u / beta).sum()
    f = tilted(U, beta)
    assert policy * len(u) == pytest.approx(np.interp(u, U, f), rel=1e-5)
    assert rel_entr(policy, 1 / len(u)).sum() == pytest.approx(kl(f), abs=1e-7)
    assert policy @ u == pytest.approx(win_rate(f), abs=1e-7)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_large_beta_leaves_the_reference_and_every_win_rate_one_half(name: str) -> None:
    f = tilted(TRANSFORMS[name](1e5), 1e5)
    # The logarithm empties the first of 2000 cells, where the worst of n is n times as often.
    emptied = 1 / 2000 if name == "log" else 0
    assert kl(f) == pytest.approx(emptied, abs=1e-5)
    for n in (1, 4, 128):
        assert best_of_n_win_rate(f, n) == pytest.approx(0.5, abs=1e-4 + emptied)
        assert worst_of_n_win_rate(f, n) == pytest.approx(0.5 + n * emptied / 2, abs=2e-3 if emptied else 1e-4)


@pytest.mark.parametrize("name", ["identity", "best exponential", "worst exponential"])
def test_a_constant_added_to_the_transform_changes_nothing_and_a_factor_only_beta(name: str) -> None:
    phi = TRANSFORMS[name](0.3)
    assert tilted(7 * phi - 3, 7 * 0.3) == pytest.approx(tilted(phi, 0.3))


def test_the_exponential_brought_below_one_changes_beta_only() -> None:
    assert tilted(best_of_n_exponential(U, 10), 0.3) == pytest.approx(tilted(np.exp(10 * U), 0.3 * math.exp(10)))


def test_best_of_poisson_on_the_grid_is_what_its_source_says() -> None:
    f = best_of_poisson_density(U, 1)
    assert kl(f) == pytest.approx(0.10715, abs=5e-6)
    assert win_rate(f) == pytest.approx(0.63212, abs=5e-6)


@pytest.mark.parametrize("n", [1, 2, 4, 9])
def test_win_rates_of_a_policy_with_a_power_for_distribution(n: int) -> None:
    # F = u^3: 1 - n int u^{3n} u^{n-1} du = 3 / 4 for every n, and the worst of n turns 1 - (1 - u)^3 into 1 / 4.
    assert best_of_n_win_rate(3 * U**2, n) == pytest.approx(3 / 4, abs=1e-5)
    assert worst_of_n_win_rate(3 * (1 - U) ** 2, n) == pytest.approx(1 / 4, abs=1e-5)


@pytest.mark.parametrize("beta", [1e-3, 0.3, 10.0])
@pytest.mark.parametrize("fixed_point", [best_of_n_fixed_point, worst_of_n_fixed_point])
def test_one_draw_gives_the_identity(fixed_point: Callable[..., np.ndarray], beta: float) -> None:
    assert np.array_equal(fixed_point(1, beta, 11), np.linspace(0, 1, 11))


@pytest.mark.parametrize("n", [2, 4, 9])
def test_a_small_divergence_gives_powers(n: int) -> None:
    # F(u) = u: n^2 int u^{2n-2} du = n^2 / (2n-1) u^{2n-1}.
    scale = n * n / (2 * n - 1)
    assert best_of_n_fixed_point(n, 1e5) == pytest.approx(scale * U ** (2 * n - 1), abs=1e-3)
    assert worst_of_n_fixed_point(n, 1e5) == pytest.approx(scale * (1 - (1 - U) ** (2 * n - 1)), abs=1e-3)


@pytest.mark.parametrize(("n", "beta"), [(2, 0.05), (4, 0.217), (16, 0.3), (128, 10.0)])
def test_the_best_of_n_fixed_point_put_into_its_equation_comes_back(n: int, beta: float) -> None:
    phi = best_of_n_fixed_point(n, beta, 20_001)
    u = np.linspace(0, 1, len(phi))
    distribution = cumulative_trapezoid(tilted(phi, beta), u, initial=0)
    again = n * n * cumulative_trapezoid((distribution * u) ** (n - 1), u, initial=0)
    assert phi[:-1] == pytest.approx(again[:-1], abs=1e-3 * phi[-1])


@pytest.mark.parametrize(("n", "beta"), [(2, 1e-3), (4, 0.208), (16, 0.01), (128, 10.0), (128, 1e-3)])
def test_the_worst_of_n_fixed_point_put_into_its_equation_comes_back(n: int, beta: float) -> None:
    phi = worst_of_n_fixed_point(n, beta)
    distribution = cumulative_trapezoid(tilted(phi, beta), U, initial=0)
    again = n * n * cumulative_trapezoid(((1 - distribution) * (1 - U)) ** (n - 1), U, initial=0)
    assert phi == pytest.approx(again, abs=1e-3 * phi[-1])


@pytest.mark.parametrize(("n", "beta"), [(2, 0.1), (2, 1e-3), (4, 0.217), (16, 0.01), (128, 10.0), (128, 1e-3)])
def test_damped_iteration_of_the_equation_ends_at_the_fixed_point(n: int, beta: float) -> None:
    # Over F, where nothing is steep: f = f(0) + n^2 / beta int (F u)^{n-1} dF and u = int dF / f, u(1) = 1.
    distribution = np.linspace(0, 1, 8001)
    u = distribution
    for _ in range(60):
        rise = n * n / beta * cumulative_trapezoid((distribution * u) ** (n - 1), distribution, initial=0)
        lowest = brentq(lambda low, rise=rise: np.trapezoid(1 / (low + rise), distribution) - 1, 1e-9, 2)
        u = (u + cumulative_trapezoid(1 / (lowest + rise), distribution, initial=0)) / 2
    expected = beta * np.log(1 + np.interp(U, u, rise) / lowest)
    found = best_of_n_fixed_point(n, beta)
    assert found[:-1] == pytest.approx(expected[:-1], abs=1e-3 * found[-1])
    assert found[-2] < found[-1] <= expected[-1] * 1.001


@pytest.mark.parametrize("beta", [1e-3, 1e-2, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("n", [2, 3, 5, 8, 16, 32, 64, 128])
def test_fixed_points_are_found_and_no_other_transform_does_better(n: int, beta: float) -> None:
    def worth(f: np.ndarray, rate: Callable[[np.ndarray, int], float]) -> float:
        return rate(f, n) - beta * kl(f)

    best, worst = best_of_n_fixed_point(n, beta), worst_of_n_fixed_point(n, beta)
    for phi, rate in ((best, best_of_n_win_rate), (worst, worst_of_n_win_rate)):
        assert phi[0] == 0 and bool((np.diff(phi) >= 0).all()) and bool(np.isfinite(phi).all())
        optimum = worth(tilted(phi, beta), rate)
        # What the grid cannot show next to u = 1 costs no more than 0.003.
        rivals = [tilted(scale * phi, beta) for scale in (0.9, 1.1)] + [tilted(U, beta), np.ones(len(U))]
        assert max(worth(f, rate) for f in rivals) < optimum + (0.003 if rate is best_of_n_win_rate else 1e-6)


@pytest.mark.parametrize(("n", "beta"), [(4, 0.01), (16, 0.03), (64, 0.1), (128, 0.1)])
def test_the_usual_grid_loses_little_of_the_optimum(n: int, beta: float) -> None:
    def worth(points: int) -> float:
        f = tilted(best_of_n_fixed_point(n, beta, points), beta)
        return best_of_n_win_rate(f, n) - beta * kl(f)

    assert worth(2001) == pytest.approx(worth(200_001), abs=0.003)


@pytest.mark.parametrize("divergence", [0.01, 1.0, 5.0])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_beta_found_gives_the_divergence_asked_for(name: str, divergence: float) -> None:
    phi = TRANSFORMS[name]
    beta = beta_for_kl(phi, divergence)
    assert kl(tilted(phi(beta), beta)) == pytest.approx(divergence)


def test_a_transform_on_the_grid_and_a_function_to_it_are_the_same() -> None:
    assert beta_for_kl(U, 0.5) == beta_for_kl(lambda beta: U, 0.5)


@pytest.mark.parametrize(("phi", "target"), [(np.ones(11), 0.5), (U, 0.0), (U, -1.0), (U, 1e9)])
def test_a_divergence_out_of_reach_is_refused(phi: np.ndarray, target: float) -> None:
    with pytest.raises(ValueError, match=f"at a KL of {target:g}".replace("+", r"\+")):
        beta_for_kl(phi, target)


@pytest.mark.parametrize(("n", "beta", "points"), [(0, 1.0, 11), (2, 0.0, 11), (2, math.nan, 11), (2, 1.0, 2)])
@pytest.mark.parametrize("fixed_point", [best_of_n_fixed_point, worst_of_n_fixed_point])
def test_numbers_that_make_no_problem_are_refused(
    fixed_point: Callable[..., np.ndarray], n: int, beta: float, points: int
) -> None:
    with pytest.raises(ValueError, match=f"n is {n}, beta {beta}, points {points}"):
        fixed_point(n, beta, points)
