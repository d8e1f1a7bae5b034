"""What to reward when the policy is deployed under best-of-n or worst-of-n: InfAlign-CTRL, step 2 (arXiv 2412.19792).

Under the reference a calibrated reward u is Uniform(0, 1), whatever the reward and the prompt. So a policy is the
density f of u under it, that of a transform Phi is f = e^{Phi / beta} / Z, and its divergence and its win rates against
the reference are integrals over [0, 1]. Ties are left out. The identity, for the plain win rate, needs no function.

A fixed point is an array over a uniform grid of [0, 1], both ends included, and log f is linear between its points.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from scipy.optimize import brentq
from scipy.special import exprel

Array = NDArray[np.float64]

POINTS = 2001


def best_of_n_exponential(u: Array, t: float) -> Array:
    """e^{t (u - 1)}, for best-of-n: e^{t u} brought below 1, which rescales beta by e^{-t} and changes nothing else."""
    return np.exp(t * (u - 1))


def worst_of_n_exponential(u: Array, t: float) -> Array:
    """-e^{-t u}, for worst-of-n (an attacker who has n attempts)."""
    return -np.exp(-t * u)


def log(u: Array) -> Array:
    """log u: with beta = 1 / (n - 1) the policy is that of best-of-n itself (vBoN, arXiv 2407.06057).

    Minus infinity at 0, so an estimated u is smoothed first (`calibration.smoothed`).
    """
    with np.errstate(divide="ignore"):
        return np.log(u)


def best_of_n_fixed_point(n: int, beta: float, points: int = POINTS) -> Array:
    """The transform whose policy maximises (win rate of best-of-n against the reference's best-of-n) - beta KL.

    It is the one solution of Phi(v) = n^2 int_0^v (F(u) u)^{n-1} du, where F is the distribution function of
    f ~ e^{Phi / beta}. n = 1 gives the identity. The last value stands for the whole last cell: within about
    beta / n^2 of u = 1 Phi rises faster than a grid may show, and the value at 1 itself would give that cell too much.

    Returns:
        Phi [points], Phi(0) = 0.
    Raises:
        ValueError: n, beta or points is out of range, or the equation was not solved.
    """
    _check(n, beta, points)
    if n == 1:
        return np.linspace(0, 1, points)
    distribution, logs = _solution(n, beta, points, rising=True)
    rise = logs[-1] - logs[-2]
    if rise > 0.01:  # else the cell's probability is known too poorly, and the two agree
        mean = (1 - distribution[-2]) * (points - 1) / np.exp(logs[-2])
        logs[-1] = logs[-2] + brentq(lambda step: exprel(step) - mean, 0, 2 * rise)
    return np.asarray(beta * (logs - logs[0]))


def worst_of_n_fixed_point(n: int, beta: float, points: int = POINTS) -> Array:
    """The same for worst-of-n against worst-of-n: Phi(v) = n^2 int_0^v ((1 - F(u)) (1 - u))^{n-1} du.

    Returns:
        Phi [points], Phi(0) = 0.
    Raises:
        ValueError: n, beta or points is out of range, or the equation was not solved.
    """
    _check(n, beta, points)
    if n == 1:
        return np.linspace(0, 1, points)
    _, logs = _solution(n, beta, points, rising=False)
    return np.asarray(beta * (logs[::-1] - logs[-1]))


def _check(n: int, beta: float, points: int) -> None:
    if n < 1 or not 0 < beta < np.inf or points < 3:
        raise ValueError(f"n is {n}, beta {beta}, points {points}; they must be 1 or more, positive, 3 or more")


def _solution(n: int, beta: float, points: int, *, rising: bool) -> tuple[Array, Array]:
    """F and log f of the fixed point over the grid: of u for best-of-n, of 1 - u for worst-of-n.

    Both read F'' = +-(n^2 / beta) F' (F u)^{n-1}, F(0) = 0, F(1) = 1. Let g solve g'' = +-g' (g x)^{n-1} from g(0) = 0,
    g'(0) = 1. Then F(u) = g(k u) / g(k) for the k with k^n g(k)^{n-1} = n^2 / beta. As the left side rises from 0
    without bound, each beta has one solution, and one pass of an integrator finds it: nothing is iterated that might
    not converge.
    """
    strength, sign = n * n / beta, 1 if rising else -1

    def slope(x: float, state: Array) -> list[float]:  # of g and log g'
        return [np.exp(state[1]), sign * (state[0] * x) ** (n - 1)]

    def reached(x: float, state: Array) -> float:
        return float(x**n * state[0] ** (n - 1) / strength - 1)

    reached.terminal = True  # type: ignore[attr-defined]  # an attribute of a function
    furthest = max(1.0, 2 * strength) ** (1 / n)  # g >= e^{-1/2} from x = 1 on
    with np.errstate(over="ignore", invalid="ignore"):  # a trial step too far is taken back
        found = solve_ivp(
            slope, (0, furthest), [0, 0], "DOP853", dense_output=True, events=reached, rtol=1e-10, atol=1e-13
        )
    if not found.t_events[0].size:
        raise ValueError(f"no fixed point was found for n = {n} and beta = {beta}: {found.message}")
    k = found.t_events[0][0]
    g, log_slope = found.sol(np.linspace(0, k, points))
    log_slope = (np.maximum if rising else np.minimum).accumulate(log_slope)  # rounding must not reverse the order
    return g / g[-1], log_slope + np.log(k / g[-1])
